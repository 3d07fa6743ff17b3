"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

CHUNK = 1 << 18
"""Bytes read at a time from files that may be large: what reading one needs of a board's memory."""


def chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes, :data:`CHUNK` at a time.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def write_atomic(path: Path, data: bytes | Iterable[bytes], mode: int = 0o644) -> None:
    """Write ``data``, or its pieces one after the other, beside ``path``, flush it, and rename it over ``path``.

    A reader sees the old file or the new one, also after a power cut. ``mode``: the new file's permission bits.

    Raises:
        OSError: The folder cannot be written to, or is full; ``path`` is as it was.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
