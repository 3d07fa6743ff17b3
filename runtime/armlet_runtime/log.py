"""Logging: which records are kept, and where they go. Every module logs to the logger of its own name.

Records go to the standard error output, under systemd so to the journal; with ``--log FILE`` to a file instead, and
only warnings to the standard error output. Nothing that comes with every packet is logged above debug.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ArmletError, UsageError

log = logging.getLogger(__name__)

VARIABLE = "ARMLET_LOG"
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
PACKAGES = ("armlet_runtime", "armlet_bridge", "armlet_train", "armlet_export")
"""Whose records are kept from the chosen level on. Of libraries, warnings are."""

# sd-daemon(3): what the journal takes as the priority of a line.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Declare ``--log-level`` and ``--log``, of a command or of each of its actions."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in actions:
        for sub in action.choices.values():
            add_log_options(sub)
    if not actions:
        group = parser.add_argument_group("log")
        group.add_argument(
            "--log-level",
            choices=LEVELS,
            help=f"log from this level on (default: {VARIABLE}, or 'warning'; 'info' in a file and in the journal)",
        )
        group.add_argument("--log", type=Path, metavar="FILE", help="append the log to this file")


@contextmanager
def logging_to(file: Path | None, level: str | None) -> Iterator[None]:
    """Log in this way inside the block.

    Args:
        file: Appended to; None for the standard error output.
        level: One of :data:`LEVELS`; None for that of the environment, or else the usual.

    Raises:
        UsageError: The environment holds no level.
        OSError: The file cannot be written.
    """
    journal = is_journal(2)
    level = level or os.environ.get(VARIABLE) or ("info" if journal or file is not None else "warning")
    if level not in LEVELS:
        raise UsageError(f"{VARIABLE}={level}: choose {', '.join(LEVELS)}")
    formatter = _JournalFormatter("%(name)s: %(message)s") if journal else _UtcFormatter()
    errors = logging.StreamHandler(sys.stderr)
    errors.setFormatter(formatter)
    handlers: list[logging.Handler] = [errors]
    if file is not None:
        kept = _FileHandler(file, encoding="utf-8")
        kept.setFormatter(_UtcFormatter())
        handlers.append(kept)
        errors.setLevel(logging.WARNING)
    root = logging.getLogger()
    packages = [logging.getLogger(name) for name in PACKAGES]
    before = [package.level for package in packages]
    for handler in handlers:
        root.addHandler(handler)
    for package in packages:
        package.setLevel(LEVELS[level])
    try:
        yield
    except Exception as error:
        # The command line prints it; a log has to tell the end, too.
        log.info("ended by %s: %s", type(error).__name__, error, exc_info=not isinstance(error, ArmletError))
        raise
    finally:
        for package, former in zip(packages, before, strict=True):
            package.setLevel(former)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def is_journal(file: int) -> bool:
    """Whether a file descriptor is the journal (systemd.exec(5) on ``JOURNAL_STREAM``)."""
    try:
        status = os.fstat(file)
    except OSError:  # closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _UtcFormatter(logging.Formatter):
    """Lines that begin with the time in UTC to the millisecond."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        self.converter = time.gmtime


class _JournalFormatter(logging.Formatter):
    """Lines with their priority for the journal, which has the time itself."""

    def format(self, record: logging.LogRecord) -> str:
        """Each line of a record, as a traceback has several, with the priority."""
        head = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(head + line for line in super().format(record).splitlines())


class _FileHandler(logging.FileHandler):
    """A log file. A full disk loses records, and ends nothing."""

    _failed = False

    def close(self) -> None:
        """Close the file; what cannot be written any more is lost."""
        with suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is logging's
        """Report the first failure only."""
        if not self._failed:
            self._failed = True
            print(f"armlet: cannot write {self.baseFilename}: {sys.exc_info()[1]}; the log has gaps", file=sys.stderr)
