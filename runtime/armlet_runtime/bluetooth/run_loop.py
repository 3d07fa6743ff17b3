"""The clockwork of a live run: hands packets and the time on, in the one order that a replay can repeat."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any, TypeVar

from ..signals import Packet
from .session import Session

T = TypeVar("T")

log = logging.getLogger(__name__)

# How long tasks have that are cancelled at the end of the process; longer than a session needs to end its links.
END_S = 10.0
# The loop turns at least this often, so that views and the end of the run keep up.
TURN_S = 0.25
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Each connection that ended leaves some hundred objects in cycles (the client, tasks, tracebacks). They are old by
# then, so only a full garbage collection finds them. Python runs one after 70 000 objects, which takes hours, and until
# then the process grows, and keeps the size. So a collection runs when a link has come up, before the next link, and
# every so often. It takes 1 to 2 ms on a PC, as what start-up made is left out.
COLLECT_NS = 10_000_000_000


def run_main(main: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``, but tasks that do not end although they are cancelled do not keep the process.

    Handlers of signals are afterwards what they were before; see :func:`drive`.

    Args:
        main: Run in an event loop of its own.

    Returns:
        The result of ``main``.
    """
    loop = asyncio.new_event_loop()
    handlers = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                _, left = loop.run_until_complete(asyncio.wait(left, timeout=END_S))
            for task in left:
                log.error("task %s does not end and is left behind", task.get_name())
            loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), END_S))
        finally:
            asyncio.set_event_loop(None)
            loop.close()
            for number, handler in handlers.items():
                if signal.getsignal(number) is not handler:
                    signal.signal(number, handler)


async def turns(
    session: Session, due_ns: Callable[[], int | None], stop: asyncio.Event, duration_s: float | None = None
) -> AsyncGenerator[tuple[list[Packet], int], None]:
    """Run a session until the duration is over or ``stop`` is set.

    Args:
        session: Not yet running; ended, links and all, when the generator is closed.
        due_ns: When the next turn is wanted at the latest (None: when something arrives).
        stop: Ends the run.
        duration_s: How long to run; None for ever.

    Yields:
        The packets that arrived since the turn before, and a time such that no later packet arrived before it, on the
        clock of the arrivals.

    Raises:
        WearableError: There is no usable Bluetooth here.
    """
    links = asyncio.ensure_future(session.run())
    end_ns = None if duration_s is None else time.monotonic_ns() + round(duration_s * 1e9)
    try:
        while True:
            # First the time, then what has arrived: with nothing awaited between, no packet can come in that is older.
            now_ns = time.monotonic_ns()
            ending = stop.is_set() or (end_ns is not None and now_ns >= end_ns)
            yield session.take(), now_ns
            if ending:
                return
            if links.done():
                links.result()
            waits_ns = [wait - time.monotonic_ns() for wait in (due_ns(), end_ns) if wait is not None]
            await session.wait(min([TURN_S, *(max(wait, 0) / 1e9 for wait in waits_ns)]))
    finally:
        links.cancel()
        with suppress(asyncio.CancelledError):
            await links


async def drive(
    session: Session, turn: Callable[[list[Packet], int], int | None], duration_s: float | None = None
) -> int:
    """Run a session until the duration is over, or SIGINT or SIGTERM; a second signal ends the process at once.

    Args:
        session: Not yet running; ended, links and all, on return.
        turn: Called with what :func:`turns` yields; gives when it wants to be called at the latest (None: when
            something arrives).
        duration_s: How long to run; None for ever.

    Returns:
        The time of the last call, on the clock of the arrivals.

    Raises:
        WearableError: There is no usable Bluetooth here.
    """
    newest_ns = 0
    collected_ns = time.monotonic_ns()
    wanted_ns: int | None = None
    with _until_signal() as stop, _started():
        async with aclosing(turns(session, lambda: wanted_ns, stop, duration_s)) as each:
            async for packets, newest_ns in each:
                wanted_ns = turn(packets, newest_ns)
                came_up = any(packet.kind == "connected" for packet in packets)
                if came_up or newest_ns - collected_ns >= COLLECT_NS:
                    collected_ns = newest_ns
                    gc.collect()
    return newest_ns


async def play(
    packets: Sequence[Packet], ended_ns: int, speed: float, turn: Callable[[list[Packet], int], int | None]
) -> int:
    """Play a recording's packets at their times, until it ends, or SIGINT or SIGTERM.

    Args:
        packets: In order of arrival.
        ended_ns: When the recording ended, on the clock of the arrivals.
        speed: Seconds of the recording per second.
        turn: As for :func:`drive`; it is called at least once in :data:`TURN_S`.

    Returns:
        The time of the last call, on the clock of the arrivals.
    """
    began_ns = time.monotonic_ns()
    first_ns = packets[0].arrival_ns
    next_index = 0
    with _until_signal() as stop:
        while True:
            now_ns = min(ended_ns, first_ns + round((time.monotonic_ns() - began_ns) * speed))
            index = next_index
            while index < len(packets) and packets[index].arrival_ns <= now_ns:
                index += 1
            due, next_index = packets[next_index:index], index
            turn(list(due), now_ns)
            if now_ns >= ended_ns or stop.is_set():
                return now_ns
            next_ns = packets[index].arrival_ns if index < len(packets) else ended_ns
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), min(TURN_S, max(next_ns - now_ns, 0) / 1e9 / speed))


@contextmanager
def _started() -> Iterator[None]:
    """Leave the objects of start-up out of the garbage collections of the run, which are shorter then."""
    gc.collect()
    gc.freeze()
    gc.collect()  # resets the count of objects that survive, which is 0 now
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _until_signal() -> Iterator[asyncio.Event]:
    """An event that SIGINT or SIGTERM sets, inside the block. A second signal ends the process at once.

    From the first signal on, both have the system's default action until :func:`run_main` ends: a person who presses
    Ctrl-C again does not want to wait until links are ended and sinks are empty.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        stop.set()
        for number in ENDING_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in ENDING_SIGNALS:
        loop.add_signal_handler(number, end)
    try:
        yield stop
    finally:
        if not stop.is_set():
            for number in ENDING_SIGNALS:
                loop.remove_signal_handler(number)
