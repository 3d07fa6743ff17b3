"""Inside a systemd of its own (see test_service.py): install, run, hang, restart, remove. Exits 0 if all went well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from armlet_runtime.cli import main
from armlet_runtime.install.systemd_unit import UNIT, journal, properties, state


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: {properties()} {journal(20)}"
        time.sleep(0.1)


def decided() -> int:
    return sum(len(path.read_bytes().splitlines()) for path in Path("decisions").glob("decisions-*.jsonl"))


def main_process() -> int:
    shown = subprocess.run(
        ["systemctl", "--user", "show", "--property=MainPID", "--value", UNIT], capture_output=True, text=True
    )
    return int(shown.stdout)


def run(bundle: str, key: str, bluetooth: str) -> None:
    options = ["--bluetooth", bluetooth, "--wearables", "Armlet-Acc,Armlet-Gyro"]
    options += ["--decisions", "decisions/", "--record", "recordings/"]
    assert main(["service", "install", bundle, "--key", key, *options]) == 0
    assert state() == "active"  # it said READY=1: systemd has waited for it
    wait_for("decisions", lambda: decided() > 2)
    wait_for("what it does", lambda: properties()["StatusText"] == "decides on acc+gyro")
    assert main(["service", "status", "--json", "status.json"]) == 0
    assert json.loads(Path("status.json").read_text())["status"] == "decides on acc+gyro"
    # Shut in: no new privileges, and system calls are filtered.
    shut = Path(f"/proc/{main_process()}/status").read_text()
    assert "NoNewPrivs:\t1\n" in shut and "Seccomp:\t2\n" in shut, shut
    # Fed by a run that decides: after longer than the watchdog's 3 s it is the same process.
    first = main_process()
    time.sleep(4.0)
    assert main_process() == first and properties()["NRestarts"] == "0"
    # One that hangs is killed, and started again.
    os.kill(first, signal.SIGSTOP)
    wait_for("the watchdog", lambda: int(properties()["NRestarts"]) >= 1)
    assert main_process() != first
    # The new process has taken nothing from what the one before wrote, and writes beside it.
    before = decided()
    wait_for("decisions of the second process", lambda: decided() > before)
    assert len(list(Path("decisions").iterdir())) == len(list(Path("recordings").iterdir())) == 2
    assert b'"embedding":[]' in next(Path("decisions").iterdir()).read_bytes()
    assert main(["service", "remove"]) == 0
    assert state() == "none" and main(["service", "status"]) == 1
    # A run that cannot start is told at once, and leaves no unit behind.
    assert main(["service", "install", bundle, "--key", key, *options[2:4], "--bluetooth", "nonsense"]) == 2
    assert state() == "none"


if __name__ == "__main__":
    run(*sys.argv[1:4])
