"""OpenSSH on this machine, as the tests of boards need it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

PATH = "/usr/sbin:/usr/bin:/sbin"


def missing() -> str | None:
    """Why OpenSSH's server cannot be started here; None if it can."""
    if any(shutil.which(tool, path=PATH) is None for tool in ("sshd", "ssh", "ssh-keygen")):
        return "OpenSSH's server is not installed: apt-get install openssh-server"
    return None if os.geteuid() == 0 else "OpenSSH's server wants its folder /run/sshd, which only root may make"


def fingerprint(public_key: Path) -> str:
    """Of a key, as ``ssh-keygen`` writes it."""
    told = subprocess.run(["ssh-keygen", "-lf", public_key], capture_output=True, text=True, check=True)
    return told.stdout.split()[1]


def write_config(home: Path, port: int, user: str, key: Path, *more: str) -> None:
    """Have ``ssh://board`` mean a port of this machine for whoever has that home."""
    folder = home / ".ssh"
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    lines = (
        "HostName 127.0.0.1", f"Port {port}", f"User {user}", f"IdentityFile {key}",
        f"UserKnownHostsFile {folder / 'known_hosts'}", *more,
    )  # fmt: skip
    (folder / "config").write_text("Host board\n" + "".join(f"  {line}\n" for line in lines))


class Sshd:
    """OpenSSH's server, whose every login works in a folder that stands for the board's home.

    On loopback, or at ``address`` in the network namespace that the command ``inside`` enters.
    """

    process: subprocess.Popen[bytes] | None = None

    def __init__(self, folder: Path, address: str = "127.0.0.1", inside: Sequence[str] = ()) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.key = folder / "id_ed25519"
        host_key = folder / "host_key"
        for path in (host_key, self.key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        self.fingerprint = fingerprint(host_key.with_suffix(".pub"))
        login = folder / "login.sh"
        login.write_text(f'#!/bin/sh\ncd {self.home} && HOME={self.home} exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
        login.chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        config = folder / "sshd_config"
        config.write_text(
            f"ListenAddress {address}:{self.port}\nHostKey {host_key}\nPidFile none\nStrictModes no\n"
            f"AuthorizedKeysFile {self.key}.pub\nForceCommand {login}\nUsePAM no\nPasswordAuthentication no\n"
            f"Subsystem sftp /usr/lib/openssh/sftp-server\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own, where it has never been started
        self._command = [*inside, str(shutil.which("sshd", path=PATH)), "-D", "-e", "-f", str(config)]

    def start(self) -> None:
        """Listen."""
        self.process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """Listen no longer; logins that there are go on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
