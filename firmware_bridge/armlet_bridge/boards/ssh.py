"""Links to boards over SSH.

The SSH library is asyncssh; it reads ``~/.ssh/config`` and uses the agent and key files as OpenSSH does. A host key
must be in ``known_hosts``; a new key is written there only if the person gives its fingerprint. The command that is
started on the board is a constant, and all data go through its pipes, so no text of a person or a bundle becomes part
of a shell's command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from armlet_runtime.errors import DeployError
from armlet_runtime.printable import printable

from .agent_client import AgentClient, LinkError
from .target import Target

PREFIX = ".local/share/armlet"
"""Armlet's folder on a board, relative to the home of the user that logs in."""

COMMAND = f"{PREFIX}/venv/bin/python -m armlet_runtime.install.agent {PREFIX}"

CONNECT_S = 20.0
KEEPALIVE_S = 5.0


@contextlib.asynccontextmanager
async def connect(target: Target, host_key: str | None = None) -> AsyncIterator[AgentClient]:
    """Log in and start the board's agent.

    Args:
        target: The board.
        host_key: Fingerprint (``SHA256:...``) of a host key that may be written to ``known_hosts``.

    Raises:
        LinkError: The board cannot be reached, its host key is unknown, or it accepts none of the person's keys.
        DeployError: The board has no agent of this version: it must be set up.
    """
    import asyncssh

    async with login(target, host_key) as connection:
        process = await connection.create_process(COMMAND, encoding=None)
        try:
            yield AgentClient(process.stdout, process.stdin)
        except LinkError as error:
            # A shell that does not find the agent ends at once, with status 127 or a message.
            with contextlib.suppress(TimeoutError, asyncssh.Error):
                ended = await asyncio.wait_for(process.wait(), 1.0)
                complaints = bytes(ended.stderr or b"").decode(errors="replace").strip().splitlines()
                if ended.exit_status in (126, 127):
                    raise DeployError(f"{target} has no armlet yet: 'armlet board setup {target}'") from error
                if any("No module named" in line for line in complaints):
                    raise DeployError(
                        f"{target} was set up by another version of armlet: run 'armlet board setup {target}' again"
                    ) from error
                if complaints:
                    raise LinkError(f"the agent on {target} ended: {printable(complaints[-1])}") from error
            raise
        finally:
            process.close()


@contextlib.asynccontextmanager
async def login(target: Target, host_key: str | None = None) -> AsyncIterator[Any]:
    """An SSH connection (``asyncssh.SSHClientConnection``) to a board.

    Raises:
        LinkError: As :func:`connect`.
    """
    import asyncssh

    options: dict[str, Any] = {
        "keepalive_interval": KEEPALIVE_S,
        "connect_timeout": CONNECT_S,
        "login_timeout": CONNECT_S,
    }
    if target.user:
        options["username"] = target.user
    if target.port:
        options["port"] = target.port
    confirmed = await _confirmed_key(target, host_key) if host_key else None
    hosts = _KnownHosts(await _known_hosts_files(target, options), confirmed)
    try:
        connection = await asyncssh.connect(target.host, known_hosts=hosts.match, **options)
    except asyncssh.HostKeyNotVerifiable:
        raise await _unknown_host(target, hosts) from None
    except asyncssh.PermissionDenied as error:
        raise _permission_denied(target, error.reason) from None
    except (OSError, asyncssh.Error, TimeoutError) as error:
        raise LinkError(f"cannot reach {target}: {str(error) or type(error).__name__}") from None
    hosts.remember()
    async with connection:
        try:
            yield connection
        except (asyncssh.Error, ConnectionError) as error:
            raise LinkError(f"the link to {target} was lost: {str(error) or type(error).__name__}") from None


