"""What a process under systemd tells it: that it is ready, how it does, and that it is alive (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Tells the service manager, if there is one; else does nothing.

    Attributes:
        there: Whether somebody listens.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """``environment``: with ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC``; None for that of this process."""
        told = os.environ if environment is None else environment
        address = told.get("NOTIFY_SOCKET", "")
        # A name that begins with @ is of Linux' abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        limit = told.get("WATCHDOG_USEC", "")
        ours = told.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Fed twice in its time, as sd_watchdog_enabled(3) advises.
        self._every_ns = int(limit) * 500 if limit.isdecimal() and ours else None
        self._fed_ns = 0
        self._said = ""

    @property
    def there(self) -> bool:
        """Whether somebody listens."""
        return self._socket is not None

    def ready(self) -> None:
        """The loop runs."""
        self._send("READY=1")

    def alive(self) -> None:
        """No decision is overdue: feed the watchdog, if there is one and it is time."""
        now_ns = time.monotonic_ns()
        if self._every_ns is not None and now_ns - self._fed_ns >= self._every_ns:
            self._fed_ns = now_ns
            self._send("WATCHDOG=1")

    def status(self, sentence: str) -> None:
        """What it is doing, in one sentence; said again only if it is another."""
        line = " ".join(sentence.split())
        if line != self._said:
            self._said = line
            self._send(f"STATUS={line}")

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            # A manager that does not listen any more is no reason to stop deciding; its watchdog will tell.
            return

    def close(self) -> None:
        """The process is stopping."""
        if self._socket is not None:
            self._send("STOPPING=1")
            self._socket.close()
            self._socket = None
