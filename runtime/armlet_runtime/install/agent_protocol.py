"""The protocol of a workstation and a board's agent, over any stream of bytes: an SSH channel, a pipe.

A frame is two unsigned 32-bit lengths in network order, a JSON object of the first length, and raw bytes of the second.
Each request has the field ``op`` (see :func:`armlet_runtime.install.agent.answers`); an answer with the field ``error``
is a refusal, with its :class:`UpdateResult` in ``result``.

The numbers of states and results are those of the firmware object of LwM2M (OMA LightweightM2M Core 1.2.1, object 5,
resources 3 and 5), for readers of logs who know them. Nothing else here is LwM2M.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any

import msgspec

from ..errors import (
    AdmissionError,
    ArmletError,
    BundleError,
    CorruptBundleError,
    DeployError,
    NewerSchemaError,
    SignatureError,
    TrailingBytesError,
    TruncatedBundleError,
)

LENGTHS = struct.Struct("!II")
MAX_JSON = 1 << 20
MAX_DATA = 1 << 22
"""Bytes; room for the beginning of a bundle (:data:`armlet_runtime.bundle.container.MAX_FRONT`)."""


def pack_frame(message: dict[str, Any], data: bytes = b"") -> bytes:
    """Pack a frame."""
    text = msgspec.json.encode(message)
    return b"".join([LENGTHS.pack(len(text), len(data)), text, data])


def frame_sizes(prefix: bytes) -> tuple[int, int]:
    """Unpack a frame's first eight bytes: the numbers of bytes of JSON and of data that follow.

    Raises:
        DeployError: The numbers are too large for a frame, so the other side does not speak this protocol.
    """
    text, data = LENGTHS.unpack(prefix)
    if text > MAX_JSON or data > MAX_DATA:
        raise DeployError(
            f"the other side does not speak armlet's protocol (it began with {prefix!r}); "
            f"remove what the board's login prints, for example in its ~/.bashrc"
        )
    return text, data


def decode_message(text: bytes) -> dict[str, Any]:
    """Decode the JSON object of a frame.

    Raises:
        DeployError: ``text`` is not a JSON object.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DeployError(f"the other side sent a frame without a JSON object ({error})") from error


class UpdateState(IntEnum):
    """Phase of an update."""

    IDLE = 0
    DOWNLOADING = 1
    DOWNLOADED = 2
    UPDATING = 3


class UpdateResult(IntEnum):
    """Outcome of an update."""

    INITIAL = 0
    SUCCESS = 1
    NOT_ENOUGH_STORAGE = 2
    OUT_OF_MEMORY = 3
    CONNECTION_LOST = 4
    INTEGRITY_CHECK_FAILED = 5
    UNSUPPORTED_PACKAGE = 6
    UPDATE_FAILED = 8


class Update(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last update of a board.

    Attributes:
        state: Its phase.
        result: Its outcome, once ``state`` is idle again.
        digest: Digest of its bundle.
        message: A sentence for a person.
        at: Unix seconds on the board's clock.
    """

    state: UpdateState
    result: UpdateResult
    digest: str
    message: str
    at: float


class NoRoomError(DeployError):
    """A disk is too full for the bundle."""


class NoMemoryError(DeployError):
    """A board's memory is too full for the bundle."""


class UnsupportedError(DeployError):
    """A board has no engine for the bundle."""


RESULTS: dict[type[ArmletError], UpdateResult] = {
    NoRoomError: UpdateResult.NOT_ENOUGH_STORAGE,
    NoMemoryError: UpdateResult.OUT_OF_MEMORY,
    UnsupportedError: UpdateResult.UNSUPPORTED_PACKAGE,
}
"""Results of the errors of the board itself."""


def result_of(error: ArmletError) -> UpdateResult:
    """Return the result by which an error is reported."""
    if type(error) in RESULTS:
        return RESULTS[type(error)]
    if isinstance(error, (SignatureError, CorruptBundleError, TruncatedBundleError, TrailingBytesError)):
        return UpdateResult.INTEGRITY_CHECK_FAILED
    if isinstance(error, (AdmissionError, NewerSchemaError)):
        return UpdateResult.UNSUPPORTED_PACKAGE
    if isinstance(error, BundleError):
        return UpdateResult.INTEGRITY_CHECK_FAILED
    return UpdateResult.UPDATE_FAILED
