"""Atomic file writes, and the files that commands write: results as JSON, and lines that appear as they come."""

from __future__ import annotations

import itertools
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from .errors import UsageError

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


def write_json(path: Path, result: Any) -> None:
    """Write a result as indented JSON, whole or not at all.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        write_atomic(path, msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def free_name(path: Path) -> Path:
    """``path``, or if there is something of that name the first of ``NAME-2.SUFFIX``, ``NAME-3.SUFFIX``, ... that is
    free."""
    names = (path.with_name(f"{path.stem}-{count}{path.suffix}") for count in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists() and not name.is_symlink())


def set_aside(path: Path) -> Path | None:
    """Rename a file that holds something, so that a new one can have its name.

    Returns:
        Its new name, which has the time of its last change; None if there is no such file, or it is empty or a device.

    Raises:
        UsageError: It cannot be renamed.
    """
    try:
        if not path.is_file() or not path.stat().st_size:
            return None
        changed = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
        kept = free_name(path.with_name(f"{path.stem}-{changed:%Y%m%dT%H%M%SZ}{path.suffix}"))
        path.rename(kept)
    except OSError as error:
        raise UsageError(f"cannot rename {path}, which exists already: {error.strerror}") from error
    return kept


class Lines:
    """A file of lines that another program can follow; nothing if there is no path. A context manager.

    Attributes:
        size: Bytes written.
    """

    def __init__(self, path: Path | None) -> None:
        """``path``: the file, which is replaced; None to write nothing.

        Raises:
            UsageError: The file cannot be written.
        """
        self._path = path
        self.size = 0
        self._file: FileIO | None = None
        if path is not None:
            try:
                self._file = path.open("wb", buffering=0)
            except OSError as error:
                raise UsageError(f"cannot write {path}: {error.strerror}") from error

    def write(self, line: bytes) -> None:
        """Write one line at once.

        Raises:
            UsageError: The line cannot be written, as on a full disk; a file does not keep a part of it.
        """
        if self._file is None:
            return
        left = line + b"\n"
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                self._file.truncate(self.size)
                self._file.seek(self.size)
            raise UsageError(f"cannot write {self._path}: {error.strerror}") from error
        self.size += len(line) + 1

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
