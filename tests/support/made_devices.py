"""Made devices, for tests and figures of the clocks: packets of a wearable with a drifting clock over a bad link."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.modalities import Modality
from armlet_runtime.signals.packet_clock import clock_of
from armlet_runtime.signals.placement import Counts, Placed
from armlet_runtime.wearables.profile import Batch, Counters, Group

START_NS = 3_600_000_000_000
LEAST_NS, MOST_NS = 5_000_000, 60_000_000  # delays of arrivals
LOSS = 0.05
BURST_EVERY_S = (2.0, 8.0)
BURST_S = (0.1, 1.0)
BURST_GAP_NS = 2_000_000

CLOCKED = Counters(1 << 16, 1 << 48)


@dataclass(frozen=True)
class Sent:
    """One packet: when its last sample was taken, when it arrives, and what it holds."""

    taken_ns: int
    arrival_ns: int
    batch: Batch


@dataclass
class Device:
    """A wearable, and its link.

    Attributes:
        ppm: How fast its clock is.
        rate_hz: Of its samples, by its own clock.
        per_packet: Samples of a packet.
        counters: What it counts.
        nominal_hz: Rate that it claims; its own if None.
        restart_s: When it restarts, if it does.
        loss: Share of packets that never arrive.
        bursts: Whether the link stalls now and then, and gives all at once.
    """

    ppm: float = 0.0
    rate_hz: float = 50.0
    per_packet: int = 2
    counters: Counters = CLOCKED
    nominal_hz: float | None = None
    restart_s: float | None = None
    loss: float = LOSS
    bursts: bool = True

    @property
    def group(self) -> Group:
        return Group("made", (Modality("acc", ("i",), "g", self.nominal_hz or self.rate_hz),), self.counters)

    def packets(self, seconds: float, seed: int) -> Iterator[Sent]:
        """What arrives within so many seconds; channel ``i`` numbers the samples."""
        rng = random.Random(seed)
        group = self.group
        epoch_ns, sequence = rng.randrange(1 << 40), rng.randrange(1 << 16)
        arrival_ns = stalled_until = 0
        next_stall = START_NS + round(rng.uniform(*BURST_EVERY_S) * 1e9)
        restarted = self.restart_s is None
        for n in range(round(seconds * self.rate_hz / self.per_packet)):
            first = n * self.per_packet
            taken = [START_NS + round((first + i) * 1e9 / self.rate_hz) for i in range(self.per_packet)]
            if not restarted and self.restart_s is not None and taken[0] >= START_NS + self.restart_s * 1e9:
                epoch_ns, sequence, restarted = rng.randrange(1 << 40), rng.randrange(1 << 16), True
            delayed = taken[-1] + rng.randint(LEAST_NS, MOST_NS)
            if self.bursts and taken[-1] > next_stall:
                stalled_until = taken[-1] + round(rng.uniform(*BURST_S) * 1e9)
                next_stall = taken[-1] + round(rng.uniform(*BURST_EVERY_S) * 1e9)
            if delayed < stalled_until:
                delayed = stalled_until + rng.randint(0, BURST_GAP_NS)
            if rng.random() < self.loss:
                continue
            arrival_ns = max(arrival_ns + 1, delayed)
            clock = [epoch_ns + round((one - START_NS) * (1 + self.ppm * 1e-6)) for one in taken]
            stamp = clock[-1] if self.counters.stamps_last else clock[0]
            values = np.arange(first, first + self.per_packet, dtype=np.float32)[:, None]
            batch = Batch(
                group,
                {"acc": values},
                (sequence + n) % self.counters.sequence_wrap if self.counters.sequence_wrap else None,
                stamp % self.counters.clock_wrap_ns if self.counters.clock_wrap_ns else None,
            )
            yield Sent(taken[-1], arrival_ns, batch)


@dataclass
class Aligned:
    """How well a clock did, one row a packet.

    Attributes:
        at_s: When, since the first packet.
        error_ms: Host time of the newest sample, less when it was taken and the link's least delay.
        bound_ms: The bound stated at that moment; NaN if none was.
        arrival_ms: What the arrival's own time would have been off by.
        counts: Of the packets.
    """

    at_s: NDArray[np.float64]
    error_ms: NDArray[np.float64]
    bound_ms: NDArray[np.float64]
    arrival_ms: NDArray[np.float64]
    counts: Counts


def align(device: Device, seconds: float, seed: int) -> Aligned:
    """Let a device's packets go through a clock."""
    counts = Counts()
    clock = clock_of(device.counters, device.group.period_ns, counts)
    rows = []
    for sent in device.packets(seconds, seed):
        placed: list[Placed] = clock.place(sent.batch, sent.arrival_ns)
        for one in placed:
            number = int(one.batch.values["acc"][-1, 0])
            taken_ns = START_NS + round(number * 1e9 / device.rate_hz)
            error_ns = one.clock.line.to_host(int(one.times_ns[-1])) - taken_ns - LEAST_NS
            bound_ns = clock.bound_ns
            rows.append(
                (
                    (sent.arrival_ns - START_NS) / 1e9,
                    error_ns / 1e6,
                    np.nan if bound_ns is None else bound_ns / 1e6,
                    (sent.arrival_ns - taken_ns - LEAST_NS) / 1e6,
                )
            )
    at_s, error, bound, arrival = np.array(rows, np.float64).T
    return Aligned(at_s, error, bound, arrival, counts)
