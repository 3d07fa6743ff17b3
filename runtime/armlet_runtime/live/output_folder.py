"""Output folders of a service: a new file for each start and each part, named by time, within a total size."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from ..errors import UsageError
from ..files import free_name

PARTS = 16
"""Number of full parts that a folder holds: removing the oldest file frees this share of its size."""


def is_folder(text: str) -> bool:
    """Whether a path on the command line names a folder: it ends with a slash, or the folder exists."""
    return text.endswith("/") or Path(text).is_dir()


class OutputFolder:
    """Names new files, and removes the oldest files when all together are too large.

    Attributes:
        path: The folder.
        part_bytes: Size at which the next file begins.
    """

    def __init__(self, path: Path, stem: str, suffix: str, keep_bytes: int) -> None:
        """Create the folder unless it exists.

        Args:
            path: The folder.
            stem: Beginning of the names of its files; files with other names are left alone.
            suffix: End of their names.
            keep_bytes: Largest total size of the files.

        Raises:
            UsageError: The folder cannot be created.
        """
        self.path, self.part_bytes = path, keep_bytes // PARTS
        self._stem, self._suffix, self._keep_bytes = stem, suffix, keep_bytes
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {path}: {error.strerror}") from error

    def next_file(self) -> Path:
        """Remove the oldest files to make room for a new file; a name that no file has.

        Raises:
            OSError: The folder cannot be read, or a file in it cannot be removed.
        """
        files = [(file.stat(), file) for file in self.path.glob(f"{self._stem}-*{self._suffix}")]
        # By the time of the last change: names mislead on a board that starts without the right time.
        files.sort(key=lambda entry: entry[0].st_mtime_ns, reverse=True)
        room = self._keep_bytes - self.part_bytes
        for status, file in files:
            room -= status.st_size
            if room < 0:
                file.unlink()
        now = datetime.now(timezone.utc)
        return free_name(self.path / f"{self._stem}-{now:%Y%m%dT%H%M%SZ}{self._suffix}")
