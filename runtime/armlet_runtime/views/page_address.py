"""The address of the page of a run."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True)
class Address:
    """An address to listen on. ``loopback``: only this machine can reach it."""

    host: str
    port: int
    loopback: bool

    def url(self, port: int, token: str) -> str:
        """The URL for a browser; ``port``: the port that the server listens on."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        host = f"[{host}]" if ":" in host else host
        # Browsers send the part behind the # to no server, and no server logs it.
        return f"http://{host}:{port}/{f'#{token}' if token else ''}"


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT``, ``[IPV6]:PORT``, or a port of 127.0.0.1; port 0 stands for a free port.

    Raises:
        UsageError: ``text`` is not a valid address.
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
