"""A run, live or a replay: packets go into the live loop, and its decisions to every output."""

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
    """Feeds a live loop and its outputs. A context manager that closes the outputs, the newest first.

    Attributes:
        opened: The bundle that decides.
        core: The live loop.
        newest_ns: Time of the last turn, on the clock of the arrivals; all decisions up to it are out.
    """

    def __init__(self, opened: Opened, core: LiveCore) -> None:
        """Begin without outputs; ``core`` runs the model of ``opened``."""
        self.opened, self.core = opened, core
        self.newest_ns = 0
        self._outputs: list[Output] = []

    def add(self, output: OutputT) -> OutputT:
        """Add an output behind the present outputs; the output itself."""
        self._outputs.append(output)
        return output

    def turn(self, packets: Sequence[Packet], now_ns: int) -> int | None:
        """Take in packets, and give all due decisions to the outputs.

        Args:
            packets: Packets that arrived since the last turn, in order of arrival.
            now_ns: A time such that no later packet arrived before it, on the clock of the arrivals.

        Returns:
            The time at which the next decision falls due if no packet arrives; None before the first sample.

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
        self._report_news()
        for output in self._outputs:
            output.tick(now_ns)
        return self.core.due_ns()

    def become(self, opened: Opened) -> None:
        """Decide with another bundle from the next window on.

        Raises:
            UsageError: The run's threshold would take the name of one of the bundle's classes; the present bundle stays
                in use.
        """
        self.core.become(opened.model, opened.policy)
        self.opened.model.close()
        self.opened = opened
        for output in self._outputs:
            output.became(opened)

    def recording_meta(self) -> dict[str, str]:
        """Entries of a recording that identify the bundle and the engine, for a comparison with its replay."""
        return {"bundle": self.opened.bundle.digest, "engine": self.opened.model.engine.name}

    def start_recording(self, recorder: Recorder, path: Path) -> None:
        """Begin a recording of this run with the packets that a replay needs to decode later ones.

        Raises:
            DataError: A recording is being written already, or the file exists or cannot be created.
        """
        openings = (wearable.opening for wearable in self.core.wearables.values())
        recorder.start(path, self.recording_meta(), chain.from_iterable(openings))

    def problem(self, sentence: str) -> None:
        """Show a problem on every output; the run goes on."""
        for output in self._outputs:
            output.problem(sentence)

    def finish(self) -> None:
        """Note that the run ended in order: no packet and no decision follows."""
        for output in self._outputs:
            output.finish(self.newest_ns)
        self._report_news()

    def _report_news(self) -> None:
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
