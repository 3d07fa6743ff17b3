"""The systemd user unit that keeps ``armlet run`` going on a board, as the board itself sees it."""

from __future__ import annotations

import os
import shutil
import subprocess

UNIT = "armlet.service"
ASKING_S = 10.0


def state() -> str:
    """``active``, ``activating``, ``failed``, ``inactive`` as systemd names them; ``none`` if there is no such unit."""
    if shutil.which("systemctl") is None:
        return "none"
    said = _ask("systemctl", "--user", "show", "--property=LoadState,ActiveState", UNIT)
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    return found["ActiveState"] if found.get("LoadState") == "loaded" else "none"


def journal(lines: int) -> list[str]:
    """The last lines that the unit wrote, oldest first; empty without a journal.

    The journal of the system is asked for this user's unit, because boards that keep their journal in memory keep no
    journal of a user's own.
    """
    if shutil.which("journalctl") is None:
        return []
    options = ("--quiet", "--no-pager", "--output=short-iso", f"--lines={lines}")
    return _ask("journalctl", f"--user-unit={UNIT}", f"_UID={os.getuid()}", *options).splitlines()


def _ask(*command: str) -> str:
    """What a command prints; nothing if it cannot say (no systemd for users, no right to the journal)."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ASKING_S, check=False).stdout
    except subprocess.TimeoutExpired:
        return ""
