"""Frames between a workstation and a board's agent, over whatever carries bytes: an SSH channel, a pipe.

A frame is two unsigned 32-bit lengths in network order, a JSON object of the first length, and raw bytes of the second.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from ..errors import DeployError

LENGTHS = struct.Struct("!II")
MAX_JSON = 1 << 20
MAX_DATA = 1 << 22
"""Bytes; room for the beginning of a bundle (:data:`armlet_runtime.bundle.container.MAX_FRONT`)."""


def pack(message: dict[str, Any], data: bytes = b"") -> bytes:
    """One frame."""
    text = msgspec.json.encode(message)
    return b"".join([LENGTHS.pack(len(text), len(data)), text, data])


def sizes(prefix: bytes) -> tuple[int, int]:
    """Bytes of JSON and of data that follow a frame's first eight.

    Raises:
        DeployError: No frame of ours is so large; the other side speaks something else.
    """
    text, data = LENGTHS.unpack(prefix)
    if text > MAX_JSON or data > MAX_DATA:
        raise DeployError(
            f"the other side does not speak armlet's protocol (it began with {prefix!r}); "
            f"see whether the board's login prints something"
        )
    return text, data


def unpack(text: bytes) -> dict[str, Any]:
    """The JSON of a frame.

    Raises:
        DeployError: It is no JSON object.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DeployError(f"the other side sent a frame that is no JSON object ({error})") from error
