"""The clocks on made devices: how far off, how well the bound holds, and for how much memory."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from armlet_runtime.signals.clock_fit import BINS, LONGEST_BIN_NS, ClockFit
from armlet_runtime.signals.counter_clock import CounterClock
from armlet_runtime.signals.packet_clock import LATE_NS, clock_of
from armlet_runtime.signals.placement import Counts
from armlet_runtime.wearables.profile import SENSOR_DRIFT_PPM, Batch, Counters
from tests.support.made_devices import CLOCKED, LEAST_NS, START_NS, Aligned, Device, align

Float64 = NDArray[np.float64]

SETTLED_S = 10.0


def settled(runs: list[Aligned], after_s: float = SETTLED_S) -> tuple[Float64, Float64, Float64]:
    """Errors, bounds and arrivals' errors of all runs, once they have run for so long."""
    late = [run.at_s >= after_s for run in runs]
    return (
        np.abs(np.concatenate([run.error_ms[keep] for run, keep in zip(runs, late, strict=True)])),
        np.concatenate([run.bound_ms[keep] for run, keep in zip(runs, late, strict=True)]),
        np.concatenate([run.arrival_ms[keep] for run, keep in zip(runs, late, strict=True)]),
    )


@pytest.mark.parametrize("restart_s", [None, 25.0])
def test_alignment_on_a_bad_link(restart_s: float | None) -> None:
    """+-100 ppm, 5 to 60 ms of jitter, 5 % loss, bursts, a restart; the figures that the design asks for."""
    runs = [
        align(Device(ppm, restart_s=restart_s), 40.0, seed) for seed in range(4) for ppm in (-100.0, -30.0, 0.0, 100.0)
    ]
    errors, bounds, arrivals = settled(runs)
    if restart_s is None:
        assert np.isfinite(bounds).all()
    else:  # a restarted clock is not valid at once, and says so
        assert all(run.counts.restarts == 1 for run in runs)
        stated = np.isfinite(bounds)
        assert 0.9 < stated.mean() < 1
        at = np.concatenate([run.at_s[run.at_s >= SETTLED_S] for run in runs])
        assert at[~stated].min() > 25 and at[~stated].max() < 29
        settled_again = (at < 25) | (at > 25 + SETTLED_S)
        errors, bounds, arrivals = errors[settled_again], bounds[settled_again], arrivals[settled_again]
    assert np.median(errors) <= 1.0
    assert np.percentile(errors, 99) <= 5.0
    assert (errors <= bounds).mean() >= 0.99
    assert np.percentile(arrivals, 95) >= 10 * np.percentile(errors, 95)
    assert np.median(bounds) < 10.0, "a bound that is always large says nothing"


@pytest.mark.parametrize("ppm", [-100.0, -20.0, 0.0, 100.0])
def test_drift_is_found(ppm: float) -> None:
    device = Device(ppm)
    counts = Counts()
    clock = clock_of(device.counters, device.group.period_ns, counts)
    for sent in device.packets(240.0, 1):
        clock.place(sent.batch, sent.arrival_ns)
    assert clock.fit.drift_ppm == pytest.approx(ppm, abs=5.0)
    assert clock.bound_ns is not None and clock.bound_ns < 2_000_000


def test_a_fit_says_when_it_is_not_valid_yet() -> None:
    fit = ClockFit()
    for n in range(100):
        assert fit.valid == (n * 40 >= 2000 + 40) and (fit.bound_ns is not None) == fit.valid
        fit.observe(n * 40_000_000, START_NS + n * 40_000_000 + LEAST_NS)
    assert fit.bound_ns == 100_000 and fit.line.to_host(5) == START_NS + LEAST_NS + 5
    assert fit.line.to_host(np.array([7, 8], np.int64)).tolist() == [START_NS + LEAST_NS + 7, START_NS + LEAST_NS + 8]


@pytest.mark.parametrize("step_ms", [-40, 40])
def test_a_clock_that_is_set_is_followed(step_ms: int) -> None:
    """A jump too small to be a restart: the envelope must not hang on to what was before."""
    fit, rng = ClockFit(), np.random.default_rng(1)
    for n in range(50 * 60):
        device_ns = n * 20_000_000
        step_ns = step_ms * 1_000_000 if n > 25 * 60 else 0
        fit.observe(device_ns - step_ns, START_NS + device_ns + int(rng.integers(0, 30_000_000)))
    error_ns = fit.line.to_host(device_ns - step_ns) - START_NS - device_ns
    assert abs(error_ns) < 3_000_000


