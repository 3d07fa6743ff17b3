"""Clocks: from a wearable's own counters to the host's monotonic clock.

A wearable stamps each packet with a counter and with its own clock; the host stamps the arrival. An arrival is never
earlier than the sample, and is later by a delay that varies (connection interval, retransmission, a busy host). So the
smallest difference ``arrival - device time`` seen lately is the best estimate of how far apart the two clocks are: a
lower envelope, which a late packet cannot disturb.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

from .wearables.profile import Batch, Counters

# Over how much of the host's time the smallest difference is looked for. Long enough to hold an undelayed packet on a
# busy link; short enough that a crystal 100 ppm off, the worst that Bluetooth's sleep clock commonly is, moves by 2 ms.
ENVELOPE_NS = 20_000_000_000

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


class ClockFit:
    """The offset of one run of a device clock from the host's clock, as the lower envelope over :data:`ENVELOPE_NS`."""

    def __init__(self) -> None:
        # Arrivals with their differences: both rise, so the first is the smallest of the window.
        self._differences: deque[tuple[int, int]] = deque()

    def observe(self, device_ns: int, arrival_ns: int) -> None:
        """Take in that the sample of ``device_ns`` had arrived at ``arrival_ns``; arrivals do not fall."""
        difference = arrival_ns - device_ns
        while self._differences and self._differences[-1][1] >= difference:
            self._differences.pop()
        self._differences.append((arrival_ns, difference))
        while self._differences[0][0] < arrival_ns - ENVELOPE_NS:
            self._differences.popleft()

    @property
    def offset_ns(self) -> int:
        """What to add to a device time to get the host's time. At least one observation must have been made."""
        return self._differences[0][1]


@dataclass
class Counts:
    """What became of the packets of one wearable's stream.

    Attributes:
        packets: All that arrived, good or not.
        samples: Samples taken in.
        lost: Packets that the counter says were sent and that never came, or came malformed (a late one is taken off
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
        device_ns: Device time of the first sample in that run, without wraps.
        batch: The samples.
    """

    clock: ClockFit
    device_ns: int
    batch: Batch


@dataclass(frozen=True)
class _Seen:
    """A packet whose counter and clock are unwrapped."""

    sequence: int
    clock_us: int
    count: int
    arrival_ns: int


