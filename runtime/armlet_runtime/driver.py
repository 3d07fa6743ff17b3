"""The clockwork of a live run: hands packets and the time on, in the one order that a replay can repeat."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from .ble import Session
from .recording import Packet

# The loop turns at least this often, so that views and the end of the run keep up.
TURN_S = 0.25


async def drive(
    session: Session, turn: Callable[[list[Packet], int], int | None], duration_s: float | None = None
) -> int:
    """Run a session until the duration is over, or SIGINT or SIGTERM.

    Args:
        session: Not yet running; ended, links and all, on return.
        turn: Called with the packets that arrived since the last call, and a time such that no later packet arrived
            before it; gives when it wants to be called at the latest (None: when something arrives).
        duration_s: How long to run; None for ever.

    Returns:
        The time of the last call, on the clock of the arrivals.

    Raises:
        WearableError: There is no usable Bluetooth here.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    links = asyncio.ensure_future(session.run())
    end_ns = None if duration_s is None else time.monotonic_ns() + round(duration_s * 1e9)
    try:
        while True:
            # First the time, then what has arrived: with nothing awaited between, no packet can come in that is older.
            now_ns = time.monotonic_ns()
            ending = stop.is_set() or (end_ns is not None and now_ns >= end_ns)
            due_ns = turn(session.take(), now_ns)
            if ending:
                return now_ns
            if links.done():
                links.result()
            waits_ns = [wait - time.monotonic_ns() for wait in (due_ns, end_ns) if wait is not None]
            await session.wait(min([TURN_S, *(max(wait, 0) / 1e9 for wait in waits_ns)]))
    finally:
        links.cancel()
        with suppress(asyncio.CancelledError):
            await links
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