def test_memory_is_the_same_for_ever() -> None:
    """A day of packets, and each size is that of the first hour."""
    fit = ClockFit()
    sizes = []
    for n in range(24 * 3600 * 2):
        fit.observe(n * 500_000_000, START_NS + n * 500_000_000 + n * 7919 % 50_000_000)
        if n % 7200 == 7199:
            sizes.append(len(fit._bins))
    assert max(sizes) <= BINS and sys.getsizeof(fit._bins) < 10_000
    assert fit._bins[-1][0] - fit._bins[0][0] <= BINS * LONGEST_BIN_NS
    clock = CounterClock(CLOCKED, 20_000_000, Counts())
    for sent in Device(bursts=False).packets(600.0, 1):
        clock.place(sent.batch, sent.arrival_ns)
    assert len(clock._recent) <= 64 and len(clock._held) <= 64 and len(clock._rate._steps) <= 256


@pytest.mark.parametrize("stamps_last", [False, True])
@pytest.mark.parametrize("off", [-0.03, -0.01, 0.01, 0.03])
def test_a_rate_that_is_not_what_it_claims(off: float, stamps_last: bool) -> None:
    """73 samples a packet, as an H10's ECG: by its own clock they are closer or further apart than nominal."""
    counters = Counters(clock_wrap_ns=1 << 64, stamps_last=stamps_last)
    device = Device(20.0, 130.0 * (1 + off), 73, counters, nominal_hz=130.0, loss=0.0, bursts=False)
    counts = Counts()
    clock = clock_of(counters, device.group.period_ns, counts)
    samples = 0
    for sent in device.packets(60.0, 1):
        for placed in clock.place(sent.batch, sent.arrival_ns):
            samples += placed.batch.count
            if samples > 73 * 8:
                step_ns = np.diff(placed.times_ns)
                assert step_ns == pytest.approx(1e9 / device.rate_hz, rel=2e-3)
    assert counts.implausible == counts.lost == counts.restarts == 0
    assert samples >= 73 * (int(60 * device.rate_hz / 73) - 1)


def test_a_numbered_stream_without_a_clock() -> None:
    counters = Counters(sequence_wrap=1 << 16, drift_ppm=SENSOR_DRIFT_PPM)
    runs = [
        align(Device(0.0, 256.0 * (1 + off), 12, counters, nominal_hz=256.0), 60.0, seed)
        for seed in range(2)
        for off in (0, 0.003)
    ]
    errors, bounds, arrivals = settled(runs, 20.0)
    assert np.median(errors) <= 2.0 and np.percentile(errors, 95) * 10 <= np.percentile(arrivals, 95)
    assert (errors <= bounds).mean() >= 0.99
    assert all(run.counts.lost > 20 and run.counts.restarts == 0 for run in runs)


def test_counted_samples_keep_their_bound() -> None:
    """Neither clock nor counter: samples are counted, and what the wearable had no room for is noticed."""
    counters = Counters(drift_ppm=SENSOR_DRIFT_PPM)
    runs = [align(Device(0.0, 50.0 * 1.002, 1, counters, nominal_hz=50.0, loss=0.0), 60.0, seed) for seed in range(3)]
    errors, bounds, arrivals = settled(runs, 20.0)
    assert np.percentile(errors, 95) * 10 <= np.percentile(arrivals, 95)
    assert (errors <= bounds).mean() >= 0.99 and np.nanmin(bounds) >= LATE_NS / 1e6
    assert all(run.counts.lost == 0 for run in runs)


def test_counted_samples_that_are_lost_are_a_gap_not_stretched_time() -> None:
    counts = Counts()
    device = Device(counters=Counters(drift_ppm=SENSOR_DRIFT_PPM), per_packet=1, loss=0.0, bursts=False)
    clock = clock_of(device.counters, device.group.period_ns, counts)
    worst_ns = 0
    for n, sent in enumerate(device.packets(30.0, 1)):
        if 750 <= n < 800:  # a second that the wearable did not send
            continue
        for placed in clock.place(sent.batch, sent.arrival_ns):
            number = int(placed.batch.values["acc"][0, 0])
            error_ns = placed.clock.line.to_host(int(placed.times_ns[0])) - START_NS - number * 20_000_000 - LEAST_NS
            worst_ns = max(worst_ns, abs(error_ns)) if number > 500 else worst_ns
    assert 48 <= counts.lost <= 51 and worst_ns < 60_000_000


def test_a_mad_first_packet_is_taken_back() -> None:
    """Nothing can be held against the first packet of all; the next two do, and no 200 ms are lost."""
    counts = Counts()
    device = Device(loss=0.0, bursts=False)
    clock = clock_of(CLOCKED, 20_000_000, counts)
    packets = list(device.packets(1.0, 1))
    mad = Batch(device.group, packets[0].batch.values, 40_000, 1 << 45)
    (first,) = clock.place(mad, packets[0].arrival_ns - 1)
    assert clock.place(packets[0].batch, packets[0].arrival_ns) == []
    placed = clock.place(packets[1].batch, packets[1].arrival_ns)
    assert [one.replaces for one in placed] == [first.clock, None]
    assert [one.batch for one in placed] == [packets[0].batch, packets[1].batch]
    assert (counts.implausible, counts.restarts, counts.lost) == (1, 0, 0)
    assert all(len(clock.place(sent.batch, sent.arrival_ns)) == 1 for sent in packets[2:])
