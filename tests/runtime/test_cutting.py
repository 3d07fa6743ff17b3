"""Windows cut hop by hop are what a fresh cut gives, and the next window has the same bits where it is settled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from armlet_runtime.modalities import Modality
from armlet_runtime.signals.clock_fit import ClockFit, Line
from armlet_runtime.signals.packet_clock import clock_of
from armlet_runtime.signals.placement import Counts
from armlet_runtime.signals.sample_ring import Run, SampleRing
from armlet_runtime.signals.window_cutter import HELD_WITHIN_NS, Cut, Cutter
from armlet_runtime.windows import fill_gaps, resample, sample_times
from tests.support.made_devices import CLOCKED, LEAST_NS, START_NS, Device, Sent

RATE_HZ, PERIOD_NS = 50.0, 20_000_000
SAMPLES, HOP = 64, 8
HOP_NS = HOP * PERIOD_NS
ACC = Modality("acc", ("number", "rough"), "g", RATE_HZ)


@dataclass
class Stream:
    """A made device's packets on their way into a ring, as a wearable puts them there."""

    device: Device
    ring: SampleRing = field(default_factory=lambda: SampleRing(ACC, 3_000_000_000))

    def __post_init__(self) -> None:
        self.clock = clock_of(self.device.counters, self.device.group.period_ns, Counts())

    def take(self, sent: Sent) -> None:
        for placed in self.clock.place(sent.batch, sent.arrival_ns):
            if placed.replaces is not None:
                self.ring.drop(placed.replaces)
            self.ring.add(placed.clock, placed.times_ns, rough(placed.batch.values["acc"]))


def rough(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Samples (n, 2): their numbers, a straight line however it is interpolated, and what is never straight."""
    return np.hstack([numbers, np.sin(numbers**2)])


@dataclass(frozen=True)
class Hop:
    """A window as it was cut, as a new cutter cuts it at that moment, and how many points it shares with the last."""

    end_ns: int
    window: NDArray[np.float32]
    fresh: NDArray[np.float32]
    same: int
    lines: Mapping[Run, Line]


def hops(stream: Stream, packets: Iterable[Sent], wait_ns: int = 80_000_000) -> Iterator[Hop]:
    """Feed a stream, and cut each window so long after its end, or later if no packet comes."""
    cutter: Cutter | None = None
    end_ns, before = 0, None
    for sent in packets:
        while cutter is not None and sent.arrival_ns > end_ns + wait_ns:
            cut, fresh = cutter.cut(end_ns), Cutter(stream.ring, ACC, SAMPLES, HOP_NS).cut(end_ns)
            is_what_the_held_lines_give(cutter, cut, end_ns)
            same = 0
            if before is not None:
                equal = (before[:, HOP:] == cut.window[:, :-HOP]).all(axis=0)
                same = int(np.argmin(equal)) if not equal.all() else SAMPLES - HOP
            yield Hop(end_ns, cut.window, fresh.window, same, dict(cutter.lines))
            before, end_ns = cut.window, end_ns + HOP_NS
        stream.take(sent)
        if cutter is None and stream.ring.runs:
            cutter = Cutter(stream.ring, ACC, SAMPLES, HOP_NS)
            end_ns = stream.ring.newest_ns() + SAMPLES * PERIOD_NS


def is_what_the_held_lines_give(cutter: Cutter, cut: Cut, end_ns: int) -> None:
    """The rule, spelled out: all samples by the held lines, which are near the clocks' own, resampled at once."""
    for run, line in cutter.lines.items():
        for host_ns in (end_ns - SAMPLES * PERIOD_NS, end_ns):
            device_ns = line.to_device(host_ns)
            assert abs(run.clock.line.to_host(device_ns) - line.to_host(device_ns)) <= HELD_WITHIN_NS
    times, values = cutter.ring.samples(end_ns, cutter.lines)
    received = np.isfinite(values[:, 0])
    grid = sample_times(0.0, RATE_HZ, SAMPLES)
    whole, covered = resample(times[received] / 1e9, values[received], grid, 1 / RATE_HZ)
    np.testing.assert_allclose(cut.window.T, fill_gaps(whole, covered), rtol=1e-6, atol=1e-6)
    assert cut.coverage == covered.mean()
    up_to_end = times[received & (times <= 0)]
    assert (cut.age_ns is None) == (len(up_to_end) == 0)
    assert cut.age_ns is None or abs(cut.age_ns + up_to_end[-1]) <= 1  # ns, of rounding
    assert cut.total == cutter.ring.total - (times[received] > 0).sum()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    ppm=st.sampled_from([-100.0, 0.0, 100.0]),
    rate_hz=st.sampled_from([50.0, 49.6, 51.3]),
    per_packet=st.sampled_from([1, 2, 5]),
    restart_s=st.none() | st.floats(2.0, 6.0),
    stamps_last=st.booleans(),
    wait_ns=st.sampled_from([0, 80_000_000, 700_000_000]),
    fates=st.dictionaries(st.integers(0, 300), st.sampled_from(["late", "nan", "link", "early"]), max_size=20),
)
def test_a_window_is_what_a_fresh_cut_gives(
    seed: int,
    ppm: float,
    rate_hz: float,
    per_packet: int,
    restart_s: float | None,
    stamps_last: bool,
    wait_ns: int,
    fates: dict[int, str],
) -> None:
    """Drift, jitter, loss, bursts, a restart, new links, packets out of order, early stamps, NaN, and a busy host."""
    counters = replace(CLOCKED, stamps_last=stamps_last)
    device = Device(ppm, rate_hz, per_packet, counters, nominal_hz=RATE_HZ, restart_s=restart_s)
    stream = Stream(device)
    packets, linked = [], set[int]()
    for n, sent in enumerate(device.packets(7.0, seed)):
        batch, arrival_ns, fate = sent.batch, sent.arrival_ns, fates.get(n)
        if fate == "late":
            arrival_ns += 150_000_000
        elif fate == "nan":
            batch = replace(batch, values={"acc": np.full((per_packet, 1), np.nan, np.float32)})
        elif fate == "early":
            assert batch.clock_ns is not None
            batch = replace(batch, clock_ns=batch.clock_ns - 15_000_000)
        elif fate == "link":
            linked.add(arrival_ns)
        packets.append(Sent(sent.taken_ns, arrival_ns, batch))

    def fed() -> Iterator[Sent]:
        for sent in sorted(packets, key=lambda sent: sent.arrival_ns):
            if sent.arrival_ns in linked:
                stream.clock.connected()
            yield sent

    compared = 0
    for hop in hops(stream, fed(), wait_ns):
        # Values number the samples: 100 us are 0.005 of one, and a little more where they come closer.
        inner = well_surrounded(stream.ring, hop.end_ns)
        away = np.abs(hop.window - hop.fresh)[0, inner]
        assert (away <= 1.3 * HELD_WITHIN_NS / PERIOD_NS).all()
        compared += inner.sum()
    assert compared > 300


