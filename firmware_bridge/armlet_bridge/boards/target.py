"""Boards over SSH: what a workstation says to a board's agent (:mod:`armlet_runtime.install.agent`).

The SSH library is asyncssh; it reads ``~/.ssh/config`` and uses the agent and key files as OpenSSH does. A host key
must stand in ``known_hosts``; a new one is written there only for a person who names its fingerprint. What is started
on the board is one constant command, and everything else goes through its pipes, so nothing that a person or a bundle
says is ever part of a shell's line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from armlet_runtime.bundle import Front, Trust, open_bundle, read_front
from armlet_runtime.errors import DeployError, UsageError
from armlet_runtime.install import (
    LENGTHS,
    BoardDescription,
    PlaceState,
    Update,
    UpdateResult,
    UpdateState,
    decode_message,
    frame_sizes,
    pack_frame,
)
from armlet_runtime.printable import printable_texts

PREFIX = ".local/share/armlet"
"""Where armlet lies on a board, from the home folder of the person that logs in."""

COMMAND = f"{PREFIX}/venv/bin/python -m armlet_runtime.install.agent {PREFIX}"
FLEET = "fleet:"
"""How an inventory (:mod:`armlet_bridge.boards.fleet`) is written where a target is asked for: ``fleet:FILE.toml``."""

CHUNK = 1 << 16
"""Bytes of a part sent at a time, and how fine progress is shown."""

UNDER_WAY = 8
"""Chunks sent without waiting for an answer: what is sent again at most when a link breaks. With one at a time, a link
that takes 300 ms would carry 1 MB in 5 s, however fast it is."""

CONNECT_S, ANSWER_S = 20.0, 60.0
# Waiting between attempts after a link was lost; when all have failed one after the other, the deploy is given up.
RETRIES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
KEEPALIVE_S = 5.0


class BoardError(DeployError):
    """A board refused what was asked of it, or could not do it.

    Attributes:
        result: As LwM2M numbers it.
    """

    def __init__(self, message: str, result: UpdateResult) -> None:
        """Keep the result beside the sentence."""
        super().__init__(message)
        self.result = result


class LinkError(DeployError):
    """A board cannot be reached, or was lost."""


class Reader(Protocol):
    """What frames are read from."""

    async def readexactly(self, n: int) -> bytes:
        """That many bytes, or asyncio.IncompleteReadError."""
        ...


class Writer(Protocol):
    """What frames are written to."""

    def write(self, data: bytes) -> None:
        """Send bytes."""
        ...

    async def drain(self) -> None:
        """Wait until there is room for more."""
        ...


class Target(msgspec.Struct, frozen=True):
    """``ssh://[user@]host[:port]``."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        """As a person writes it."""
        return "ssh://" + (f"{self.user}@" if self.user else "") + self.host + (f":{self.port}" if self.port else "")


def parse_target(text: str) -> Target:
    """Read a target.

    Raises:
        UsageError: It is none.
    """
    name = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    match = re.fullmatch(rf"ssh://(?:({name})@)?({name}|\[[0-9A-Fa-f:.]+\])(?::([0-9]{{1,5}}))?/?", text)
    if match is None or (match[3] and not 0 < int(match[3]) < 65536):
        raise UsageError(f"'{text}' is no board: write ssh://user@host, or ssh://user@host:port")
    return Target(match[2].strip("[]"), match[1], int(match[3]) if match[3] else None)


