"""A board that is none: OpenSSH's server on this machine, whose logins work in a folder that is the board's home."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from armlet_bridge.boards import PREFIX

from .board import STARTED, start_armlet

PATH = "/usr/sbin:/usr/bin:/sbin"
START_S = 30.0


def missing() -> str | None:
    """Why this machine cannot be such a board; None if it can."""
    if shutil.which("sshd", path=PATH) is None or shutil.which("ssh") is None:
        return "OpenSSH's server is not installed: apt-get install openssh-server"
    return None if os.geteuid() == 0 else "OpenSSH's server wants its folder /run/sshd, which only root may make"


class Loopback:
    """Has the face of :class:`~tests.emulated.board.Machine`; a power cut is SIGKILL to all of its processes."""

    machine = "loopback"

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self._folder, self._sshd, self._started = folder, None, ""
        for name in ("host_key", "id_ed25519"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        login = folder / "login.sh"
        login.write_text(f'#!/bin/sh\ncd {self.home} && HOME={self.home} exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
        login.chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {folder / 'host_key'}\nPidFile none\nStrictModes no\n"
            f"AuthorizedKeysFile {folder / 'id_ed25519'}.pub\nForceCommand {login}\nUsePAM no\n"
            f"PasswordAuthentication no\nSubsystem sftp /usr/lib/openssh/sftp-server\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own, where it has never been started

    _sshd: subprocess.Popen[bytes] | None

    def switch_on(self) -> None:
        """Start sshd, and after it what a board starts."""
        command = [str(shutil.which("sshd", path=PATH)), "-D", "-e", "-f", str(self._folder / "sshd_config")]
        self._sshd = subprocess.Popen(command, stderr=subprocess.DEVNULL)
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
        if self._sshd is None:
            return
        self._sshd.kill()
        self._sshd.wait()
        self._sshd = None
        mine = f"HOME={self.home}\0".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mine in (entry / "environ").read_bytes() + b"\0":
                    os.kill(int(entry.name), signal.SIGKILL)

    def write_ssh_config(self, home: Path) -> None:
        """Have ``ssh://board`` mean this for whoever has that home."""
        folder = home / ".ssh"
        folder.mkdir(parents=True, mode=0o700)
        (folder / "config").write_text(
            f"Host board\n  HostName 127.0.0.1\n  Port {self.port}\n  User root\n"
            f"  IdentityFile {self._folder / 'id_ed25519'}\n  UserKnownHostsFile {folder / 'known_hosts'}\n"
        )

    @property
    def fingerprint(self) -> str:
        """Of its host key."""
        told = subprocess.run(
            ["ssh-keygen", "-lf", self._folder / "host_key.pub"], check=True, capture_output=True, text=True
        )
        return told.stdout.split()[1]
