"""The clock of packets that bear a counter, a time of the wearable's, or both.

It puts packets in order, and distinguishes loss, repeats, wraps and restarts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

from ..wearables import Batch, Counters
from .clock_fit import ClockFit
from .placement import QUICKER, Counts, PacketClock, PacketTimes, Placed

# How many packets late a packet may come and still be put in its place. ATT keeps order on the air; a host's queues
# and relays may not.
REORDER_PACKETS = 64

# By how much more than one packet the device clock may outrun the host's before a packet is not believed: the largest
# jitter of an arrival on a healthy link.
OUTRUN_NS = 100_000_000

# How late a packet may come and still be believed to be of the run before it; no window waits for older samples.
LATEST_NS = 3_000_000_000

# For how long packets that fit nothing before must go on among themselves, at the pace of the host's clock, before they
# are taken for a restart. A stretch of old packets that comes again comes quicker than that.
RESTART_NS = 200_000_000

# A device clock that went on while the link was down agrees with the host's to this much.
RECONNECT_NS = 1_000_000_000

# A rate is the mean over so many packets.
RATE_PACKETS = 256


@dataclass
class _Rate:
    """Time between two samples by the device's own clock: nominal until packets have shown it."""

    nominal_ns: int
    _steps: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=RATE_PACKETS))
    _time_ns: int = 0
    _samples: int = 0

    @property
    def period_ns(self) -> float:
        return self._time_ns / self._samples if self._samples else float(self.nominal_ns)

    def observe(self, time_ns: int, samples: int) -> None:
        """Between two neighbouring packets ``samples`` were taken in ``time_ns``."""
        if abs(time_ns - samples * self.nominal_ns) > QUICKER * samples * self.nominal_ns:
            return  # a packet was lost between them, or the stamp is off
        if len(self._steps) == self._steps.maxlen:
            old_ns, old = self._steps[0]
            self._time_ns, self._samples = self._time_ns - old_ns, self._samples - old
        self._steps.append((time_ns, samples))
        self._time_ns, self._samples = self._time_ns + time_ns, self._samples + samples


