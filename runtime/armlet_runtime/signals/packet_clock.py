"""The choice of the rule that places a group's packets, and the two rules for packets that bear no counter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..wearables import Batch, Counters
from .clock_fit import ClockFit
from .counter_clock import CounterClock
from .placement import Counts, PacketClock, PacketTimes, Placed

# Counted samples that come later than this are held until it is known whether some before them were lost (the wearable
# had no room for them) or all were late: a wearable that has caught up sends at its pace again.
LATE_NS = 150_000_000
CATCH_UP_NS = 2_000_000_000

# Two samples are never closer than this, however their arrivals jitter.
CLOSEST_NS = 1_000_000


def clock_of(counters: Counters | None, period_ns: int, counts: Counts) -> PacketClock:
    """The clock for the packets of a group.

    Args:
        counters: Of the group; None for samples that have neither a clock nor a steady rate.
        period_ns: Nominal time between two samples.
        counts: Where to count what becomes of packets.
    """
    if counters is None:
        return ArrivalClock(ClockFit(), period_ns, counts)
    if counters.sequence_wrap is None and counters.clock_wrap_ns is None:
        return CountClock(counters, period_ns, counts)
    return CounterClock(counters, period_ns, counts)


class ArrivalClock(PacketClock):
    """For samples with neither clock nor rate: the newest sample of a packet is of the time of its arrival."""

    has_counters = False
    _newest_ns: int | None = None

    @property
    def bound_ns(self) -> int | None:
        """None: such samples are off by whatever the link delayed them."""
        return None

    def connected(self) -> None:
        """Nothing changes: the times are the host's own."""

    def place(self, batch: Batch, arrival_ns: int) -> list[Placed]:
        """See :class:`PacketClock`."""
        before_ns = batch.before_ns
        if before_ns is None:
            before_ns = np.arange(batch.count - 1, -1, -1, dtype=np.int64) * self.period_ns
        times = arrival_ns - before_ns
        if self._newest_ns is not None and int(times[0]) <= self._newest_ns:
            # Arrivals jitter: samples that would come to lie before those already placed come right after them.
            earliest = self._newest_ns + CLOSEST_NS * np.arange(1, batch.count + 1, dtype=np.int64)
            times = np.maximum(times, earliest)
        self._newest_ns = int(times[-1])
        self.fit.observe(self._newest_ns, self._newest_ns)
        return [Placed(self.fit, times, batch)]


class CountClock(PacketClock):
    """For samples of a steady rate whose packets bear neither clock nor counter: the samples are counted."""

    def __init__(self, counters: Counters, period_ns: int, counts: Counts) -> None:
        """``counters``: of the group, for how far its rate may be off; the rest as for :class:`PacketClock`."""
        super().__init__(ClockFit(counters.drift_ppm), period_ns, counts)
        self._drift_ppm = counters.drift_ppm
        self._counted = 0  # samples that were taken in this run, with those that were lost
        self._held: list[tuple[PacketTimes, Batch]] = []

    @property
    def bound_ns(self) -> int | None:
        """See :class:`PacketClock`; so many samples may have been lost unseen as make :data:`LATE_NS`."""
        return None if self.fit.bound_ns is None else self.fit.bound_ns + LATE_NS

    def connected(self) -> None:
        """See :class:`PacketClock`."""
        self._counts.implausible += len(self._held)
        self._held.clear()
        self.fit = ClockFit(self._drift_ppm)
        self._counted = 0

    def place(self, batch: Batch, arrival_ns: int) -> list[Placed]:
        """See :class:`PacketClock`."""
        first_ns = (self._counted + sum(held.count for held, _ in self._held)) * self.period_ns
        last_ns = first_ns + (batch.count - 1) * self.period_ns
        times = PacketTimes(0, first_ns, first_ns, last_ns, batch.count, arrival_ns)
        late_ns = self._late_ns(times)
        if late_ns <= LATE_NS and not self._held:
            return [self._count(times, batch)]
        self._held.append((times, batch))
        if late_ns <= LATE_NS:  # it has caught up: all were late, none was lost
            return self._place_held(0)
        recent = [self._late_ns(held) for held, _ in self._held if held.arrival_ns >= arrival_ns - CATCH_UP_NS]
        if arrival_ns - self._held[0][0].arrival_ns >= CATCH_UP_NS:
            # At its pace again and as late as ever: by so much time samples are missing before those held.
            missing = round(min(recent) / self.period_ns)
            self._counts.lost += missing
            return self._place_held(missing)
        return []

    def _late_ns(self, times: PacketTimes) -> int:
        return times.arrival_ns - self.fit.line.to_host(times.last_ns) if self._counted else 0

    def _place_held(self, missing: int) -> list[Placed]:
        self._counted += missing
        shift_ns = missing * self.period_ns
        placed = []
        for held, batch in self._held:
            moved = replace(
                held,
                stamp_ns=held.stamp_ns + shift_ns,
                first_ns=held.first_ns + shift_ns,
                last_ns=held.last_ns + shift_ns,
            )
            placed.append(self._count(moved, batch))
        self._held.clear()
        return placed

    def _count(self, times: PacketTimes, batch: Batch) -> Placed:
        self._counted += times.count
        return self._observe(times, batch)
