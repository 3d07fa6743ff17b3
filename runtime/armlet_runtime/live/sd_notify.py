"""Messages to systemd: that a process is ready, its status, and that it is alive (sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Notifier:
    """Sends messages to the service manager; without a manager it does nothing."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """``environment``: with ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC``; None for that of this process."""
        variables = os.environ if environment is None else environment
        address = variables.get("NOTIFY_SOCKET", "")
        # A name that begins with @ is of Linux' abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        limit = variables.get("WATCHDOG_USEC", "")
        ours = variables.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # The watchdog is fed twice in its time, as sd_watchdog_enabled(3) advises.
        self._every_ns = int(limit) * 500 if limit.isdecimal() and ours else None
        self._fed_ns = 0
        self._status = ""

    @property
    def is_managed(self) -> bool:
        """Whether a service manager has started this process and listens."""
        return self._socket is not None

    def ready(self) -> None:
        """Report that the loop runs."""
        self._send("READY=1")

    def alive(self) -> None:
        """Feed the watchdog, if the manager has one and it is time."""
        now_ns = time.monotonic_ns()
        if self._every_ns is not None and now_ns - self._fed_ns >= self._every_ns:
            self._fed_ns = now_ns
            self._send("WATCHDOG=1")

    def status(self, sentence: str) -> None:
        """Report the status as a sentence; a repetition is not sent."""
        line = " ".join(sentence.split())
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            # A manager that no longer listens is no reason to stop deciding; its watchdog acts.
            log.info("systemd does not take '%s': %s", message, error)

    def close(self) -> None:
        """Report that the process is stopping."""
        if self._socket is not None:
            self._send("STOPPING=1")
            self._socket.close()
            self._socket = None