class _KnownHosts:
    """The person's ``known_hosts``, and a key that the person has confirmed by its fingerprint.

    Attributes:
        recorded: Keys that the files have for the host.
        entry: How known_hosts names the host, once asyncssh has looked it up.
    """

    def __init__(self, files: Sequence[Path], confirmed: Any) -> None:
        self.recorded: list[Any] = []
        self.entry = ""
        self._files, self._confirmed = files, confirmed

    def match(self, host: str, address: str, port: int | None) -> tuple[Sequence[Any], ...]:
        """The keys to trust for a host, named as ``~/.ssh/config`` has it; asyncssh calls this."""
        import asyncssh

        self.entry = host if port in (None, 22) else f"[{host}]:{port}"
        existing = [str(path) for path in self._files if path.exists()]
        matches = asyncssh.match_known_hosts(existing or b"", host, address, port)
        self.recorded.extend(key for key in matches[0] if key not in self.recorded)
        # A recorded key is not overruled: a person who names another fingerprint has to remove the old key first.
        return ([self._confirmed] if self._confirmed and not self.recorded else matches[0], *matches[1:])

    def remember(self) -> None:
        """Write the confirmed key into the first file, unless a key is recorded."""
        if not self._confirmed or self.recorded:
            return
        if not self._files:
            raise LinkError("your ~/.ssh/config says 'UserKnownHostsFile none', so the host key cannot be remembered")
        path = self._files[0]
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a last line without an end would be joined to the new line
                    file.write(b"\n")
            file.write(f"{self.entry} {self._confirmed.export_public_key('openssh').decode().strip()}\n".encode())


async def _unknown_host(target: Target, hosts: _KnownHosts) -> LinkError:
    """The error for a host key that is not the recorded one, or that is not recorded."""
    key = await _host_key(target)
    name = key.get_fingerprint() if key else "unknown"
    if hosts.recorded:
        return LinkError(
            f"the host key of {target} has CHANGED: the host shows {name}, and your known_hosts has "
            f"{', '.join(key.get_fingerprint() for key in hosts.recorded)}; unless the board was set up anew this may "
            f"be another machine in its place. If it was: ssh-keygen -R '{hosts.entry}'"
        )
    return LinkError(
        f"the host key of {target} is not in your known_hosts; the host shows {name}: compare that on the "
        f"board (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then repeat this with --host-key {name}"
    )


def _permission_denied(target: Target, reason: str) -> LinkError:
    """The error for a board that accepts none of the person's keys."""
    locked = _encrypted_keys()
    advice = (
        f"{', '.join(map(str, locked))} {'has' if len(locked) == 1 else 'have'} a passphrase: ssh-add it first, or"
        if locked
        else "add"
    )
    return LinkError(
        f"{target} accepts none of the keys at hand ({reason}); {advice} your public key to its "
        f"~/.ssh/authorized_keys, for example with ssh-copy-id"
    )


async def _host_key(target: Target) -> Any:
    """The key that a board shows (``asyncssh.SSHKey``), None if it shows none."""
    import asyncssh

    return await asyncssh.get_server_host_key(target.host, target.port or ())


async def _confirmed_key(target: Target, fingerprint: str) -> Any:
    """The key that a board shows, if it has the fingerprint that the person named."""
    import asyncssh

    try:
        key = await _host_key(target)
    except (OSError, asyncssh.Error) as error:
        raise LinkError(f"cannot reach {target}: {str(error) or type(error).__name__}") from None
    if key is None or key.get_fingerprint() != fingerprint:
        named = key.get_fingerprint() if key else "none"
        raise LinkError(f"{target} shows the host key {named}, not {fingerprint}; nothing was written to known_hosts")
    return key


async def _known_hosts_files(target: Target, options: dict[str, Any]) -> list[Path]:
    """Where host keys are looked up: what ``~/.ssh/config`` names, or ``~/.ssh/known_hosts``.

    asyncssh takes any key for ``UserKnownHostsFile none``; here that is a file without any.

    Raises:
        LinkError: ``~/.ssh/config`` or a key that it names cannot be used.
    """
    import asyncssh

    config = Path.home() / ".ssh" / "config"
    try:
        configured = await asyncssh.SSHClientConnectionOptions.construct(
            None, host=target.host, config=[str(config)] if config.exists() else [], **options
        )
    except (ValueError, OSError) as error:  # asyncssh's errors for keys and configurations are ValueErrors
        raise LinkError(f"cannot use {config}, or a key that it names: {error}") from None
    if configured.known_hosts is None:
        return []
    files = [Path(name).expanduser() for name in configured.known_hosts]
    return files or [Path.home() / ".ssh" / "known_hosts"]


def _encrypted_keys() -> list[Path]:
    """The person's default keys that need a passphrase."""
    import asyncssh

    encrypted = []
    for name in ("id_ed25519", "id_ecdsa", "id_rsa"):
        path = Path.home() / ".ssh" / name
        try:
            asyncssh.read_private_key(path)
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            if "assphrase" in str(error):
                encrypted.append(path)
        except OSError:
            continue
    return encrypted
