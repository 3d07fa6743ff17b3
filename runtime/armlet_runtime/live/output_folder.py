"""Folders for what a service writes: a new file for each start and each part, named by time, within a size."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from ..errors import UsageError
from ..files import free_name

PARTS = 16
"""A part is as large as this share of what a folder keeps: with the oldest file so much goes at once, and no more."""


def is_folder(text: str) -> bool:
    """Whether what a person gave as a place for files is a folder: it ends with a slash, or is one already."""
    return text.endswith("/") or Path(text).is_dir()


class OutputFolder:
    """Gives names to files, and removes the oldest of them when all together are too large.

    Attributes:
        path: The folder.
        part_bytes: From which size on a file is followed by the next one.
    """

    def __init__(self, path: Path, stem: str, suffix: str, keep_bytes: int) -> None:
        """Make the folder, if there is none.

        Args:
            path: The folder.
            stem: What its files' names begin with; files with other names are left alone.
            suffix: What they end with.
            keep_bytes: How large all of them may be together.

        Raises:
            UsageError: It cannot be made.
        """
        self.path, self.part_bytes = path, keep_bytes // PARTS
        self._stem, self._suffix, self._keep_bytes = stem, suffix, keep_bytes
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {path}: {error.strerror}") from error

    def next_file(self) -> Path:
        """A name that no file has; the oldest files were removed so that there is room for it.

        Raises:
            OSError: The folder cannot be read, or a file in it cannot be removed.
        """
        files = [(file.stat(), file) for file in self.path.glob(f"{self._stem}-*{self._suffix}")]
        # By the time of the last change: names lie where a board begins without the right time.
        files.sort(key=lambda entry: entry[0].st_mtime_ns, reverse=True)
        room = self._keep_bytes - self.part_bytes
        for status, file in files:
            room -= status.st_size
            if room < 0:
                file.unlink()
        now = datetime.now(timezone.utc)
        return free_name(self.path / f"{self._stem}-{now:%Y%m%dT%H%M%SZ}{self._suffix}")
