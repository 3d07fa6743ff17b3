"""Access to the page of a run, by the name of the host, the origin and the token.

On a loopback address every user of this machine may look. The ``Host`` of a request must then be a name of this server,
or a foreign page whose name was made to point here (DNS rebinding) could read the run; the port is ignored, because a
tunnel (``ssh -L 9000:127.0.0.1:8765``) changes it. On any other address the page needs a token, which no foreign page
knows, so that every name is allowed: also that of a proxy that adds TLS, if it passes ``Host`` on.
In both cases a WebSocket must come from a page of the very host that it connects to.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import secrets
import socket
from typing import TYPE_CHECKING

from ..bundle import home
from ..errors import UsageError
from ..files import write_atomic

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request

MAX_STRANGERS = 16
"""Connections without a token at a time; of more, the oldest is closed. A browser with a token sends it at once."""

TOKEN_S = 10.0
"""Time in which a connection must send its token."""

TOKEN_FILE = "web.token"

_LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}

# A name or an address, with or without a port; nothing else, because it is copied into the page's security policy.
_HOST = re.compile(r"([a-z0-9_.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?", re.ASCII)


class Access:
    """Decides who may see a page."""

    def __init__(self, token: str) -> None:
        """``token``: the first message that a page must send; empty if no token is needed."""
        self.token = token
        self._strangers: list[ServerConnection] = []

    def refusal(self, connection: ServerConnection, request: Request) -> str | None:
        """The reason for which a request is refused, as a sentence; None if it is allowed."""
        host = request.headers.get("Host", "").lower()
        match = _HOST.fullmatch(host)
        if match is None or not (self.token or match[1] in own_names(connection)):
            return (
                f"this is not {host[:100]!r}: use the address that armlet printed. To look at it by another name, run "
                "it with an address that asks for a token, such as --web 0.0.0.0:8765"
            )
        origin = request.headers.get("Origin", "").lower()
        if request.path.partition("?")[0] == "/live" and origin not in (f"http://{host}", f"https://{host}"):
            return f"pages of {origin[:100]!r} may not look at this run; a proxy must pass the header Host on"
        return None

    async def knows_token(self, connection: ServerConnection) -> bool:
        """Whether the first message of a connection is the token; True if no token is needed.

        Raises:
            ConnectionClosed: The connection ended, or was closed in favour of newer connections.
        """
        if not self.token:
            return True
        self._strangers.append(connection)
        if len(self._strangers) > MAX_STRANGERS:
            self._strangers.pop(0).transport.abort()
        try:
            message = await asyncio.wait_for(connection.recv(), TOKEN_S)
        except asyncio.TimeoutError:
            return False
        finally:
            if connection in self._strangers:
                self._strangers.remove(connection)
        return isinstance(message, str) and hmac.compare_digest(message.encode(), self.token.encode())


def own_names(connection: ServerConnection) -> set[str]:
    """Names of this server in a request: the address that the request came in on, and this machine's names."""
    ip = str(connection.local_address[0]).partition("%")[0]
    ip = ip.removeprefix("::ffff:") if "." in ip else ip
    names = {f"[{ip}]" if ":" in ip else ip} | _LOOPBACK
    if not ipaddress.ip_address(ip).is_loopback:
        name = socket.gethostname().lower()
        names |= {name, f"{name}.local"}
    return names


def stored_token() -> str:
    """The token of this home, so that an address stays valid; generated at the first call.

    Raises:
        UsageError: The token's file cannot be used.
    """
    path = home() / TOKEN_FILE
    try:
        if path.is_file():
            token = path.read_text().strip()
            if len(token) < 16 or not token.isascii() or not token.isprintable():
                raise UsageError(
                    f"{path} holds no token of 16 characters or more: delete it, and a new token is generated"
                )
            return token
        path.parent.mkdir(parents=True, exist_ok=True)
        token = secrets.token_urlsafe(24)
        write_atomic(path, token.encode() + b"\n", 0o600)
    except OSError as error:
        raise UsageError(f"{path} cannot be used: {error.strerror}") from error
    return token
