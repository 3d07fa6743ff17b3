"""A clock that skips idle time, so that half an hour of a live run takes minutes.

Inside :func:`run`, ``time.monotonic()`` and the event loop's clock count the processor time of this process, and, where
the loop would wait for a timer, the time that it would have waited. So all that the program computes takes as long as
it takes, and only waiting is skipped; other programs on the machine do not count. Nothing may wait for another process.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH_NS = 1_000_000_000_000
"""What the clock shows at the begin: so much that nothing comes to lie before 0."""


class SkippingClock:
    """Attributes: ``skipped_ns``: how much waiting was skipped so far."""

    def __init__(self) -> None:
        self.skipped_ns = 0
        self._began_ns = time.process_time_ns()

    def monotonic_ns(self) -> int:
        """In place of :func:`time.monotonic_ns`."""
        return EPOCH_NS + time.process_time_ns() - self._began_ns + self.skipped_ns

    def monotonic(self) -> float:
        """In place of :func:`time.monotonic`."""
        return self.monotonic_ns() / 1e9


class _Selector(selectors.DefaultSelector):
    def __init__(self, clock: SkippingClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout is None:
            return ready or super().select(None)
        self._clock.skipped_ns += max(0, round(timeout * 1e9))
        return ready


def run(main: Coroutine[Any, Any, T]) -> tuple[T, SkippingClock]:
    """Run a coroutine as :func:`asyncio.run` does, without waiting."""
    clock = SkippingClock()
    return run_by(clock.monotonic, clock.monotonic_ns, _Selector(clock), main), clock


def run_by(
    monotonic: Callable[[], float],
    monotonic_ns: Callable[[], int],
    selector: selectors.BaseSelector,
    main: Coroutine[Any, Any, T],
) -> T:
    """Run a coroutine as :func:`asyncio.run` does, by another clock; ``selector`` waits as that clock wants it."""
    kept = time.monotonic, time.monotonic_ns
    time.monotonic, time.monotonic_ns = monotonic, monotonic_ns
    try:
        loop = asyncio.SelectorEventLoop(selector)
        asyncio.set_event_loop(loop)  # which subprocesses want
        try:
            return loop.run_until_complete(main)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            asyncio.set_event_loop(None)
    finally:
        time.monotonic, time.monotonic_ns = kept