class CounterClock(PacketClock):
    """Places packets by what they count.

    Packets that do not fit what came before are held back. If they go on among themselves for :data:`RESTART_NS`, the
    wearable has restarted, and they open a new run of the clock; if not, they are dropped. So a mad packet never puts a
    sample at a wrong time, but for the very first of a run, which nothing can be held against: it is taken back as soon
    as two packets agree against it.
    """

    def __init__(self, counters: Counters, period_ns: int, counts: Counts) -> None:
        """``counters``: of the group, with a wrap at least; the rest as for :class:`PacketClock`."""
        super().__init__(ClockFit(counters.drift_ppm), period_ns, counts)
        self._counters = counters
        self._numbered = counters.sequence_wrap is not None
        self._rate = _Rate(period_ns)
        self._recent: deque[PacketTimes] = deque(maxlen=REORDER_PACKETS)  # in order of their counters
        self._before: PacketTimes | None = None  # newest packet of the connection before
        self._held: deque[tuple[PacketTimes, Batch]] = deque()

    @property
    def bound_ns(self) -> int | None:
        """See :class:`PacketClock`."""
        return self.fit.bound_ns

    def connected(self) -> None:
        """See :class:`PacketClock`."""
        if self._recent:
            self._before = self._recent[-1]
        self._recent.clear()
        self._drop_held()
        self.fit = ClockFit(self._counters.drift_ppm)

    def place(self, batch: Batch, arrival_ns: int) -> list[Placed]:
        """See :class:`PacketClock`."""
        if not self._recent:
            first = self._unwrap(batch, arrival_ns)
            if self._before is not None and not self._went_on(self._before, batch, arrival_ns):
                return self._restart_or_hold(batch, arrival_ns)
            self._drop_held()
            return [self._open_run(first, batch)]
        newest = self._recent[-1]
        times = self._unwrap(batch, arrival_ns, newest)
        if times.key <= newest.key and any(times.key == old.key for old in self._recent):
            self._counts.duplicated += 1
            return []
        if self._follows(newest, times, self.fit):
            self._drop_held()
            self._learn_rate(newest, times)
            self._counts.lost += self._missing(newest, times)
            self._counts.wraps += self._wraps(newest, times)
            self._recent.append(times)
            return [self._observe(times, batch)]
        if self._fills_a_hole(times):
            self._drop_held()
            self._counts.lost -= 1
            self._counts.out_of_order += 1
            ordered = sorted([*self._recent, times], key=lambda s: s.key)
            self._recent = deque(ordered, maxlen=REORDER_PACKETS)
            return [self._observe(times, batch)]
        return self._restart_or_hold(batch, arrival_ns)

    def _unwrap(self, batch: Batch, arrival_ns: int, reference: PacketTimes | None = None) -> PacketTimes:
        """The batch with its counters unwrapped, to lie less than half a turn from those of ``reference``."""
        counters = self._counters
        sequence, stamp_ns = batch.sequence or 0, batch.clock_ns or 0
        if reference is not None and counters.sequence_wrap is not None:
            sequence = _nearest(sequence, reference.sequence, counters.sequence_wrap)
        if counters.clock_wrap_ns is None:  # packets are numbered, and hold equally many samples
            stamp_ns = sequence * batch.count * self.period_ns
        elif reference is not None:
            stamp_ns = _nearest(stamp_ns, reference.stamp_ns, counters.clock_wrap_ns)
        span_ns = round((batch.count - 1) * self._rate.period_ns)
        first_ns = stamp_ns - span_ns if counters.stamps_last else stamp_ns
        return PacketTimes(sequence, stamp_ns, first_ns, first_ns + span_ns, batch.count, arrival_ns)

    def _follows(self, old: PacketTimes, new: PacketTimes, clock: ClockFit | None) -> bool:
        """Whether ``new`` can come after ``old`` in one run: later, not overlapping, and not outrunning the host.

        ``clock``: the run's; None for packets that are held back.
        """
        steps = new.sequence - old.sequence if self._numbered else 1
        passed_ns = new.stamp_ns - old.stamp_ns
        between = new.count if self._counters.stamps_last else old.count
        # Each packet between the two held a sample at least; half a period of slack for stamps that are not exact.
        least_ns = (between + steps - 1) * self.period_ns * (1 - QUICKER) - self.period_ns / 2
        if steps <= 0 or passed_ns <= 0 or passed_ns < least_ns:
            return False
        host_ns = new.arrival_ns - old.arrival_ns
        late_ns = 0
        if clock is not None:
            if new.arrival_ns - clock.line.to_host(new.last_ns) > LATEST_NS:
                return False
            late_ns = old.arrival_ns - clock.line.to_host(old.last_ns)  # it can have caught up by this
        return passed_ns <= host_ns + late_ns + max(old.count, new.count) * self.period_ns + OUTRUN_NS

    def _learn_rate(self, old: PacketTimes, new: PacketTimes) -> None:
        if self._counters.clock_wrap_ns is not None and self._missing(old, new) == 0:
            self._rate.observe(new.stamp_ns - old.stamp_ns, new.count if self._counters.stamps_last else old.count)

    def _missing(self, old: PacketTimes, new: PacketTimes) -> int:
        """How many packets were sent between two and did not come."""
        if self._numbered:
            return new.sequence - old.sequence - 1
        span = (new.count if self._counters.stamps_last else old.count) * self._rate.period_ns
        return max(0, round((new.stamp_ns - old.stamp_ns) / span) - 1)

    def _went_on(self, old: PacketTimes, batch: Batch, arrival_ns: int) -> bool:
        """Whether the device clock went on while the link was down."""
        wrap_ns = self._counters.clock_wrap_ns
        if wrap_ns is None:
            # A counter that wraps within minutes cannot be checked, and is believed.
            return True
        expected_ns = old.stamp_ns + arrival_ns - old.arrival_ns
        return abs(_nearest(batch.clock_ns or 0, expected_ns, wrap_ns) - expected_ns) < RECONNECT_NS

    def _fills_a_hole(self, times: PacketTimes) -> bool:
        """Whether a packet lies between two neighbours in counter and clock, without overlap."""
        earlier = [old for old in self._recent if old.key < times.key]
        later = [old for old in self._recent if old.key > times.key]
        if not earlier or not later:
            return False
        if self._numbered and any(old.sequence == times.sequence for old in self._recent):
            return False
        slack_ns = self.period_ns / 2
        return (
            earlier[-1].last_ns + self.period_ns - slack_ns <= times.first_ns
            and times.last_ns + self.period_ns <= later[0].first_ns + slack_ns
        )

    def _restart_or_hold(self, batch: Batch, arrival_ns: int) -> list[Placed]:
        times = self._unwrap(batch, arrival_ns)
        if self._held:
            times = self._unwrap(batch, arrival_ns, self._held[-1][0])
            if any(times.key == old.key for old, _ in self._held):
                self._counts.duplicated += 1
                return []
            if not self._follows(self._held[-1][0], times, None):
                self._drop_held()
                times = self._unwrap(batch, arrival_ns)
        self._held.append((times, batch))
        host_ns = arrival_ns - self._held[0][0].arrival_ns
        device_ns = times.stamp_ns - self._held[0][0].stamp_ns
        if host_ns >= RESTART_NS and abs(device_ns - host_ns) <= host_ns / 2:
            self._counts.restarts += 1
            return self._open_run_of_held()
        if len(self._recent) == 1 and len(self._held) > 1 and self._before is None:
            # Two agree against the one that opened the run.
            self._counts.implausible += 1
            return self._open_run_of_held(self.fit)
        if len(self._held) > REORDER_PACKETS:
            self._held.popleft()
            self._counts.implausible += 1
        return []

    def _open_run_of_held(self, replaced: ClockFit | None = None) -> list[Placed]:
        held, self._held = self._held, deque()
        self._counts.lost += sum(self._missing(a, b) for (a, _), (b, _) in pairwise(held))
        first = self._open_run(*held.popleft())
        placed = [Placed(first.clock, first.times_ns, first.batch, replaced)]
        for times, batch in held:
            self._learn_rate(self._recent[-1], times)
            self._recent.append(times)
            placed.append(self._observe(times, batch))
        return placed

    def _open_run(self, first: PacketTimes, batch: Batch) -> Placed:
        self.fit = ClockFit(self._counters.drift_ppm)
        self._recent.clear()
        self._recent.append(first)
        return self._observe(first, batch)

    def _drop_held(self) -> None:
        self._counts.implausible += len(self._held)
        self._held.clear()

    def _wraps(self, old: PacketTimes, new: PacketTimes) -> int:
        counters = self._counters
        wraps = 0
        if counters.sequence_wrap is not None:
            wraps += new.sequence // counters.sequence_wrap - old.sequence // counters.sequence_wrap
        if counters.clock_wrap_ns is not None:
            wraps += new.stamp_ns // counters.clock_wrap_ns - old.stamp_ns // counters.clock_wrap_ns
        return wraps


def _nearest(value: int, reference: int, modulus: int) -> int:
    """The number congruent to ``value`` that is nearest to ``reference``."""
    half = modulus // 2
    return reference + (value - reference + half) % modulus - half
