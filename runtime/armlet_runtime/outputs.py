"""Files that commands write: results as JSON, and lines that appear as they come."""

from __future__ import annotations

from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from .errors import UsageError
from .files import write_atomic


def write_json(path: Path, result: Any) -> None:
    """Write a result as indented JSON, whole or not at all.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        write_atomic(path, msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


class Lines:
    """A file of lines that another program can follow; nothing if there is no path. A context manager."""

    def __init__(self, path: Path | None) -> None:
        """``path``: the file, which is replaced; None to write nothing.

        Raises:
            UsageError: The file cannot be written.
        """
        self._path = path
        self._file: FileIO | None = None
        if path is not None:
            try:
                self._file = path.open("wb", buffering=0)
            except OSError as error:
                raise UsageError(f"cannot write {path}: {error.strerror}") from error

    def write(self, line: bytes) -> None:
        """Write one line at once.

        Raises:
            UsageError: The line cannot be written, as on a full disk.
        """
        if self._file is not None:
            left = line + b"\n"
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError as error:
                raise UsageError(f"cannot write {self._path}: {error.strerror}") from error

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
