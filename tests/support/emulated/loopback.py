"""A board that is none: OpenSSH's server on this machine, whose logins work in a folder that is the board's home."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from armlet_bridge.boards.ssh import PREFIX

from .. import sshd
from .board import STARTED, start_armlet

START_S = 30.0


class Loopback:
    """Has the face of :class:`~tests.support.emulated.board.Machine`; a power cut kills all of its processes."""

    machine = "loopback"

    def __init__(self, folder: Path) -> None:
        self._folder, self._sshd, self._started = folder, sshd.Sshd(folder), ""
        self.home, self.port, self.fingerprint = self._sshd.home, self._sshd.port, self._sshd.fingerprint

    def switch_on(self) -> None:
        """Start sshd, and after it what a board starts."""
        self._sshd.start()
        end = time.monotonic() + START_S
        while True:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                break
            assert time.monotonic() < end, "sshd did not start"
            time.sleep(0.05)
        prefix = self.home / PREFIX
        if (prefix / "slot" / "state.json").exists():
            verified = self._folder / "started.json"
            ran = subprocess.run(
                [prefix / "venv/bin/python", "-c", start_armlet(prefix, verified)],
                capture_output=True, text=True, env={"HOME": str(self.home), "ARMLET_HOME": str(prefix / "home")},
            )  # fmt: skip
            self._started = f"{STARTED} {ran.returncode} {ran.stderr.strip()} {' '.join(verified.read_text().split())}"

    def wait_for(self, word: str) -> str:
        """The line that the last start ended with."""
        assert self._started.startswith(word)
        return self._started

    def last_words(self) -> str:
        """What it said before something failed."""
        return self._started

    def pull_the_plug(self) -> None:
        """Kill sshd and everything that was started in the board's home."""
        if self._sshd.process is None:
            return
        self._sshd.stop()
        mine = f"HOME={self.home}\0".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mine in (entry / "environ").read_bytes() + b"\0":
                    os.kill(int(entry.name), signal.SIGKILL)

    def write_ssh_config(self, home: Path) -> None:
        """Have ``ssh://board`` mean this for whoever has that home."""
        sshd.write_config(home, self.port, "root", self._sshd.key)