def well_surrounded(ring: SampleRing, end_ns: int) -> NDArray[np.bool_]:
    """Which grid points have evenly spaced samples of one run for 2.5 periods on each side."""
    times, values = ring.samples(end_ns)
    grid_ns = sample_times(0.0, RATE_HZ, SAMPLES) * 1e9
    steps, one_by_one = np.diff(times) / PERIOD_NS, np.diff(values[:, 0]) == 1
    even = np.concatenate([[False], (np.abs(steps - 1) < 0.1) & one_by_one, [False]])
    uneven = np.concatenate([[0], np.cumsum(~even)])  # before each step, one at either end included
    first, last = np.searchsorted(times, (grid_ns - 2.5 * PERIOD_NS, grid_ns + 2.5 * PERIOD_NS))
    return np.asarray(uneven[last + 1] == uneven[first])


@pytest.mark.parametrize(("loss", "bursts", "least"), [(0.0, False, 0.95), (0.05, False, 0.8), (0.05, True, 0.7)])
def test_settled_points_stay_the_same_bits(loss: float, bursts: bool, least: float) -> None:
    """With 5 to 60 ms of jitter, after 10 s: in most hops only the newest few points are not what they were."""
    same = []
    for seed in range(3):
        device = Device(50.0, loss=loss, bursts=bursts)
        same += [hop.same for hop in hops(Stream(device), device.packets(60.0, seed))][60:]
    assert len(same) > 800
    assert np.mean(np.array(same) >= SAMPLES - HOP - 4) >= least


