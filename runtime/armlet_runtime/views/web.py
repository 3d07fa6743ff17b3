"""A page that shows a live run or a replay in a browser, served by this process and without content from elsewhere.

The page is a single file without references. Its content comes over a WebSocket, a few times a second: a slow page gets
fewer updates, and a run without a page spends nothing on it. ``websockets`` (BSD) is a wheel without dependencies that
speaks as much HTTP as is needed here; server-sent events would need a web framework, and another way for commands.
:mod:`armlet_runtime.views.page_access` decides who may see it.
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
from typing import TYPE_CHECKING, Any

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

    from ..live import RunControls

log = logging.getLogger(__name__)

UPDATES_HZ = 5.0
"""Updates a second: enough for moving traces, and little work for a Raspberry Pi."""
MAX_PAGES = 8
MAX_COMMAND_BYTES = 1024
"""A command of a page is a few words."""

# Part of the signals that is sent after a pause, such as that of a page that was asleep.
_CATCH_UP_NS = 2_000_000_000


class _Command(msgspec.Struct, forbid_unknown_fields=True):
    do: str
    name: str = ""
    seconds: float = 0.0


class Page(Output):
    """The server's side of all pages; see :func:`serve_page`.

    Attributes:
        url: URL of the page, with its token if it needs a token.
        now_ns: Time of the last :meth:`tick`, on the clock of the arrivals.
    """

    def __init__(
        self, monitor: Monitor, modalities: Sequence[Modality], controls: RunControls | None, access: Access
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
        """Note the time."""
        self._first_ns = self._first_ns or now_ns
        self.now_ns = now_ns

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """The response to a request; None to go on with a WebSocket."""
        refusal = self._access.refusal(connection, request)
        if refusal is not None:
            log.debug("%s refused: %s", connection.remote_address, refusal)
            return _respond(connection, HTTPStatus.FORBIDDEN, refusal)
        path = request.path.partition("?")[0]
        if path == "/live":
            return None
        if path == "/":
            return self._page(connection, request.headers["Host"].lower())
        return _respond(connection, HTTPStatus.NOT_FOUND, "the only page here is /")

    def _page(self, connection: ServerConnection, host: str) -> Response:
        nonce = secrets.token_urlsafe(16)
        html = self._html.replace("@NONCE@", nonce).replace("@TOKEN@", "needed" if self._access.token else "")
        response = connection.respond(HTTPStatus.OK, html)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/html; charset=utf-8"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        # Whatever a wearable's name holds, the page runs its own script only, and loads nothing from elsewhere.
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            f"connect-src 'self' ws://{host} wss://{host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return response

    async def talk(self, connection: ServerConnection) -> None:
        """Serve a page, from its first message to its end."""
        from websockets.exceptions import ConnectionClosed

        try:
            if not await self._access.knows_token(connection):
                log.debug("%s refused: no valid token", connection.remote_address)
                await connection.close(1008, "this is not the token that armlet printed")
                return
            if self._pages >= MAX_PAGES:
                log.info("%s refused: %d pages are open already", connection.remote_address, self._pages)
                await connection.close(1013, f"{MAX_PAGES} pages show this run already: close a page")
                return
        except ConnectionClosed:
            return
        self._pages += 1
        log.info("%s opened the page; %d open", connection.remote_address, self._pages)
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
            log.info("%s closed the page; %d open", connection.remote_address, self._pages)

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
        # Modality to the time of the newest sample that was sent; samples arrive later than they are taken.
        sent_ns: dict[str, int] = {}
        while True:
            if certified is not self._monitor.certified:  # at the start, and with another bundle
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
                update = {
                    "now_s": (now_ns - self._first_ns) / 1e9,
                    "state": self._monitor.state(now_ns),
                    "points": points,
                    "signals": signals,
                    "recording": self._controls.recording if self._controls else "",
                }
                shown_ns = now_ns
                # This waits for a slow page, so that updates are left out and do not pile up.
                await connection.send(msgspec.json.encode(update).decode())
            await asyncio.sleep(1 / UPDATES_HZ)

    async def _answer_to(self, message: str | bytes) -> dict[str, str]:
        """Carry out a command; the reply for the page."""
        try:
            command = msgspec.json.decode(message, type=_Command)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return {"error": "this is not a valid command"}
        controls = self._controls
        if controls is None:
            return {"error": "a replay takes no commands"}
        try:
            if command.do == "record":
                return {"notice": controls.record()}
            if command.do == "stop":
                return {"notice": controls.stop()}
            if command.do == "enrol":
                return {"notice": await controls.enrol(command.name, command.seconds)}
        except ArmletError as error:
            log.info("the command '%s' failed: %s", command.do, error)
            return {"error": str(error)}
        return {"error": f"'{command.do[:20]}' is not a command of this page"}


def _respond(connection: ServerConnection, status: HTTPStatus, sentence: str) -> Response:
    return connection.respond(status, f"armlet: {sentence}\n")


@asynccontextmanager
async def serve_page(
    address: Address, monitor: Monitor, modalities: Sequence[Modality], controls: RunControls | None = None
) -> AsyncIterator[Page]:
    """Serve the page inside the block.

    ``controls``: carries out commands of the page; None for a replay.

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
    # Messages about malformed requests of strangers would flood a log.
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
