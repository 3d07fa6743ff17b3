"""One run: packets go into the live loop, and what comes out goes to every output. Live and in a replay alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from .outputs import Output

if TYPE_CHECKING:
    from pathlib import Path

    from ..decisions import Decision
    from ..signals import Packet, Recorder
    from .core import LiveCore
    from .open_bundle import Opened

OutputT = TypeVar("OutputT", bound=Output)


class Run:
    """Feeds a live loop and its outputs. A context manager, which closes the outputs, the newest first.

    Attributes:
        opened: The bundle that decides.
        core: The live loop.
        newest_ns: Time of the last turn, on the clock of the arrivals: up to when there are decisions.
    """

    def __init__(self, opened: Opened, core: LiveCore) -> None:
        """Begin without outputs; ``core``: runs the model of ``opened``."""
        self.opened, self.core = opened, core
        self.newest_ns = 0
        self._outputs: list[Output] = []

    def add(self, output: OutputT) -> OutputT:
        """Give one more output what happens from now on, after those that are there; the output itself."""
        self._outputs.append(output)
        return output

    def turn(self, packets: Sequence[Packet], now_ns: int) -> int | None:
        """Take in packets, and give out all that fell due.

        Args:
            packets: Those that arrived since the turn before, in order of arrival.
            now_ns: A time such that no later packet arrived before it, on the clock of the arrivals.

        Returns:
            When the next decision falls due if no packet arrives; None before the first sample.

        Raises:
            DataError: The packets are not in order of arrival.
            EngineError: The engine failed.
            SystemExit: The slot has a bundle that this run cannot take up (see :class:`~.slot_watch.SlotWatch`).
        """
        self.newest_ns = now_ns
        for packet in packets:
            for output in self._outputs:
                output.packet(packet)
            self._give(self.core.packet(packet))
        self._give(self.core.advance(now_ns))
        self._pass_news_on()
        for output in self._outputs:
            output.tick(now_ns)
        return self.core.due_ns()

    def become(self, opened: Opened) -> None:
        """Decide with another bundle from the next window on.

        Raises:
            UsageError: The run's threshold would take the name of one of the bundle's classes; the bundle before goes
                on.
        """
        self.core.become(opened.model, opened.policy)
        self.opened.model.close()
        self.opened = opened
        for output in self._outputs:
            output.became(opened)

    def recording_meta(self) -> dict[str, str]:
        """What a recording of this run says of the bundle, by which a replay knows that it is the same."""
        return {"bundle": self.opened.bundle.digest, "engine": self.opened.model.engine.name}

    def start_recording(self, recorder: Recorder, path: Path) -> None:
        """Begin a recording of this run, with what a replay needs to decode the packets to come.

        Raises:
            DataError: One goes on already, the file exists, or it cannot be made.
        """
        openings = (wearable.opening for wearable in self.core.wearables.values())
        recorder.start(path, self.recording_meta(), chain.from_iterable(openings))

    def problem(self, sentence: str) -> None:
        """Show a person what went wrong; the run goes on."""
        for output in self._outputs:
            output.problem(sentence)

    def finish(self) -> None:
        """The run ended in order: no packet and no decision follows."""
        for output in self._outputs:
            output.finish(self.newest_ns)
        self._pass_news_on()

    def _pass_news_on(self) -> None:
        for output in self._outputs:
            for sentence in output.news():
                self.problem(sentence)

    def _give(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            for output in self._outputs:
                output.decision(decision)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._outputs:
            self._outputs.pop().close()