def test_the_stated_bound_holds_for_all_samples_of_a_window() -> None:
    """By the lines that are held, up to 100 us from the clocks' own: with jitter, loss and stalls, from 10 s on."""
    kept = []
    for seed, ppm in enumerate((-100.0, 0.0, 100.0)):
        stream = Stream(Device(ppm))
        for hop in hops(stream, stream.device.packets(40.0, seed)):
            bound_ns = stream.clock.bound_ns
            if hop.end_ns < START_NS + 10_000_000_000 or bound_ns is None:
                continue
            times, values = stream.ring.samples(hop.end_ns, hop.lines)
            taken_ns = START_NS + np.rint(values[:, 0] * 1e9 / RATE_HZ).astype(np.int64)
            errors = times + hop.end_ns - taken_ns - LEAST_NS  # the least delay cannot be seen
            kept.append(np.abs(errors[(times > -SAMPLES * PERIOD_NS) & (times <= 0)]).max() <= bound_ns)
    assert len(kept) > 500 and np.mean(kept) >= 0.99


def ring_of(*parts: tuple[ClockFit, range]) -> SampleRing:
    """Samples whose values number them, one a chunk, in runs of clocks."""
    ring = SampleRing(ACC, 3_000_000_000)
    for clock, numbers in parts:
        for number in numbers:
            assert ring.add(clock, np.array([number * PERIOD_NS]), rough(np.full((1, 1), number, np.float32)))
    return ring


def clock_at(offset_ns: int) -> ClockFit:
    clock = ClockFit()
    clock.observe(0, offset_ns)
    return clock


def test_a_late_packet_is_put_into_what_was_settled() -> None:
    clock = clock_at(START_NS + 3_000_000)
    ring = ring_of((clock, range(60)), (clock, range(61, 80)))
    cutter = Cutter(ring, ACC, SAMPLES, HOP_NS)
    end_ns = START_NS + 70 * PERIOD_NS
    assert cutter.cut(end_ns).coverage == 1 - 1 / SAMPLES
    assert ring.add(clock, np.array([60 * PERIOD_NS]), rough(np.full((1, 1), 60, np.float32)))
    late = cutter.cut(end_ns + HOP_NS)
    assert late.coverage == 1 and np.allclose(np.diff(late.window[0, 4:]), 1, atol=1e-4)


def test_a_run_that_was_none_leaves_the_window() -> None:
    first, second = clock_at(START_NS), clock_at(START_NS)
    ring = ring_of((first, range(40)), (second, range(40, 80)))
    cutter = Cutter(ring, ACC, SAMPLES, HOP_NS)
    assert cutter.cut(START_NS + 70 * PERIOD_NS).coverage == 1
    ring.drop(first)
    cut = cutter.cut(START_NS + 78 * PERIOD_NS)
    assert cut.coverage == (78 - 40) / SAMPLES and cut.total == 40 - 1


def test_a_clock_that_moves_takes_the_window_along() -> None:
    """By less than the bound not; by more, all of it, and from then on the new line is held."""
    clock = clock_at(START_NS)
    ring = ring_of((clock, range(90)))
    cutter = Cutter(ring, ACC, SAMPLES, HOP_NS)
    before = cutter.cut(START_NS + 70 * PERIOD_NS).window
    clock.observe(1, START_NS - 90_000 + 1)
    stays = cutter.cut(START_NS + 78 * PERIOD_NS).window
    np.testing.assert_array_equal(stays[:, :-HOP], before[:, HOP:])
    clock.observe(2, START_NS - 110_000 + 2)
    moved = cutter.cut(START_NS + 86 * PERIOD_NS).window
    np.testing.assert_allclose(moved[0, :-HOP], stays[0, HOP:] + 0.0055, atol=1e-4)


@pytest.mark.parametrize(
    ("rate_hz", "hop_ns", "whole"),
    [(50.0, 320_000_000, True), (30.0, 333_333_333, True), (50.0, 330_000_000, False), (1.0, 320_000_000, False)],
)
def test_only_hops_of_whole_samples_hold_a_line(rate_hz: float, hop_ns: int, whole: bool) -> None:
    """Else the points of two windows are not the same, and each is cut by the line of its moment."""
    period_ns = round(1e9 / rate_hz)
    modality, clock = Modality("m", ("i",), "g", rate_hz), clock_at(START_NS)
    ring = SampleRing(modality, 100 * period_ns)
    assert ring.add(clock, np.arange(100) * period_ns, np.arange(100, dtype=np.float32)[:, None])
    cutter = Cutter(ring, modality, 20, hop_ns)
    end_ns = START_NS + 50 * period_ns
    cutter.cut(end_ns)
    clock.observe(1, START_NS - 50_000 + 1)
    held = cutter.cut(end_ns + hop_ns).window
    fresh = Cutter(ring, modality, 20, hop_ns).cut(end_ns + hop_ns).window
    assert np.array_equal(held, fresh) == (not whole)
    np.testing.assert_allclose(held, fresh, atol=50e-6 * rate_hz + 1e-4)
