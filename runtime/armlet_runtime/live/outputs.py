"""The outputs of a run: what takes its packets and decisions. Views are outputs too (:mod:`armlet_runtime.views`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..modalities import subset_name
from ..signals import decoded

if TYPE_CHECKING:
    from ..decisions import Decision
    from ..signals import Packet
    from .core import LiveCore
    from .open_bundle import Opened
    from .sd_notify import Notifier
    from .sinks import Sinks


class Output:
    """Takes what happens in a run. Each method does nothing, unless an output has a use for it."""

    def packet(self, packet: Packet) -> None:
        """A packet arrived; the live loop has not taken it in yet."""

    def decision(self, decision: Decision) -> None:
        """A decision was made."""

    def became(self, opened: Opened) -> None:
        """Another bundle decides from now on."""

    def news(self) -> Sequence[str]:
        """Sentences on what this output cannot do, or can do again, since they were last asked for."""
        return ()

    def problem(self, sentence: str) -> None:
        """Show a person that something went wrong; the run goes on."""

    def tick(self, now_ns: int) -> None:
        """All that fell due before ``now_ns`` is out; called as often as the loop turns."""

    def finish(self, ended_ns: int) -> None:
        """The run ended in order at ``ended_ns``, on the clock of the arrivals; :meth:`close` follows."""

    def close(self) -> None:
        """Give back what is held; the last call, also of a run that failed."""


class SinkOutput(Output):
    """Gives decisions to MQTT and the Lab Streaming Layer."""

    def __init__(self, sinks: Sinks, core: LiveCore) -> None:
        """``sinks``: closed with the output; ``core``: knows the names of the scores."""
        self._sinks, self._core = sinks, core

    def decision(self, decision: Decision) -> None:
        """Send a decision."""
        self._sinks.send(decision, self._core.labels)

    def news(self) -> Sequence[str]:
        """What a sink cannot do now, or can do again."""
        return self._sinks.news()

    def close(self) -> None:
        """End the sinks."""
        self._sinks.close()


class ServiceOutput(Output):
    """Tells systemd how the run does, and feeds its watchdog as long as no decision is overdue."""

    def __init__(self, manager: Notifier) -> None:
        """The run is ready; ``manager``: closed with the output."""
        self._manager = manager
        manager.ready()
        manager.status("no wearable has sent yet")

    def decision(self, decision: Decision) -> None:
        """Tell what decisions rest on, or why there is none."""
        why = decision.reason
        self._manager.status(f"no decision: {why}" if why else f"decides on {subset_name(decision.subset)}")

    def tick(self, now_ns: int) -> None:
        """Feed the watchdog: every decision that is due is out."""
        self._manager.alive()

    def close(self) -> None:
        """Tell that the process is stopping."""
        self._manager.close()


class Comparison(Output):
    """Counts the decisions of a replay that are those of the live run, but for times that only a live run has."""

    def __init__(self, live: Sequence[bytes]) -> None:
        """``live``: the live run's decisions, as lines, from the first on."""
        self._live = live
        self.same = 0

    def decision(self, decision: Decision) -> None:
        """Compare a decision."""
        if decision.index < len(self._live):
            self.same += decoded(self._live[decision.index]).untimed() == decision
