"""Clocks: from a wearable's own counters to the host's monotonic clock.

A wearable stamps each packet with a counter or with its own clock; the host stamps the arrival. An arrival is never
earlier than the sample, and is later by a delay that varies (connection interval, retransmission, a busy host). So the
truth lies below all pairs of device time and arrival, and close to the lowest: a lower envelope, which a late packet
cannot disturb. :class:`ClockFit` fits a line to it, with its slope (how fast the device's clock is) and a bound of its
error. The part of the delay that is always there cannot be seen from one side; it is left in, and is the same for all
wearables on like links.

:class:`PacketClock` comes before it: it puts packets in order, and tells loss, repeats, wraps and restarts apart.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ..wearables import Batch, Counters

# --- the fit ----------------------------------------------------------------------------------------------------------

# The envelope is kept as the lowest pair of each bin of device time. Bins begin short, and are doubled when there are
# too many; of the longest, the oldest is dropped. So a fit looks back over 64 x 6.4 s = 410 s, in which a crystal's
# rate hardly moves, and needs the same memory for ever.
BINS = 64
FIRST_BIN_NS = 100_000_000
LONGEST_BIN_NS = 6_400_000_000

# The bound is the distance to the eighth lowest pair: of n delays drawn alike, and evenly spread near their minimum,
# the seven gaps above the lowest are together longer than the unseen gap below it in 127 of 128 cases. It is doubled
# because the slope is fitted to the same pairs, and never below what a host's own time stamps are good for.
RANK = 7
BOUND_FACTOR = 2
FINEST_BOUND_NS = 100_000

# A fit is valid from so many bins on, over so much time: the first second says little of what delays there are.
VALID_BINS = RANK + 1
VALID_SPAN_NS = 2_000_000_000

# A pair that lies below the envelope by more than its bound and this much shows that the device's clock has been set.
# When every pair of so long a time, in so many bins at least, lies above it by so much, it has been set back, or the
# link's least delay has grown. In both cases the older pairs are dropped.
STEP_SPAN_NS = 6_000_000_000
STEP_BINS = 4
STEP_NS = 5_000_000


@dataclass(frozen=True)
class Line:
    """Host times as a straight line over device times.

    Attributes:
        at_ns: Device time at which the offset holds.
        offset_ns: What to add to it to get the host's.
        slope: By how much that grows with each ns of device time.
    """

    at_ns: int
    offset_ns: int
    slope: float

    @overload
    def to_host(self, device_ns: int) -> int: ...
    @overload
    def to_host(self, device_ns: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def to_host(self, device_ns: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
        """Host times of device times (both ns)."""
        if isinstance(device_ns, np.ndarray):
            since = device_ns - self.at_ns
            host_ns: NDArray[np.int64] = (
                since + (self.at_ns + self.offset_ns) + np.rint(since * self.slope).astype(np.int64)
            )
            return host_ns
        return device_ns + self.offset_ns + round((device_ns - self.at_ns) * self.slope)

    def to_device(self, host_ns: int) -> int:
        """The device time of a host time (both ns)."""
        return self.at_ns + round((host_ns - self.offset_ns - self.at_ns) / (1 + self.slope))

    def seconds_to_host(self, device_ns: NDArray[np.int64], end_ns: int) -> NDArray[np.float64]:
        """Host times in seconds relative to one in ns, of device times (n,) near it: to the ns, in few steps."""
        return np.asarray((device_ns - self.to_device(end_ns)) * ((1 + self.slope) / 1e9), np.float64)

    def apart_ns(self, other: Line, device_ns: int) -> float:
        """How far this line's host time of a device time is after the other's."""
        mine = self.offset_ns + (device_ns - self.at_ns) * self.slope
        return mine - other.offset_ns - (device_ns - other.at_ns) * other.slope


class ClockFit:
    """The line from one run of a device clock to the host's clock.

    The slope of the lower envelope is that of the side of its convex hull below the mean device time: of all lines
    below the points, the one with the least sum of distances (Moon, Skelly & Towsley, "Estimation and removal of clock
    skew from network delay measurements", INFOCOM 1999). While little time has passed it is held back towards 0 by how
    well it is known against what crystals keep. The offset is then the least residual, older ones counting the less
    the longer an error of the slope has acted on them.

    Attributes:
        line: As it is fitted now; a new object after each fit. At least one observation must have been made.
    """

    def __init__(self, expected_drift_ppm: float = 100.0) -> None:
        """``expected_drift_ppm``: how far such a clock's rate may be off."""
        self._prior = expected_drift_ppm * 1e-6
        self._bin_ns = FIRST_BIN_NS
        self._bins: deque[tuple[int, int]] = deque()  # lowest of each bin: device time, arrival - device time
        self._base_ns = 0  # subtracted from the differences before they become floats
        self._at_ns = 0  # device time at which the offset holds
        self._offset = 0.0
        self._slope = 0.0
        self._bound = math.inf
        self.line = Line(0, 0, 0.0)

    def observe(self, device_ns: int, arrival_ns: int) -> None:
        """Take in that the sample of ``device_ns`` had arrived at ``arrival_ns``."""
        difference = arrival_ns - device_ns
        if self.valid and difference - self._base_ns < self._line(device_ns) - self._step_ns():
            self._bins.clear()
        if not self._bins:
            self._base_ns, self._at_ns = difference, device_ns
        newest = self._bins[-1][0] // self._bin_ns if self._bins else None
        number = device_ns // self._bin_ns
        if newest is None or number > newest:
            self._bins.append((device_ns, difference))
            self._make_room()
            self._fit(device_ns)
        elif number == newest:
            if difference < self._bins[-1][1]:
                self._bins[-1] = (device_ns, difference)
            if difference - self._base_ns < self._line(device_ns):
                self._fit(device_ns)
        # A packet that comes late enough to belong to an older bin is above the envelope.

    @property
    def valid(self) -> bool:
        """Whether the fit rests on enough to be believed; before, arrivals are hardly better than they look."""
        return len(self._bins) >= VALID_BINS and self._bins[-1][0] - self._bins[0][0] >= VALID_SPAN_NS

    @property
    def drift_ppm(self) -> float:
        """How fast the device's clock runs against the host's, in parts per million."""
        return -self._slope / (1 + self._slope) * 1e6

    @property
    def bound_ns(self) -> int | None:
        """How far a host time may be off, but for the link's least delay; None while the fit is not valid."""
        return max(FINEST_BOUND_NS, round(BOUND_FACTOR * self._bound)) if self.valid else None

    def _line(self, device_ns: int) -> float:
        return self._offset + self._slope * (device_ns - self._at_ns)

    def _make_room(self) -> None:
        if len(self._bins) <= BINS:
            return
        if self._bin_ns >= LONGEST_BIN_NS:
            self._bins.popleft()
            return
        self._bin_ns *= 2
        lowest: dict[int, tuple[int, int]] = {}
        for pair in self._bins:
            number = pair[0] // self._bin_ns
            if number not in lowest or pair[1] < lowest[number][1]:
                lowest[number] = pair
        self._bins = deque(lowest.values())

    def _fit(self, now_ns: int) -> None:
        self._forget_before_a_step()
        self._at_ns = max(self._at_ns, now_ns)
        # Times before now and differences, as floats that are small enough to be exact to the nanosecond.
        points = [(float(at - self._at_ns), float(difference - self._base_ns)) for at, difference in self._bins]
        slope, uncertainty = self._fit_slope(points)
        self._slope = slope
        residuals = sorted(
            (difference - slope * at - uncertainty * at, difference - slope * at, at) for at, difference in points
        )
        penalised, self._offset, at = residuals[0]
        self._bound = residuals[min(RANK, len(residuals) - 1)][0] - penalised - uncertainty * at
        self.line = Line(self._at_ns, self._base_ns + round(self._offset), slope)

    def _fit_slope(self, points: list[tuple[float, float]]) -> tuple[float, float]:
        """Slope of the envelope, and by how much it may be off."""
        if not self.valid:
            return 0.0, self._prior
        hull: list[tuple[float, float]] = []
        for x, y in points:
            while len(hull) > 1 and _above(hull[-2], hull[-1], (x, y)):
                hull.pop()
            hull.append((x, y))
        mean = math.fsum(x for x, _ in points) / len(points)
        left, right = next((side for side in pairwise(hull) if side[1][0] >= mean), (hull[-2], hull[-1]))
        slope = (right[1] - left[1]) / (right[0] - left[0])
        spread = sorted(y - left[1] - slope * (x - left[0]) for x, y in points)[RANK]
        fitted = 2 * spread / (points[-1][0] - points[0][0])
        weight = self._prior**2 / (self._prior**2 + fitted**2)
        return slope * weight, fitted * math.sqrt(weight)

    def _step_ns(self) -> float:
        """What is further from the envelope than this is more than its error."""
        return BOUND_FACTOR * self._bound + STEP_NS

    def _forget_before_a_step(self) -> None:
        if not self.valid:
            return
        raised = 0
        for at, difference in reversed(self._bins):
            if difference - self._base_ns - self._line(at) <= self._step_ns():
                break
            raised += 1
        if STEP_BINS <= raised < len(self._bins) and self._bins[-1][0] - self._bins[-raised][0] >= STEP_SPAN_NS:
            while len(self._bins) > raised:
                self._bins.popleft()


def _above(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether the middle of three points lies on the line between the others or above it."""
    return (middle[0] - left[0]) * (right[1] - left[1]) <= (middle[1] - left[1]) * (right[0] - left[0])


# --- packets ----------------------------------------------------------------------------------------------------------

# How many packets back a late one may come and still be put in its place. ATT keeps order on the air; a host's queues
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

# Samples may come quicker than their nominal rate says by this share; what sensors do is one or two percent.
QUICKER = 0.2

# Counted samples that come later than this are held until it is known whether some before them were lost (the wearable
# had no room for them) or all were late: a wearable that has caught up sends at its pace again.
LATE_NS = 150_000_000
CATCH_UP_NS = 2_000_000_000

# Two samples are never closer than this, however their arrivals jitter.
CLOSEST_NS = 1_000_000

# Of the mean over the newest packets that a rate is taken from.
RATE_PACKETS = 256


@dataclass
class Counts:
    """What became of the packets of one group of a wearable's modalities.

    Attributes:
        packets: All that arrived, good or not.
        samples: Samples taken in.
        lost: Packets that the counters say were sent and that never came, or came malformed (a late one is taken off
            again); what a link loss swallowed is not among them.
        duplicated: Packets that had come before; dropped.
        out_of_order: Packets that came after a later one; put in their place.
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
        replaces: A run that turned out to be none, and whose samples are to be dropped.
    """

    clock: ClockFit
    times_ns: NDArray[np.int64]
    batch: Batch
    replaces: ClockFit | None = None


@dataclass(frozen=True)
class _Seen:
    """A packet whose counters are unwrapped; device times of its first and last sample in ns."""

    sequence: int
    stamp_ns: int
    first_ns: int
    last_ns: int
    count: int
    arrival_ns: int

    @property
    def key(self) -> tuple[int, int]:
        return self.sequence, self.stamp_ns


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
            return  # one was lost between them, or the stamp is off
        if len(self._steps) == self._steps.maxlen:
            old_ns, old = self._steps[0]
            self._time_ns, self._samples = self._time_ns - old_ns, self._samples - old
        self._steps.append((time_ns, samples))
        self._time_ns, self._samples = self._time_ns + time_ns, self._samples + samples


class PacketClock:
    """Puts the packets of one group in their place.

    Packets that do not fit what came before are held back. If they go on among themselves for :data:`RESTART_NS`, the
    wearable has restarted, and they open a new run of the clock; if not, they are dropped. So a mad packet never puts a
    sample at a wrong time, but for the very first of a run, which nothing can be held against: it is taken back as soon
    as two packets agree against it.

    Attributes:
        fit: The present run's clock.
    """

    def __init__(self, counters: Counters | None, period_ns: int, counts: Counts) -> None:
        """``counters``: of the group; ``period_ns``: nominal, of the samples; ``counts``: where to count."""
        self.period_ns = period_ns
        self._counters = counters
        self._counts = counts
        self._rate = _Rate(period_ns)
        self.fit = self._new_fit()
        self._recent: deque[_Seen] = deque(maxlen=REORDER_PACKETS)  # in order of their counters
        self._before: _Seen | None = None  # newest packet of the connection before
        self._held: deque[tuple[_Seen, Batch]] = deque()
        self._counted = 0  # of counted samples: how many were taken in this run, with those that were lost
        self._newest_ns: int | None = None  # of samples placed by arrival

    def connected(self) -> None:
        """The link was made anew: what comes now is a new run of the clock."""
        if self._recent:
            self._before = self._recent[-1]
        self._recent.clear()
        self._drop_held()
        if self._counters is not None:
            self.fit = self._new_fit()
            self._counted = 0

    @property
    def has_counters(self) -> bool:
        """Whether there is anything to fit; samples are placed by their arrival otherwise."""
        return self._counters is not None

    @property
    def bound_ns(self) -> int | None:
        """How far a sample's host time may be off, but for the link's least delay; None while it cannot be said.

        Of counted samples, so many may have been lost unseen as make :data:`LATE_NS`. Samples that are placed by their
        arrival are off by whatever the link delayed them.
        """
        if self._counters is None or self.fit.bound_ns is None:
            return None
        counted = self._counters.sequence_wrap is None and self._counters.clock_wrap_ns is None
        return self.fit.bound_ns + (LATE_NS if counted else 0)

    def take(self, batch: Batch, arrival_ns: int) -> list[Placed]:
        """Place a batch; usually one comes out, none for one that is dropped or held back, more after a restart."""
        if self._counters is None:
            return [self._by_arrival(batch, arrival_ns)]
        if self._counters.sequence_wrap is None and self._counters.clock_wrap_ns is None:
            return self._by_count(batch, arrival_ns)
        return self._by_counters(batch, arrival_ns)

    def _new_fit(self) -> ClockFit:
        return ClockFit(self._counters.drift_ppm) if self._counters is not None else ClockFit()

    # --- neither clock nor rate: the newest sample is of now ----------------------------------------------------------

    def _by_arrival(self, batch: Batch, arrival_ns: int) -> Placed:
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
        return Placed(self.fit, times, batch)

    # --- a steady rate, but neither clock nor counter: samples are counted --------------------------------------------

    def _by_count(self, batch: Batch, arrival_ns: int) -> list[Placed]:
        first_ns = (self._counted + sum(held.count for _, held in self._held)) * self.period_ns
        last_ns = first_ns + (batch.count - 1) * self.period_ns
        seen = _Seen(0, first_ns, first_ns, last_ns, batch.count, arrival_ns)
        late_ns = self._late_ns(seen)
        if late_ns <= LATE_NS and not self._held:
            return [self._place_counted(seen, batch)]
        self._held.append((seen, batch))
        if late_ns <= LATE_NS:  # it has caught up: all were late, none was lost
            return self._place_held(0)
        recent = [self._late_ns(held) for held, _ in self._held if held.arrival_ns >= arrival_ns - CATCH_UP_NS]
        if arrival_ns - self._held[0][0].arrival_ns >= CATCH_UP_NS:
            # At its pace again and as late as ever: by so much time samples are missing before those held.
            missing = round(min(recent) / self.period_ns)
            self._counts.lost += missing
            return self._place_held(missing)
        return []

    def _late_ns(self, seen: _Seen) -> int:
        return seen.arrival_ns - self.fit.line.to_host(seen.last_ns) if self._counted else 0

    def _place_held(self, missing: int) -> list[Placed]:
        self._counted += missing
        shift_ns = missing * self.period_ns
        placed = []
        for seen, batch in self._held:
            moved = _Seen(
                0,
                seen.stamp_ns + shift_ns,
                seen.first_ns + shift_ns,
                seen.last_ns + shift_ns,
                seen.count,
                seen.arrival_ns,
            )
            placed.append(self._place_counted(moved, batch))
        self._held.clear()
        return placed

    def _place_counted(self, seen: _Seen, batch: Batch) -> Placed:
        self._counted += seen.count
        self.fit.observe(seen.last_ns, seen.arrival_ns)
        return Placed(self.fit, self._times(seen), batch)

    # --- a counter or a clock -----------------------------------------------------------------------------------------

    def _by_counters(self, batch: Batch, arrival_ns: int) -> list[Placed]:
        if not self._recent:
            first = self._see(batch, arrival_ns)
            if self._before is not None and not self._went_on(self._before, batch, arrival_ns):
                return self._restart_or_hold(batch, arrival_ns)
            self._drop_held()
            return [self._open_run(first, batch)]
        newest = self._recent[-1]
        seen = self._see(batch, arrival_ns, newest)
        if seen.key <= newest.key and any(seen.key == old.key for old in self._recent):
            self._counts.duplicated += 1
            return []
        if self._follows(newest, seen, self.fit):
            self._drop_held()
            self._learn_rate(newest, seen)
            self._counts.lost += self._missing(newest, seen)
            self._counts.wraps += self._wraps(newest, seen)
            self._recent.append(seen)
            return [self._place(seen, batch)]
        if self._fills_a_hole(seen):
            self._drop_held()
            self._counts.lost -= 1
            self._counts.out_of_order += 1
            ordered = sorted([*self._recent, seen], key=lambda s: s.key)
            self._recent = deque(ordered, maxlen=REORDER_PACKETS)
            return [self._place(seen, batch)]
        return self._restart_or_hold(batch, arrival_ns)

    def _see(self, batch: Batch, arrival_ns: int, reference: _Seen | None = None) -> _Seen:
        """The batch with its counters unwrapped, to lie less than half a turn from those of ``reference``."""
        counters = self._counters
        assert counters is not None
        sequence, stamp_ns = batch.sequence or 0, batch.clock_ns or 0
        if reference is not None and counters.sequence_wrap is not None:
            sequence = _nearest(sequence, reference.sequence, counters.sequence_wrap)
        if counters.clock_wrap_ns is None:  # packets are numbered, and hold equally many samples
            stamp_ns = sequence * batch.count * self.period_ns
        elif reference is not None:
            stamp_ns = _nearest(stamp_ns, reference.stamp_ns, counters.clock_wrap_ns)
        span_ns = round((batch.count - 1) * self._rate.period_ns)
        first_ns = stamp_ns - span_ns if counters.stamps_last else stamp_ns
        return _Seen(sequence, stamp_ns, first_ns, first_ns + span_ns, batch.count, arrival_ns)

    def _numbered(self) -> bool:
        return self._counters is not None and self._counters.sequence_wrap is not None

    def _follows(self, old: _Seen, new: _Seen, clock: ClockFit | None) -> bool:
        """Whether ``new`` can come after ``old`` in one run: later, not overlapping, and not outrunning the host.

        ``clock``: the run's; None for packets that are held back.
        """
        steps = new.sequence - old.sequence if self._numbered() else 1
        passed_ns = new.stamp_ns - old.stamp_ns
        between = new.count if self._stamps_last() else old.count
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

    def _stamps_last(self) -> bool:
        return self._counters is not None and self._counters.stamps_last

    def _learn_rate(self, old: _Seen, new: _Seen) -> None:
        if self._counters is not None and self._counters.clock_wrap_ns is not None and self._missing(old, new) == 0:
            self._rate.observe(new.stamp_ns - old.stamp_ns, new.count if self._stamps_last() else old.count)

    def _missing(self, old: _Seen, new: _Seen) -> int:
        """How many packets were sent between two and did not come."""
        if self._numbered():
            return new.sequence - old.sequence - 1
        span = (new.count if self._stamps_last() else old.count) * self._rate.period_ns
        return max(0, round((new.stamp_ns - old.stamp_ns) / span) - 1)

    def _went_on(self, old: _Seen, batch: Batch, arrival_ns: int) -> bool:
        """Whether the device clock went on while the link was down."""
        counters = self._counters
        assert counters is not None
        if counters.clock_wrap_ns is None:
            # Of a counter that wraps within minutes there is no knowing; it is believed.
            return True
        expected_ns = old.stamp_ns + arrival_ns - old.arrival_ns
        return abs(_nearest(batch.clock_ns or 0, expected_ns, counters.clock_wrap_ns) - expected_ns) < RECONNECT_NS

    def _fills_a_hole(self, seen: _Seen) -> bool:
        """Whether a packet lies between two neighbours in counter and clock, without overlap."""
        earlier = [old for old in self._recent if old.key < seen.key]
        later = [old for old in self._recent if old.key > seen.key]
        if not earlier or not later:
            return False
        if self._numbered() and any(old.sequence == seen.sequence for old in self._recent):
            return False
        slack_ns = self.period_ns / 2
        return (
            earlier[-1].last_ns + self.period_ns - slack_ns <= seen.first_ns
            and seen.last_ns + self.period_ns <= later[0].first_ns + slack_ns
        )

    def _restart_or_hold(self, batch: Batch, arrival_ns: int) -> list[Placed]:
        seen = self._see(batch, arrival_ns)
        if self._held:
            seen = self._see(batch, arrival_ns, self._held[-1][0])
            if any(seen.key == old.key for old, _ in self._held):
                self._counts.duplicated += 1
                return []
            if not self._follows(self._held[-1][0], seen, None):
                self._drop_held()
                seen = self._see(batch, arrival_ns)
        self._held.append((seen, batch))
        host_ns = arrival_ns - self._held[0][0].arrival_ns
        device_ns = seen.stamp_ns - self._held[0][0].stamp_ns
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
        for seen, batch in held:
            self._learn_rate(self._recent[-1], seen)
            self._recent.append(seen)
            placed.append(self._place(seen, batch))
        return placed

    def _open_run(self, first: _Seen, batch: Batch) -> Placed:
        self.fit = self._new_fit()
        self._recent.clear()
        self._recent.append(first)
        return self._place(first, batch)

    def _place(self, seen: _Seen, batch: Batch) -> Placed:
        self.fit.observe(seen.last_ns, seen.arrival_ns)
        return Placed(self.fit, self._times(seen), batch)

    def _times(self, seen: _Seen) -> NDArray[np.int64]:
        if seen.count == 1:
            return np.array([seen.first_ns], np.int64)
        step = (seen.last_ns - seen.first_ns) / (seen.count - 1)
        times: NDArray[np.int64] = seen.first_ns + np.rint(np.arange(seen.count) * step).astype(np.int64)
        return times

    def _drop_held(self) -> None:
        self._counts.implausible += len(self._held)
        self._held.clear()

    def _wraps(self, old: _Seen, new: _Seen) -> int:
        counters = self._counters
        assert counters is not None
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