class PacketClock:
    """Puts the packets of one wearable's stream in their place: unwraps, and tells loss, repeats and restarts apart.

    Packets that do not fit what came before are held back. If they go on among themselves for :data:`RESTART_NS`, the
    wearable has restarted, and they open a new run of the clock; if not, they are dropped. So a mad packet never puts a
    sample at a wrong time.
    """

    def __init__(self, counters: Counters | None, period_ns: int, counts: Counts) -> None:
        """``counters``: of the profile; ``period_ns``: nominal, of the samples; ``counts``: where to count."""
        self._counters = counters
        self.period_ns = period_ns
        self._counts = counts
        self._clock = ClockFit()
        self._recent: deque[_Seen] = deque(maxlen=REORDER_PACKETS)  # in order of their counters
        self._before: _Seen | None = None  # newest packet of the connection before
        self._held: list[tuple[_Seen, Batch]] = []

    def connected(self) -> None:
        """The link was made anew: what comes now is a new run of the clock."""
        if self._recent:
            self._before = self._recent[-1]
        self._recent.clear()
        self._drop_held()

    def take(self, batch: Batch, arrival_ns: int) -> list[Placed]:
        """Place a batch; usually one comes out, none for one that is dropped or held back, more after a restart."""
        if self._counters is None or batch.sequence is None or batch.clock_us is None:
            return [self._by_arrival(batch, arrival_ns)]
        if not self._recent:
            first = _Seen(batch.sequence, batch.clock_us, batch.count, arrival_ns)
            if self._before is not None and not self._went_on(self._before, first):
                return self._restart_or_hold(batch, arrival_ns)
            self._drop_held()
            return [self._open_run(first, batch)]
        newest = self._recent[-1]
        seen = self._unwrap(newest, batch, arrival_ns)
        if any((seen.sequence, seen.clock_us) == (old.sequence, old.clock_us) for old in self._recent):
            self._counts.duplicated += 1
            return []
        if self._follows(newest, seen, self._clock):
            self._drop_held()
            self._counts.lost += seen.sequence - newest.sequence - 1
            self._counts.wraps += self._wraps(newest, seen)
            self._recent.append(seen)
            return [self._place(seen, batch)]
        if self._fills_a_hole(seen):
            self._drop_held()
            self._counts.lost -= 1
            self._counts.out_of_order += 1
            self._recent = deque(sorted([*self._recent, seen], key=lambda s: s.sequence), maxlen=REORDER_PACKETS)
            return [self._place(seen, batch)]
        return self._restart_or_hold(batch, arrival_ns)

    def _by_arrival(self, batch: Batch, arrival_ns: int) -> Placed:
        # Without a clock of its own the device time is the arrival: the newest sample is of now.
        self._clock.observe(arrival_ns, arrival_ns)
        return Placed(self._clock, arrival_ns - max(batch.count - 1, 0) * self.period_ns, batch)

    def _unwrap(self, reference: _Seen, batch: Batch, arrival_ns: int) -> _Seen:
        """The batch's counters, wrapped to lie less than half a turn from those of ``reference``."""
        assert self._counters is not None and batch.sequence is not None and batch.clock_us is not None
        sequence = _nearest(batch.sequence, reference.sequence, self._counters.sequence_wrap)
        clock_us = _nearest(batch.clock_us, reference.clock_us, self._counters.clock_wrap_us)
        return _Seen(sequence, clock_us, batch.count, arrival_ns)

    def _follows(self, old: _Seen, new: _Seen, clock: ClockFit | None) -> bool:
        """Whether ``new`` can come after ``old`` in one run: later, not overlapping, and not outrunning the host.

        ``clock``: the run's; None for packets that are held back.
        """
        steps = new.sequence - old.sequence
        passed_ns = (new.clock_us - old.clock_us) * 1000
        # Each packet between the two held a sample at least; half a period of slack for a clock that is not exact.
        if steps <= 0 or passed_ns < (old.count + steps - 1.5) * self.period_ns:
            return False
        host_ns = new.arrival_ns - old.arrival_ns
        late_ns = 0
        if clock is not None:
            if new.arrival_ns - self._newest_sample_ns(new) - clock.offset_ns > LATEST_NS:
                return False
            late_ns = old.arrival_ns - self._newest_sample_ns(old) - clock.offset_ns  # it can have caught up by this
        return passed_ns <= host_ns + late_ns + max(old.count, new.count) * self.period_ns + OUTRUN_NS

    def _went_on(self, old: _Seen, new: _Seen) -> bool:
        """Whether the device clock went on while the link was down."""
        assert self._counters is not None
        expected_us = old.clock_us + (new.arrival_ns - old.arrival_ns) // 1000
        return (
            abs(_nearest(new.clock_us, expected_us, self._counters.clock_wrap_us) - expected_us) * 1000 < RECONNECT_NS
        )

    def _fills_a_hole(self, seen: _Seen) -> bool:
        """Whether a packet lies between two neighbours in counter and clock, without overlap."""
        earlier = [old for old in self._recent if old.sequence < seen.sequence]
        later = [old for old in self._recent if old.sequence > seen.sequence]
        if not earlier or not later or any(old.sequence == seen.sequence for old in self._recent):
            return False
        slack_us = self.period_ns / 2000
        after_earlier = earlier[-1].clock_us + earlier[-1].count * self.period_ns / 1000 - slack_us
        before_later = later[0].clock_us + slack_us
        return after_earlier <= seen.clock_us and seen.clock_us + seen.count * self.period_ns / 1000 <= before_later

    def _restart_or_hold(self, batch: Batch, arrival_ns: int) -> list[Placed]:
        assert batch.sequence is not None and batch.clock_us is not None
        seen = _Seen(batch.sequence, batch.clock_us, batch.count, arrival_ns)
        if self._held:
            seen = self._unwrap(self._held[-1][0], batch, arrival_ns)
            if any((seen.sequence, seen.clock_us) == (old.sequence, old.clock_us) for old, _ in self._held):
                self._counts.duplicated += 1
                return []
            if not self._follows(self._held[-1][0], seen, None):
                self._drop_held()
                seen = _Seen(batch.sequence, batch.clock_us, batch.count, arrival_ns)
        self._held.append((seen, batch))
        host_ns = arrival_ns - self._held[0][0].arrival_ns
        device_ns = (seen.clock_us - self._held[0][0].clock_us) * 1000
        if host_ns >= RESTART_NS and abs(device_ns - host_ns) <= host_ns / 2:
            held, self._held = self._held, []
            self._counts.restarts += 1
            self._counts.lost += sum(b.sequence - a.sequence - 1 for (a, _), (b, _) in pairwise(held))
            placed = [self._open_run(*held[0])]
            for later, its_batch in held[1:]:
                self._recent.append(later)
                placed.append(self._place(later, its_batch))
            return placed
        if len(self._held) > REORDER_PACKETS:
            self._held.pop(0)
            self._counts.implausible += 1
        return []

    def _open_run(self, first: _Seen, batch: Batch) -> Placed:
        self._clock = ClockFit()
        self._recent.clear()
        self._recent.append(first)
        return self._place(first, batch)

    def _place(self, seen: _Seen, batch: Batch) -> Placed:
        self._clock.observe(self._newest_sample_ns(seen), seen.arrival_ns)
        return Placed(self._clock, seen.clock_us * 1000, batch)

    def _newest_sample_ns(self, seen: _Seen) -> int:
        return seen.clock_us * 1000 + (seen.count - 1) * self.period_ns

    def _drop_held(self) -> None:
        self._counts.implausible += len(self._held)
        self._held = []

    def _wraps(self, old: _Seen, new: _Seen) -> int:
        assert self._counters is not None
        by_sequence = new.sequence // self._counters.sequence_wrap - old.sequence // self._counters.sequence_wrap
        by_clock = new.clock_us // self._counters.clock_wrap_us - old.clock_us // self._counters.clock_wrap_us
        return by_sequence + by_clock


def _nearest(value: int, reference: int, modulus: int) -> int:
    """The number congruent to ``value`` that is nearest to ``reference``."""
    half = modulus // 2
    return reference + (value - reference + half) % modulus - half
