"""Outputs of a run, which receive its packets and decisions. Views are outputs too (:mod:`armlet_runtime.views`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..modalities import subset_name
from ..signals import decoded

if TYPE_CHECKING:
    from ..decisions import Decision
    from ..signals import Packet
    from .open_bundle import Opened
    from .sd_notify import Notifier


class Output:
    """Receives the events of a run. Each method does nothing unless an output overrides it."""

    def packet(self, packet: Packet) -> None:
        """Receive a packet, before the live loop takes it in."""

    def decision(self, decision: Decision) -> None:
        """Receive a decision."""

    def became(self, opened: Opened) -> None:
        """Note that another bundle decides from now on."""

    def news(self) -> Sequence[str]:
        """Sentences on problems of this output that began or ended since the last call."""
        return ()

    def problem(self, sentence: str) -> None:
        """Show a problem to a person; the run goes on."""

    def tick(self, now_ns: int) -> None:
        """Note the time, in each turn of the loop; all that fell due before ``now_ns`` is out."""

    def finish(self, ended_ns: int) -> None:
        """Note that the run ended in order at ``ended_ns``, on the clock of the arrivals; :meth:`close` follows."""

    def close(self) -> None:
        """Release resources; the last call, also of a run that failed."""


class ServiceOutput(Output):
    """Reports the state of the run to systemd, and feeds its watchdog as long as no decision is overdue."""

    def __init__(self, manager: Notifier) -> None:
        """Report that the run is ready; ``manager``: closed with the output."""
        self._manager = manager
        manager.ready()
        manager.status("no wearable has sent yet")

    def decision(self, decision: Decision) -> None:
        """Report the subset of a decision, or the reason for which there is no label."""
        reason = decision.reason
        self._manager.status(f"no decision: {reason}" if reason else f"decides on {subset_name(decision.subset)}")

    def tick(self, now_ns: int) -> None:
        """Feed the watchdog, because every due decision is out."""
        self._manager.alive()

    def close(self) -> None:
        """Report that the process is stopping."""
        self._manager.close()


class Comparison(Output):
    """Counts decisions of a replay that equal those of the live run, except for times that only a live run has."""

    def __init__(self, live: Sequence[bytes]) -> None:
        """``live``: the live run's decisions as JSON lines, from the first on."""
        self._live = live
        self.same = 0

    def decision(self, decision: Decision) -> None:
        """Compare a decision."""
        if decision.index < len(self._live):
            self.same += decoded(self._live[decision.index]).untimed() == decision