class AgentClient:
    """A board's agent at the other end of a link."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        """Speak over these."""
        self._reader, self._writer = reader, writer

    async def _send(self, message: dict[str, Any], data: bytes) -> None:
        self._writer.write(pack_frame(message, data))
        await self._writer.drain()

    async def _receive(self) -> dict[str, Any]:
        try:
            text, data = frame_sizes(await asyncio.wait_for(self._reader.readexactly(LENGTHS.size), ANSWER_S))
            frame = await asyncio.wait_for(self._reader.readexactly(text + data), ANSWER_S)
        except asyncio.IncompleteReadError:
            raise LinkError("the link to the board ended") from None
        except TimeoutError:
            raise LinkError(f"the board has not answered for {ANSWER_S:.0f} s") from None
        # A terminal obeys escapes, and a board may be anybody's.
        message: dict[str, Any] = printable_texts(decode_message(frame))
        if "error" in message:
            raise BoardError(str(message["error"]), UpdateResult(message["result"]))
        return message

    async def hello(self) -> dict[str, Any]:
        """What the board is and has (:meth:`armlet_runtime.install.agent.Agent.hello`)."""
        await self._send({"op": "hello"}, b"")
        return await self._receive()

    async def logs(self, lines: int) -> dict[str, list[str]]:
        """The last lines of the last update's process (``update``) and of the unit's journal (``service``)."""
        await self._send({"op": "logs", "lines": lines}, b"")
        logs: dict[str, list[str]] = (await self._receive())["logs"]
        return logs

    async def trust(self, keys: Sequence[bytes]) -> list[str]:
        """Have a board that trusts nobody yet trust these raw keys; names of all that it trusts then."""
        await self._send({"op": "trust"}, b"".join(keys))
        names: list[str] = (await self._receive())["trusted"]
        return names

    async def describe(self, description: BoardDescription) -> None:
        """Tell a board what it is."""
        await self._send({"op": "describe"}, msgspec.json.encode(description))
        await self._receive()

    async def roll_back(self, permission: bytes | None) -> PlaceState:
        """Have the board use the bundle before its present one again; which that is."""
        await self._send({"op": "roll_back"}, permission or b"")
        return msgspec.convert((await self._receive())["place"], PlaceState)

    async def offer(self, front: Front, permission: bytes | None) -> list[dict[str, Any]]:
        """Offer a bundle; the parts that the board lacks."""
        first = permission or b""
        await self._send({"op": "offer", "permission": len(first)}, first + front.data)
        wanted: list[dict[str, Any]] = (await self._receive())["wanted"]
        return wanted

    async def put(self, sha256: str, offset: int, data: bytes) -> None:
        """Send bytes of a part; :meth:`taken` waits for the board's answer, several may be under way."""
        await self._send({"op": "put", "sha256": sha256, "offset": offset}, data)

    async def taken(self) -> None:
        """The board has taken in what the oldest unanswered :meth:`put` sent."""
        await self._receive()

    async def install(self, digest: str, permission: bytes | None) -> AsyncIterator[Update]:
        """Install what was offered; the states until it has ended."""
        await self._send({"op": "install", "digest": digest}, permission or b"")
        while True:
            update = msgspec.convert((await self._receive())["update"], Update)
            yield update
            if update.state is UpdateState.IDLE:
                return


Connect = Callable[[], contextlib.AbstractAsyncContextManager[AgentClient]]


