"""A board's record of its last update: ``update.json``, and the log of the process that made it."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from ..files import write_atomic
from .agent_protocol import Update, UpdateResult, UpdateState

UPDATE, LOG = "update.json", "update.log"


class UpdateRecord:
    """The record under a prefix."""

    def __init__(self, prefix: Path) -> None:
        """Keep the record under ``prefix``."""
        self.log = prefix / LOG
        self._path = prefix / UPDATE

    def read(self) -> Update:
        """Return the last update."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Update)
        except FileNotFoundError:
            message = "this board has had no update yet"
        except (
            msgspec.MsgspecError,
            UnicodeDecodeError,
        ):  # of another version, which must not lock the owner out
            message = f"the last update is unknown: {UPDATE} cannot be read"
        return Update(UpdateState.IDLE, UpdateResult.INITIAL, "", message, 0.0)

    def write(self, state: UpdateState, result: UpdateResult, digest: str, message: str) -> None:
        """Replace the record, with the present time."""
        write_atomic(self._path, msgspec.json.encode(Update(state, result, digest, message, time.time())))

    def log_lines(self) -> list[str]:
        """The log of the update's process; empty without a log."""
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
