"""A page that shows a live run or a replay in a browser, served by this process; nothing on it comes from elsewhere.

The page is one file without any reference to another. What it shows comes over a WebSocket, a few times a second, to
each page at its own pace: one that is slow gets fewer pictures, and a run without a page spends nothing on it.
``websockets`` (BSD) is one wheel without dependencies, and speaks HTTP as far as is needed here; with server-sent
events there would be a web framework to install, and commands would need another way.
Who may see it: :mod:`armlet_runtime.views.page_access`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from ..bundle import CertificateRow
from ..errors import ArmletError, MissingExtraError, UsageError
from ..live import Output
from ..modalities import Modality
from .monitor import Monitor
from .page_access import Access, stored_token
from .page_address import Address
from .state import Point

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

# Pictures a second: traces move, and a Raspberry Pi has better things to do.
PICTURES_HZ = 5.0
MAX_PAGES = 8
# A command of a page is a few words.
MAX_COMMAND_BYTES = 1024

# After a pause, such as a page that was asleep, so much of the signals is sent again.
_CATCH_UP_NS = 2_000_000_000


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
        access: Access,
    ) -> None:
        """Use :func:`serve_page`."""
        self.url = ""
        self.now_ns = 0
        self._monitor, self._modalities = monitor, modalities
        self._controls, self._access = controls, access
        self._first_ns = 0
        self._pages = 0
        self._html = (Path(__file__).parent / "page.html").read_text()

    def tick(self, now_ns: int) -> None:
        """Called as often as the loop turns."""
        self._first_ns = self._first_ns or now_ns
        self.now_ns = now_ns

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """The answer to a request; None to go on and make a WebSocket of it."""
        refusal = self._access.refusal(connection, request)
        if refusal is not None:
            return _respond(connection, HTTPStatus.FORBIDDEN, refusal)
        path = request.path.partition("?")[0]
        if path == "/live":
            return None
        if path == "/":
            return self._page(connection, request.headers["Host"].lower())
        return _respond(connection, HTTPStatus.NOT_FOUND, "there is one page here, /")

    def _page(self, connection: ServerConnection, host: str) -> Response:
        nonce = secrets.token_urlsafe(16)
        html = self._html.replace("@NONCE@", nonce).replace("@TOKEN@", "needed" if self._access.token else "")
        response = connection.respond(HTTPStatus.OK, html)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/html; charset=utf-8"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        # Whatever names of wearables may hold, the page runs its own script only, and asks nobody else for anything.
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            f"connect-src 'self' ws://{host} wss://{host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return response

    async def talk(self, connection: ServerConnection) -> None:
        """One page, from its first message to its end."""
        from websockets.exceptions import ConnectionClosed

        try:
            if not await self._access.knows_token(connection):
                await connection.close(1008, "this is not the token that armlet printed")
                return
            if self._pages >= MAX_PAGES:
                await connection.close(1013, f"{MAX_PAGES} pages look at this run already: close one")
                return
        except ConnectionClosed:
            return
        self._pages += 1
        try:
            sending = asyncio.ensure_future(self._show(connection))
            try:
                async for message in connection:
                    await connection.send(msgspec.json.encode(await self._answer_to(message)).decode())
            finally:
                sending.cancel()
                with suppress(asyncio.CancelledError, ConnectionClosed):
                    await sending
        except ConnectionClosed:
            return
        finally:
            self._pages -= 1

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
                sent_ns = {modality.name: 0 for modality in self._modalities}
                await connection.send(msgspec.json.encode({"hello": self._hello(points)}).decode())
            now_ns = self.now_ns
            if now_ns > shown_ns:
                signals = {}
                for modality in self._modalities:
                    since_ns = max(sent_ns[modality.name], now_ns - _CATCH_UP_NS)
                    signals[modality.name] = before_s, _ = self._monitor.since(modality, since_ns, now_ns)
                    if before_s:
                        sent_ns[modality.name] = now_ns + round((before_s[-1] + 0.5 / modality.rate_hz) * 1e9)
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

    async def _answer_to(self, message: str | bytes) -> dict[str, str]:
        """Carry out a command; the answer for the page."""
        try:
            command = msgspec.json.decode(message, type=_Command)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return {"error": "this is not a valid command"}
        controls = self._controls
        if controls is None:
            return {"error": "a replay has nothing to control"}
        try:
            if command.do == "record":
                return {"notice": controls.record()}
            if command.do == "stop":
                return {"notice": controls.stop()}
            if command.do == "enrol":
                return {"notice": await controls.enrol(command.name, command.seconds)}
        except ArmletError as error:
            return {"error": str(error)}
        return {"error": f"there is no command '{command.do[:20]}' here"}


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
    page = Page(monitor, modalities, controls, Access("" if address.loopback else stored_token()))
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
        page.url = address.url(port, page._access.token)
        yield page
    finally:
        server.close(close_connections=True)
        await server.wait_closed()