@contextlib.asynccontextmanager
async def connect(target: Target, host_key: str | None = None) -> AsyncIterator[AgentClient]:
    """Log in and start the board's agent.

    Args:
        target: The board.
        host_key: Fingerprint (``SHA256:...``) of a host key that may be written to ``known_hosts``.

    Raises:
        LinkError: It cannot be reached, its host key is not known, or it lets nobody of ours in.
        DeployError: It has no agent: it was not set up.
    """
    import asyncssh

    async with login(target, host_key) as connection:
        process = await connection.create_process(COMMAND, encoding=None)
        try:
            yield AgentClient(process.stdout, process.stdin)
        except LinkError as error:
            # A shell that does not find the agent ends at once, with 127 or a word of its own.
            with contextlib.suppress(TimeoutError, asyncssh.Error):
                ended = await asyncio.wait_for(process.wait(), 1.0)
                said = bytes(ended.stderr or b"").decode(errors="replace").strip().splitlines()
                if ended.exit_status in (126, 127):
                    raise DeployError(f"{target} has no armlet yet: 'armlet board setup {target}'") from error
                if any("No module named" in line for line in said):
                    raise DeployError(
                        f"{target} was set up by another version of armlet: run 'armlet board setup {target}' again"
                    ) from error
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
    believed = await _believed(target, host_key) if host_key else None
    files = await _known_hosts_files(target, options)
    looked_up: list[tuple[str, int | None]] = []
    recorded: list[Any] = []

    def known_hosts(host: str, addr: str, port: int | None) -> tuple[Sequence[Any], ...]:
        looked_up.append((host, port))  # after what ~/.ssh/config makes of the name given
        there = [str(path) for path in files if path.exists()]
        found = asyncssh.match_known_hosts(there or b"", host, addr, port)
        recorded.extend(key for key in found[0] if key not in recorded)
        # What is recorded holds: a person who names another fingerprint has to take the old key out first.
        return ([believed] if believed and not recorded else found[0], *found[1:])

    try:
        connection = await asyncssh.connect(target.host, known_hosts=known_hosts, **options)
    except asyncssh.HostKeyNotVerifiable:
        found = await _host_key(target)
        name = found.get_fingerprint() if found else "unknown"
        if recorded:
            raise LinkError(
                f"the host key of {target} has CHANGED: it says that it is {name}, and your known_hosts has "
                f"{', '.join(key.get_fingerprint() for key in recorded)}; unless the board was set up anew this may be "
                f"another machine in its place. If it was: ssh-keygen -R '{_entry(*looked_up[0])}'"
            ) from None
        raise LinkError(
            f"the host key of {target} is not in your known_hosts; it says that it is {name}: compare that on the "
            f"board (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then repeat this with --host-key {name}"
        ) from None
    except asyncssh.PermissionDenied as error:
        locked = _encrypted_keys()
        help_ = (
            f"{', '.join(map(str, locked))} {'has' if len(locked) == 1 else 'have'} a passphrase: ssh-add it first, or"
            if locked
            else "add"
        )
        raise LinkError(
            f"{target} lets nobody in with the keys at hand ({error.reason}); {help_} your public key to its "
            f"~/.ssh/authorized_keys, for example with ssh-copy-id"
        ) from None
    except (OSError, asyncssh.Error, TimeoutError) as error:
        raise LinkError(f"cannot reach {target}: {str(error) or type(error).__name__}") from None
    if believed and not recorded:
        _remember(files, _entry(*looked_up[0]), believed)
    async with connection:
        try:
            yield connection
        except (asyncssh.Error, ConnectionError) as error:
            raise LinkError(f"the link to {target} was lost: {str(error) or type(error).__name__}") from None


async def _host_key(target: Target) -> Any:
    """The key that a board shows (``asyncssh.SSHKey``), None if it shows none."""
    import asyncssh

    return await asyncssh.get_server_host_key(target.host, target.port or ())


async def _believed(target: Target, fingerprint: str) -> Any:
    """The key that a board shows, if it is the one that the person named."""
    import asyncssh

    try:
        found = await _host_key(target)
    except (OSError, asyncssh.Error) as error:
        raise LinkError(f"cannot reach {target}: {str(error) or type(error).__name__}") from None
    if found is None or found.get_fingerprint() != fingerprint:
        named = found.get_fingerprint() if found else "none"
        raise LinkError(f"{target} shows the host key {named}, not {fingerprint}; nothing was written to known_hosts")
    return found


async def _known_hosts_files(target: Target, options: dict[str, Any]) -> list[Path]:
    """Where host keys are looked up: what ``~/.ssh/config`` names, or ``~/.ssh/known_hosts``.

    asyncssh takes any key for ``UserKnownHostsFile none``; here that is a file without any.

    Raises:
        LinkError: ``~/.ssh/config`` or a key that it names cannot be used.
    """
    import asyncssh

    config = Path.home() / ".ssh" / "config"
    try:
        said = await asyncssh.SSHClientConnectionOptions.construct(
            None, host=target.host, config=[str(config)] if config.exists() else [], **options
        )
    except (ValueError, OSError) as error:  # asyncssh's errors for keys and configurations are ValueErrors
        raise LinkError(f"cannot use {config}, or a key that it names: {error}") from None
    if said.known_hosts is None:
        return []
    files = [Path(name).expanduser() for name in said.known_hosts]
    return files or [Path.home() / ".ssh" / "known_hosts"]


