"""A bundle, live, in two lines of Python::

    from armlet_runtime import open_live
    for decision in open_live("file:board", wearables=["Polar H10 12345678"]): print(decision.label, decision.subset)

``async for`` does the same inside an event loop, and :meth:`Live.run` calls a function for each decision.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from .decisions import Decision

if TYPE_CHECKING:
    from .live import LiveCore
    from .model import BundleModel, Policy

MAX_WAITING = 1024
"""Decisions that wait for a slow ``for``; beyond it the oldest are dropped, and counted in :attr:`Live.dropped`."""


class Live:
    """Decisions of a bundle's model on wearables, as they are made; see :func:`open_live`.

    Each ``for`` or ``async for`` begins a run, which ends with the loop, links and all.

    Attributes:
        core: The live loop of the present run: labels, wearables, problems.
        dropped: Decisions that a ``for`` was too slow to take.
    """

    def __init__(
        self,
        model: BundleModel,
        policy: Policy | None,
        bluetooth: str,
        wearables: Sequence[str],
        duration_s: float | None = None,
    ) -> None:
        """Use :func:`open_live`."""
        self.dropped = 0
        self._model, self._policy = model, policy
        self._bluetooth, self._wearables, self._duration_s = bluetooth, tuple(wearables), duration_s
        self.core = self._new_core()

    def _new_core(self) -> LiveCore:
        from .live import LiveCore

        return LiveCore(self._model, time.monotonic_ns, self._policy)

    def __aiter__(self) -> AsyncGenerator[Decision, None]:
        """The decisions of a run in this event loop; errors as for :meth:`run`."""
        return self.decisions()

    async def decisions(self, stop: asyncio.Event | None = None) -> AsyncGenerator[Decision, None]:
        """The decisions of a run in this event loop, until ``stop`` is set; ``async for`` iterates over them.

        A caller that may leave early closes the generator (``contextlib.aclosing``), which ends the links at once.
        """
        from .bluetooth import Session, choose_wearables, open_bluetooth, turns

        core = self.core = self._new_core()
        rates_hz = {modality.name: modality.rate_hz for modality in self._model.manifest.modalities}
        async with open_bluetooth(self._bluetooth) as bluetooth:
            names = await choose_wearables(bluetooth, self._wearables, rates_hz)
            session = Session(bluetooth, names, rates_hz, lambda: core.complete)
            async with aclosing(turns(session, core.due_ns, stop or asyncio.Event(), self._duration_s)) as each:
                async for packets, now_ns in each:
                    for packet in packets:
                        for decision in core.packet(packet):
                            yield decision
                    for decision in core.advance(now_ns):
                        yield decision

    def __iter__(self) -> Iterator[Decision]:
        """The decisions of a run whose event loop is in a thread of its own; errors as for :meth:`run`."""
        waiting: deque[Decision] = deque()
        news = threading.Condition()
        ended = False
        failure: BaseException | None = None
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()

        async def run() -> None:
            async with aclosing(self.decisions(stop)) as decisions:
                async for decision in decisions:
                    with news:
                        if len(waiting) == MAX_WAITING:
                            waiting.popleft()
                            self.dropped += 1
                        waiting.append(decision)
                        news.notify()

        def thread() -> None:
            nonlocal ended, failure
            try:
                loop.run_until_complete(run())
            except BaseException as error:  # raised again in the thread that waits for decisions
                failure = error
            finally:
                with news:
                    ended = True
                    news.notify()
                loop.close()

        worker = threading.Thread(target=thread, name="armlet-live", daemon=True)
        worker.start()
        try:
            while True:
                with news:
                    while not waiting and not ended:
                        news.wait()
                    if not waiting:
                        break
                    decision = waiting.popleft()
                yield decision
        finally:
            with news:
                if not ended:
                    loop.call_soon_threadsafe(stop.set)
            worker.join()
        if failure is not None:
            raise failure

    def run(self, callback: Callable[[Decision], object]) -> None:
        """Call a function for each decision, until the duration is over or it raises an exception.

        Raises:
            UsageError: No wearable was named.
            WearableError: There is no usable Bluetooth here.
            EngineError: The engine failed.
        """
        for decision in self:
            callback(decision)


def open_live(
    bundle: str | Path,
    *,
    bluetooth: str = "system",
    wearables: Sequence[str] = (),
    duration_s: float | None = None,
    engine: str | None = None,
    keys: Sequence[Path] = (),
    floor: float | None = None,
    unknown_below: float | None = None,
) -> Live:
    """Open a bundle to run it live, as ``armlet run`` does.

    Args:
        bundle: A file, or ``file:FOLDER`` for a slot.
        bluetooth: ``system``, ``bumble:usb:0``, ...; see ``armlet run --help``.
        wearables: Advertised names or addresses of the wearables to connect, and no others. ``["any"]`` connects every
            usable wearable in reach. Empty: a run ends with an error that lists the wearables in reach.
        duration_s: Duration of a run; None for no limit.
        engine: Engine to run on; None for the bundle's first that is usable here.
        keys: Public keys to trust; empty for those of this home.
        floor: No decision rests on sensors for which the bundle's certificate has a macro-F1 below this (0 to 1).
        unknown_below: A decision whose probability is below this is ``unknown``; 0 for never, None for the bundle's own
            threshold.

    Raises:
        BundleError: The bundle cannot be trusted or used.
        DeployError: The slot cannot be taken back to its previous bundle after an abandoned probation.
        EngineError: The engine cannot be used here.
        EnrolmentError: The classes enrolled for it cannot be read.
        UsageError: The floor or the threshold does not lie between 0 and 1.
    """
    from .live import open_model
    from .model import Policy

    opened = open_model(str(bundle), keys, engine, Policy(floor, unknown_below))
    return Live(opened.model, opened.policy, bluetooth, wearables, duration_s)
