"""A page that shows a live run or a replay in a browser, served by this process; nothing on it comes from elsewhere.

The page is one file without any reference to another. What it shows comes over a WebSocket, a few times a second, to
each page at its own pace: one that is slow gets fewer pictures, and a run without a page spends nothing on it.
``websockets`` (BSD) is one wheel without dependencies, and speaks HTTP as far as is needed here; with server-sent
events there would be a web framework to install, and commands would need another way.

On a loopback address whoever uses this machine may look. On any other the page asks for a token, which is kept in the
home (``web.token``) so that an address stays good. In both cases a request must name this server as its host and, to
connect, as its origin: a page of somebody else's, also one whose name was made to point here, gets nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from ..bundle import CertificateRow, home
from ..errors import ArmletError, MissingExtraError, UsageError
from ..files import write_atomic
from ..live import Output
from ..modalities import Modality
from .monitor import Monitor
from .state import Point

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

# Pictures a second: traces move, and a Raspberry Pi has better things to do.
PICTURES_HZ = 5.0
MAX_PAGES = 8
# A command of a page is a few words.
MAX_COMMAND_BYTES = 1024
TOKEN_S = 10.0
TOKEN_FILE = "web.token"

# After a pause, such as a page that was asleep, so much of the signals is sent again.
_CATCH_UP_NS = 2_000_000_000


@dataclass(frozen=True)
class Address:
    """Where to listen. ``loopback``: only this machine can reach it."""

    host: str
    port: int
    loopback: bool


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT``, ``[IPV6]:PORT`` or a port alone, of 127.0.0.1 then; port 0 is a free one.

    Raises:
        UsageError: It is none.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if colon else "127.0.0.1"
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--web {text}: give HOST:PORT, such as 127.0.0.1:8765, and --web after the bundle")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return Address(host, int(port), loopback)


class Controls(Protocol):
    """What a page may ask for; each gives a sentence to show, and may raise an :class:`ArmletError`."""

    @property
    def recording(self) -> str:
        """Where the recording is written that goes on now; empty if there is none."""

    @property
    def can_enrol(self) -> bool:
        """Whether classes can be learned."""

    def record(self) -> str:
        """Begin a recording."""

    def stop(self) -> str:
        """End it."""

    async def enrol(self, name: str, seconds: float) -> str:
        """Learn a class of this name from the last so many seconds."""


class _Command(msgspec.Struct, forbid_unknown_fields=True):
    do: str
    name: str = ""
    seconds: float = 0.0


class Page(Output):
    """The server's side of all pages; see :func:`serve_page`.

    Attributes:
        url: Where a browser finds it, with the token if it needs one.
        now_ns: Time on the clock of the arrivals, as last told by :meth:`tick`.
    """

    def __init__(
        self,
        monitor: Monitor,
        modalities: Sequence[Modality],
        controls: Controls | None,
        token: str,
    ) -> None:
        """Use :func:`serve_page`."""
        self.url = ""
        self.now_ns = 0
        self._monitor, self._modalities = monitor, modalities
        self._controls, self._token = controls, token
        self._first_ns = 0
        self._pages = 0
        self._html = (Path(__file__).parent / "page.html").read_text()

    def tick(self, now_ns: int) -> None:
        """Called as often as the loop turns."""
        self._first_ns = self._first_ns or now_ns
        self.now_ns = now_ns

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """The answer to a request; None to go on and make a WebSocket of it."""
        host = request.headers.get("Host", "").lower()
        if host not in _own_names(connection):
            return _respond(
                connection, HTTPStatus.FORBIDDEN, f"this is not {host[:100]!r}: use the address that armlet printed"
            )
        path = request.path.partition("?")[0]
        if path == "/live":
            origin = request.headers.get("Origin", "").lower()
            if origin != f"http://{host}":
                return _respond(connection, HTTPStatus.FORBIDDEN, f"pages of {origin[:100]!r} may not look at this run")
            return None
        if path == "/":
            return self._page(connection, host)
        return _respond(connection, HTTPStatus.NOT_FOUND, "there is one page here, /")

    def _page(self, connection: ServerConnection, host: str) -> Response:
        nonce = secrets.token_urlsafe(16)
        html = self._html.replace("@NONCE@", nonce).replace("@TOKEN@", "needed" if self._token else "")
        response = connection.respond(HTTPStatus.OK, html)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/html; charset=utf-8"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        # Whatever names of wearables may hold, the page runs its own script only, and asks nobody else for anything.
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            f"connect-src 'self' ws://{host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return response

    async def talk(self, connection: ServerConnection) -> None:
        """One page, from its first message to its end."""
        from websockets.exceptions import ConnectionClosed

        if self._pages >= MAX_PAGES:
            await connection.close(1013, f"{MAX_PAGES} pages look at this run already: close one")
            return
        self._pages += 1
        try:
            if self._token and not await self._knows_token(connection):
                await connection.close(1008, "this is not the token that armlet printed")
                return
            sending = asyncio.ensure_future(self._show(connection))
            try:
                async for message in connection:
                    await connection.send(msgspec.json.encode(await self._do(message)).decode())
            finally:
                sending.cancel()
                with suppress(asyncio.CancelledError, ConnectionClosed):
                    await sending
        except ConnectionClosed:
            return
        finally:
            self._pages -= 1

    async def _knows_token(self, connection: ServerConnection) -> bool:
        try:
            said = await asyncio.wait_for(connection.recv(), TOKEN_S)
        except asyncio.TimeoutError:
            return False
        return isinstance(said, str) and hmac.compare_digest(said.encode(), self._token.encode())

    def _hello(self, points: Sequence[Point]) -> dict[str, Any]:
        return {
            "modalities": self._modalities,
            "certified": self._monitor.certified,
            "controls": self._controls is not None,
            "can_enrol": self._controls is not None and self._controls.can_enrol,
            "points": points,
        }

    async def _show(self, connection: ServerConnection) -> None:
        certified: Mapping[str, CertificateRow] | None = None
        index, shown_ns = -1, 0
        # Of each modality, the newest sample that was sent: samples arrive after the time that they are of.
        sent_ns: dict[str, int] = {}
        while True:
            if certified is not self._monitor.certified:  # at first, and when another bundle is in use
                certified = self._monitor.certified
                points = list(self._monitor.timeline)
                index = points[-1].index if points else -1
                sent_ns = {one.name: 0 for one in self._modalities}
                await connection.send(msgspec.json.encode({"hello": self._hello(points)}).decode())
            now_ns = self.now_ns
            if now_ns > shown_ns:
                signals = {}
                for one in self._modalities:
                    since_ns = max(sent_ns[one.name], now_ns - _CATCH_UP_NS)
                    signals[one.name] = before_s, _ = self._monitor.since(one, since_ns, now_ns)
                    if before_s:
                        sent_ns[one.name] = now_ns + round((before_s[-1] + 0.5 / one.rate_hz) * 1e9)
                points = [point for point in self._monitor.timeline if point.index > index]
                index = points[-1].index if points else index
                picture = {
                    "now_s": (now_ns - self._first_ns) / 1e9,
                    "state": self._monitor.state(now_ns),
                    "points": points,
                    "signals": signals,
                    "recording": self._controls.recording if self._controls else "",
                }
                shown_ns = now_ns
                # Waits while the page is slow, so that pictures are left out and none pile up.
                await connection.send(msgspec.json.encode(picture).decode())
            await asyncio.sleep(1 / PICTURES_HZ)

    async def _do(self, message: str | bytes) -> dict[str, str]:
        """Carry out a command; what to tell the page."""
        try:
            command = msgspec.json.decode(message, type=_Command)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return {"error": "that is no command"}
        controls = self._controls
        if controls is None:
            return {"error": "a replay has nothing to control"}
        try:
            if command.do == "record":
                return {"said": controls.record()}
            if command.do == "stop":
                return {"said": controls.stop()}
            if command.do == "enrol":
                return {"said": await controls.enrol(command.name, command.seconds)}
        except ArmletError as error:
            return {"error": str(error)}
        return {"error": f"there is no command '{command.do[:20]}' here"}


def _own_names(connection: ServerConnection) -> set[str]:
    """What a request may call this server: the address that it came in on, or this machine's names."""
    address = connection.local_address
    ip, port = str(address[0]).partition("%")[0], int(address[1])
    ip = ip.removeprefix("::ffff:") if "." in ip else ip
    names = {f"[{ip}]" if ":" in ip else ip}
    if ipaddress.ip_address(ip).is_loopback:
        names |= {"localhost"}
    else:
        name = socket.gethostname().lower()
        names |= {name, f"{name}.local"}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())