def _encrypted_keys() -> list[Path]:
    """Those of a person's default keys that need a passphrase, which only an agent knows."""
    import asyncssh

    found = []
    for name in ("id_ed25519", "id_ecdsa", "id_rsa"):
        path = Path.home() / ".ssh" / name
        try:
            asyncssh.read_private_key(path)
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            if "assphrase" in str(error):
                found.append(path)
        except OSError:
            continue
    return found


def _entry(host: str, port: int | None) -> str:
    """How known_hosts names a host."""
    return host if port in (None, 22) else f"[{host}]:{port}"


def _remember(files: Sequence[Path], name: str, key: Any) -> None:
    if not files:
        raise LinkError("your ~/.ssh/config says 'UserKnownHostsFile none', so the host key cannot be remembered")
    path = files[0]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a last line without an end would be joined to the new one
                file.write(b"\n")
        file.write(f"{name} {key.export_public_key('openssh').decode().strip()}\n".encode())


class Deployed(msgspec.Struct, frozen=True):
    """What a deploy onto a board did.

    Attributes:
        board: The target.
        digest: Digest of the bundle.
        result: How it ended.
        message: One sentence of the board's.
        bytes_sent: Bytes of parts that went over the link, repeats included.
        bytes_bundle: Bytes of the bundle.
        links_lost: How often the link was lost on the way.
        seconds: From first to last.
    """

    board: str
    digest: str
    result: UpdateResult
    message: str
    bytes_sent: int
    bytes_bundle: int
    links_lost: int
    seconds: float


async def deploy(
    bundle: Path,
    name: str,
    connecting: Connect,
    trusted: Trust | None = None,
    permission: bytes | None = None,
    progress: Callable[[str, int, int], None] = lambda state, done, total: None,
    retries_s: tuple[float, ...] = RETRIES_S,
) -> Deployed:
    """Bring a bundle onto a board; a link that is lost is taken up again where it broke.

    Args:
        bundle: The bundle's file.
        name: What to call the board.
        connecting: Opens a link to its agent; called again after a loss.
        trusted: Verify the bundle against these first; the board goes by its own keys in any case.
        permission: The owner's signed permission to go back.
        progress: Called with the state, bytes done and bytes in all.
        retries_s: Waits between attempts; the count starts anew whenever bytes got through.

    Returns:
        What was done; ``result`` says whether the bundle is in use now.

    Raises:
        BundleError: The bundle is not whole or not signed; nothing was sent.
        LinkError: The board could not be reached in all attempts; it keeps what it has.
    """
    whole = open_bundle(bundle, trusted)  # all of it, before the first byte goes out
    front = read_front(bundle, trusted)
    names = {member.sha256: member.name for member in front.members}
    loop = asyncio.get_running_loop()
    began = loop.time()
    sent = lost = failed = 0

    async def once() -> Update:
        nonlocal sent, failed
        async with connecting() as board:
            wanted = await board.offer(front, permission)
            missing = sum(part["size"] - part["have"] for part in wanted)
            done = 0
            under_way: deque[int] = deque()

            async def taken() -> None:
                nonlocal failed, done
                await board.taken()
                failed = 0
                done += under_way.popleft()
                progress("downloading", done, missing)

            for part in wanted:
                content = whole.read(names[part["sha256"]])
                # An empty part is one empty chunk.
                for offset in range(part["have"], part["size"], CHUNK) if part["size"] else (0,):
                    if len(under_way) == UNDER_WAY:
                        await taken()
                    chunk = content[offset : offset + CHUNK]
                    await board.put(part["sha256"], offset, chunk)
                    sent += len(chunk)
                    under_way.append(len(chunk))
            while under_way:
                await taken()
            async for update in board.install(front.digest, permission):
                progress(update.state.name.lower(), done, missing)
            return update

    while True:
        try:
            update = await once()
            break
        except LinkError:
            lost += 1
            if failed == len(retries_s):
                raise
            await asyncio.sleep(retries_s[failed])
            failed += 1
        except BoardError as error:
            update = Update(UpdateState.IDLE, error.result, front.digest, str(error), 0.0)
            break
    return Deployed(name, front.digest, update.result, update.message, sent, front.size, lost, loop.time() - began)
