"""A clock that goes some times as fast as the machine's, for a live run of several processes.

Inside :func:`run`, ``time.monotonic()`` and the event loop's clock are the machine's times a factor; processes with the
same factor have the same clock. What a program computes takes so many times longer by it, so the factor must leave idle
time. Waiting for one process alone is better skipped (``idle_skipping_clock.py``).
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from .idle_skipping_clock import run_by

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / self._speed)


def run(main: Coroutine[Any, Any, T], speed: float) -> T:
    """Run a coroutine as :func:`asyncio.run` does, ``speed`` times as fast."""
    monotonic, monotonic_ns = time.monotonic, time.monotonic_ns
    return run_by(lambda: monotonic() * speed, lambda: round(monotonic_ns() * speed), _Selector(speed), main)
