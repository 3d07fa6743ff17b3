"""A clock that goes some times as fast as the machine's, for a live run of several processes.

Inside :func:`run`, ``time.monotonic()`` and the event loop's clock are the machine's times a factor; processes with the
same factor have the same clock. What a program computes takes so many times longer by it, so the factor must leave idle
time. Waiting for one process alone is better skipped (``skipped_idle.py``).
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / self._speed)


def run(main: Coroutine[Any, Any, T], speed: float) -> T:
    """Run a coroutine as :func:`asyncio.run` does, ``speed`` times as fast."""
    kept = monotonic, monotonic_ns = time.monotonic, time.monotonic_ns
    time.monotonic, time.monotonic_ns = lambda: monotonic() * speed, lambda: round(monotonic_ns() * speed)
    try:
        loop = asyncio.SelectorEventLoop(_Selector(speed))
        asyncio.set_event_loop(loop)  # which subprocesses want
        try:
            return loop.run_until_complete(main)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            asyncio.set_event_loop(None)
    finally:
        time.monotonic, time.monotonic_ns = kept
