"""Checks of a bundle in child processes, so that a program that crashes does not end the caller's process.

The checks are those of ``python -m armlet_runtime.checks NAME BUNDLE ...`` (:mod:`armlet_runtime.checks`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DEPLOY_CHECK = "deploy_check"
"""The check of a bundle before a slot is switched to it."""

TRIAL_RUN = "trial_run"
"""Decisions of the live loop on a bundle's golden windows."""


def check_command(name: str, *arguments: str | Path) -> list[str]:
    """Return the command that makes a check with this Python."""
    return [sys.executable, "-m", "armlet_runtime.checks", name, *map(str, arguments)]


def run_check(
    name: str, bundle: str | Path, keys: Sequence[Path], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a check of a bundle, or of ``file:SLOT``, with these keys, and wait for it.

    Raises:
        subprocess.TimeoutExpired: The check took longer, and was killed.
    """
    options = [text for key in keys for text in ("--key", key)]
    command = check_command(name, bundle, *options)
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def reason_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return why a check failed: the last line of its standard error."""
    lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
    return lines[-1].removeprefix("armlet: ")