def _respond(connection: ServerConnection, status: HTTPStatus, sentence: str) -> Response:
    return connection.respond(status, f"armlet: {sentence}\n")


@asynccontextmanager
async def serve_page(
    address: Address,
    monitor: Monitor,
    modalities: Sequence[Modality],
    controls: Controls | None = None,
) -> AsyncIterator[Page]:
    """Serve the page inside the block.

    Args:
        address: Where.
        monitor: What is shown.
        modalities: Of the model.
        controls: What the page may ask for; None for a replay.

    Raises:
        MissingExtraError: ``websockets`` is not installed.
        UsageError: The address cannot be listened on, or the token's file cannot be used.
    """
    try:
        from websockets.asyncio.server import serve
    except ImportError as error:
        raise MissingExtraError(
            "--web needs the package 'websockets', which is not installed: pip install 'armlet[web]'"
        ) from error
    page = Page(monitor, modalities, controls, "" if address.loopback else _token())
    # Whatever strangers send, a run's terminal is not the place to tell of it.
    quiet = logging.Logger("armlet.web")
    quiet.disabled = True
    try:
        server = await serve(
            page.talk, address.host, address.port,
            process_request=page.answer, max_size=MAX_COMMAND_BYTES, compression=None, logger=quiet, server_header=None,
        )  # fmt: skip
    except (OSError, UnicodeError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else None
        raise UsageError(f"--web {address.host}:{address.port} cannot be listened on: {why or error}") from error
    try:
        port = next(iter(server.sockets)).getsockname()[1]
        page.url = _url(address, port, page)
        yield page
    finally:
        server.close(close_connections=True)
        await server.wait_closed()


def _url(address: Address, port: int, page: Page) -> str:
    host = address.host
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    host = f"[{host}]" if ":" in host else host
    # Behind the #, where it is sent to no server and kept in no log.
    return f"http://{host}:{port}/{f'#{page._token}' if page._token else ''}"


def _token() -> str:
    path = home() / TOKEN_FILE
    try:
        if path.is_file():
            token = path.read_text().strip()
            if len(token) < 16 or not token.isascii() or not token.isprintable():
                raise UsageError(f"{path} holds no token of 16 characters or more: delete it, and a new one is made")
            return token
        path.parent.mkdir(parents=True, exist_ok=True)
        token = secrets.token_urlsafe(24)
        write_atomic(path, token.encode() + b"\n", 0o600)
    except OSError as error:
        raise UsageError(f"{path} cannot be used: {error.strerror}") from error
    return token
