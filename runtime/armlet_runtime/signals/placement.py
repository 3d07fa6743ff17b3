"""The place of a packet's samples in time: what every placing rule takes in, counts and gives.

The rules are in :mod:`.packet_clock` (samples placed by arrival, samples counted) and :mod:`.counter_clock` (packets
that bear a counter or a time of the wearable's).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..wearables import Batch
from .clock_fit import ClockFit

# Share by which samples may come faster than their nominal rate; sensors deviate by one or two percent.
QUICKER = 0.2


@dataclass
class Counts:
    """Counts of the packets of one group of a wearable's modalities.

    Attributes:
        packets: All that arrived, good or not.
        samples: Samples taken in.
        lost: Packets that the counters say were sent and that never came, or came malformed (a late one is taken off
            again); what a link loss swallowed is not among them.
        duplicated: Packets that had come before; dropped.
        out_of_order: Packets that came after a later packet; put in their place.
        malformed: Packets that are truncated, oversized or of another layout; dropped.
        implausible: Packets whose counter and clock fit neither what came before nor a restart; dropped.
        wraps: How often the counter or the clock started again from 0 as it must.
        restarts: How often they started anew because the wearable did.
        connections: How often the link was made.
    """

    packets: int = 0
    samples: int = 0
    lost: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    malformed: int = 0
    implausible: int = 0
    wraps: int = 0
    restarts: int = 0
    connections: int = 0


@dataclass(frozen=True)
class Placed:
    """A batch in its place.

    Attributes:
        clock: The run of the device clock that it belongs to; a new object after each connection and restart.
        times_ns: Device times of its samples in that run, without wraps, (n,) int64.
        batch: The samples.
        replaces: An earlier run that was opened by a mistaken packet; its samples are to be dropped.
    """

    clock: ClockFit
    times_ns: NDArray[np.int64]
    batch: Batch
    replaces: ClockFit | None = None


@dataclass(frozen=True)
class PacketTimes:
    """A packet whose counters are unwrapped; device times of its first and last sample in ns."""

    sequence: int
    stamp_ns: int
    first_ns: int
    last_ns: int
    count: int
    arrival_ns: int

    @property
    def key(self) -> tuple[int, int]:
        """Its place in the order of the wearable's packets."""
        return self.sequence, self.stamp_ns

    @property
    def sample_ns(self) -> NDArray[np.int64]:
        """Device times of its samples (count,), evenly spaced."""
        if self.count == 1:
            return np.array([self.first_ns], np.int64)
        step = (self.last_ns - self.first_ns) / (self.count - 1)
        times: NDArray[np.int64] = self.first_ns + np.rint(np.arange(self.count) * step).astype(np.int64)
        return times


class PacketClock(ABC):
    """Puts the packets of one group in their place, by one rule.

    Attributes:
        fit: The present run's clock.
        period_ns: Nominal time between two samples.
        has_counters: Whether there is anything to fit; samples are placed by their arrival otherwise.
    """

    has_counters: ClassVar[bool] = True

    def __init__(self, fit: ClockFit, period_ns: int, counts: Counts) -> None:
        """``fit``: of the first run; ``period_ns``: nominal, of the samples; ``counts``: where to count."""
        self.fit = fit
        self.period_ns = period_ns
        self._counts = counts

    @property
    @abstractmethod
    def bound_ns(self) -> int | None:
        """How far a sample's host time may be off, but for the link's least delay; None while it is unknown."""

    @abstractmethod
    def connected(self) -> None:
        """The link was made anew: what comes now is a new run of the wearable's clock."""

    @abstractmethod
    def place(self, batch: Batch, arrival_ns: int) -> list[Placed]:
        """Place a batch; usually one batch results, none if it is dropped or held back, several after a restart."""

    def _observe(self, times: PacketTimes, batch: Batch) -> Placed:
        """The batch at these times, which the fit learns from."""
        self.fit.observe(times.last_ns, times.arrival_ns)
        return Placed(self.fit, times.sample_ns, batch)
