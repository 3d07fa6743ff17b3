"""Clocks and streams on made wearables: whatever happens to packets, no sample ever lies at a wrong time."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from armlet_runtime.modalities import Modality
from armlet_runtime.signals.clock_fit import ClockFit
from armlet_runtime.signals.sample_ring import SampleRing
from armlet_runtime.signals.wearable import Wearable
from armlet_runtime.signals.window_cutter import Cutter
from armlet_runtime.wearables import heart_rate, imu

RATE_HZ = 50.0
PERIOD_NS = 20_000_000
INFO = imu.ImuInfo(RATE_HZ, {"acc": 1.0})
START_NS = 3_600_000_000_000
FAST_NS, SLOW_NS = 5_000_000, 60_000_000  # delays of arrivals


def acc_packet(sequence: int, clock_us: int, taken_ns: list[int]) -> bytes:
    """A packet whose samples say when they were taken: x in whole seconds, y in ms, z in steps of 50 us."""
    since = np.array(taken_ns) - START_NS
    x, rest = np.divmod(since, 10**9)
    y, rest = np.divmod(rest, 10**6)
    values = np.stack([x, y, rest // 50_000], axis=1).astype(np.float32)
    return imu.encode_data(INFO, sequence, clock_us, {"acc": values})


def taken_at(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """When the samples of :func:`acc_packet` were taken (ns)."""
    x, y, z = values.astype(np.int64).T
    taken: NDArray[np.int64] = START_NS + x * 10**9 + y * 10**6 + z * 50_000
    return taken


def errors_ns(wearable: Wearable, at_ns: int) -> NDArray[np.int64]:
    """How much later than taken each kept sample is believed to be."""
    times, values = wearable.rings["acc"].samples(at_ns)
    assert (np.diff(times) > 0).all()
    return times + at_ns - taken_at(values)


@dataclass
class Made:
    """A wearable with a clock of its own."""

    ppm: float = 0.0
    clock_us: int = 0
    sequence: int = 0
    per_packet: int = 2
    index: int = 0

    def packet(self) -> tuple[int, bytes]:
        """The next packet, and when its last sample was taken."""
        indices = range(self.index, self.index + self.per_packet)
        taken = [START_NS + round(i * PERIOD_NS / (1 + self.ppm * 1e-6)) for i in indices]
        clock_us = self.clock_us + self.index * PERIOD_NS // 1000
        data = acc_packet(self.sequence + self.index // self.per_packet, clock_us, taken)
        self.index += self.per_packet
        return taken[-1], data


def linked() -> Wearable:
    wearable = Wearable("w", keep_ns=5_000_000_000)
    wearable.connected()
    wearable.info(imu.INFO_UUID, imu.encode_info(INFO))
    return wearable


@pytest.mark.parametrize("ppm", [-100.0, 0.0, 100.0])
def test_clock_of_a_minute_on_a_jittery_lossy_link(ppm: float) -> None:
    rng = random.Random(1)
    made, wearable, worst, arrival_ns = Made(ppm, clock_us=2**32 - 20_000_000, sequence=65_000), linked(), 0, 0
    for n in range(3 * 60 * 25):
        taken_ns, data = made.packet()
        if rng.random() < 0.05:
            continue
        arrival_ns = max(arrival_ns, taken_ns + rng.randint(FAST_NS, SLOW_NS))
        wearable.data(imu.DATA_UUID, data, arrival_ns)
        if n > 250:
            late = errors_ns(wearable, arrival_ns)
            assert late.min() > 0
            worst = max(worst, int(late.max()))
    assert worst < FAST_NS + 5_000_000  # the least delay cannot be seen
    counts = wearable.counts["imu"]
    assert counts.wraps == 2 and counts.restarts == 0 and counts.implausible == 0
    assert 100 < counts.lost < 400 and counts.samples == 2 * counts.packets


@st.composite
def journeys(draw: st.DrawFn) -> list[str]:
    """What happens to each packet of a run; the first and last ones arrive."""
    fates = st.sampled_from(["come"] * 12 + ["lose", "twice", "cut", "grow", "late", "mad", "restart"])
    return ["come"] * 8 + draw(st.lists(fates, min_size=20, max_size=150)) + ["come"] * 12


@settings(max_examples=120, deadline=None)
@given(
    fates=journeys(),
    seed=st.integers(0, 2**16),
    ppm=st.sampled_from([-100.0, 0.0, 100.0]),
    clock_us=st.integers(0, 2**32 - 1) | st.just(2**32 - 500_000),
    sequence=st.integers(0, 2**16 - 1) | st.just(2**16 - 20),
    per_packet=st.sampled_from([1, 2, 5]),
)
def test_no_journey_puts_a_sample_at_a_wrong_time(
    fates: list[str], seed: int, ppm: float, clock_us: int, sequence: int, per_packet: int
) -> None:
    rng = random.Random(seed)
    made = Made(ppm, clock_us, sequence, per_packet)
    wearable = linked()
    events: list[tuple[int, bytes]] = []
    expected = dict.fromkeys(("duplicated", "malformed"), 0)
    for fate in fates:
        if fate == "restart":
            made.clock_us = rng.randrange(2**32) - made.index * PERIOD_NS // 1000
            made.sequence = rng.randrange(2**16) - made.index // per_packet
        taken_ns, data = made.packet()
        arrival_ns = taken_ns + rng.randint(FAST_NS, 15_000_000)
        if fate == "lose":
            continue
        if fate == "late":
            arrival_ns += rng.randint(20_000_000, 300_000_000)
        if fate == "cut":
            data, expected["malformed"] = data[: rng.randrange(len(data))], expected["malformed"] + 1
        if fate == "grow":
            data, expected["malformed"] = data + b"\0" * rng.randint(1, 50), expected["malformed"] + 1
        if fate == "mad":
            at = (rng.randrange(2**16), rng.randrange(2**32))
            events.append((arrival_ns - 1, acc_packet(*at, [START_NS + 20_000 * 10**9])))
        events.append((arrival_ns, data))
        if fate == "twice":
            events.append((arrival_ns + rng.randint(1, 50_000_000), data))
            expected["duplicated"] += 1
    restarted = "restart" in fates
    for arrival_ns, data in sorted(events, key=lambda event: event[0]):
        wearable.data(imu.DATA_UUID, data, arrival_ns)
        if "acc" in wearable.rings and wearable.rings["acc"].total:
            late = errors_ns(wearable, arrival_ns)
            assert late.min() > 0, "a sample lies before it was taken"
            assert late.max() < 320_000_000, "a sample lies too late"
    counts = wearable.counts["imu"]
    assert counts.packets == len(events) and counts.malformed == expected["malformed"]
    if not restarted:
        assert counts.restarts == 0
        # The twin that comes first is taken; a late one may be either.
        assert counts.duplicated == expected["duplicated"]
        assert counts.implausible == fates.count("mad")
        assert counts.lost == fates.count("lose") + expected["malformed"]
        assert counts.samples == per_packet * (len(fates) - counts.lost)
        assert errors_ns(wearable, events[-1][0])[-20:].max() < 16_000_000


@pytest.mark.parametrize("seconds_before", [1, 10, 100])
@pytest.mark.parametrize("to_zero", [True, False])
def test_restart_within_a_link_opens_a_new_run(seconds_before: int, to_zero: bool) -> None:
    """Also one after which the counters repeat what they were: that is no old packets coming again."""
    made, wearable = Made(clock_us=0 if to_zero else 7_000_000, sequence=0 if to_zero else 500), linked()
    for _ in range(25 * seconds_before):
        taken_ns, data = made.packet()
        wearable.data(imu.DATA_UUID, data, taken_ns + FAST_NS)
    again = Made(clock_us=0 if to_zero else 3_000_000_000, sequence=0 if to_zero else 40_000)
    offset_ns = made.index * PERIOD_NS + 3_000_000_000
    for n in range(100):
        taken = [START_NS + offset_ns + (2 * n + i) * PERIOD_NS for i in range(2)]
        data = acc_packet(again.sequence + n, again.clock_us + 2 * n * 20_000, taken)
        wearable.data(imu.DATA_UUID, data, taken[-1] + FAST_NS)
        late = errors_ns(wearable, taken[-1])
        assert late.min() > 0 and late.max() <= FAST_NS + 100_000
    counts = wearable.counts["imu"]
    assert counts.restarts == 1 and counts.lost == 0
    times, _ = wearable.rings["acc"].samples(taken[-1])
    new = times[times > -4_100_000_000]
    assert len(new) >= 200 - 2 * 30  # of a run that repeats its first second, that much is taken for repeats


def test_an_old_stretch_that_comes_again_in_a_burst_is_no_restart() -> None:
    made, wearable = Made(), linked()
    sent = []
    for _ in range(200):
        taken_ns, data = made.packet()
        sent.append(data)
        wearable.data(imu.DATA_UUID, data, taken_ns + FAST_NS)
    for n, data in enumerate(sent[:60]):
        wearable.data(imu.DATA_UUID, data, taken_ns + FAST_NS + 1 + n * 100_000)
    for _ in range(50):
        taken_ns, data = made.packet()
        wearable.data(imu.DATA_UUID, data, taken_ns + FAST_NS)
        assert errors_ns(wearable, taken_ns).max() <= FAST_NS + 100_000
    counts = wearable.counts["imu"]
    assert (counts.restarts, counts.implausible, counts.lost) == (0, 60, 0)


def test_a_new_link_opens_a_new_run_and_knows_a_restart() -> None:
    made, wearable = Made(), linked()
    for pause_s, restart in ((0, False), (7, False), (3, True)):
        made.index += 50 * pause_s
        if pause_s:
            wearable.disconnected()
            assert not wearable.linked
            wearable.connected()
            wearable.info(imu.INFO_UUID, imu.encode_info(INFO))
        if restart:
            made.clock_us -= 5_000_000
        for _ in range(50):
            taken_ns, data = made.packet()
            wearable.data(imu.DATA_UUID, data, taken_ns + FAST_NS)
            assert errors_ns(wearable, taken_ns).max() <= FAST_NS + 100_000
    counts = wearable.counts["imu"]
    assert (counts.connections, counts.restarts, counts.lost, counts.samples) == (3, 1, 0, 300)


def test_a_packet_of_before_the_link_loss_does_not_open_the_new_run() -> None:
    made, wearable = Made(), linked()
    packets = [made.packet() for _ in range(400)]
    for taken_ns, data in packets[:200]:
        wearable.data(imu.DATA_UUID, data, taken_ns + FAST_NS)
    wearable.disconnected()
    wearable.connected()
    wearable.info(imu.INFO_UUID, imu.encode_info(INFO))
    wearable.data(imu.DATA_UUID, packets[150][1], packets[299][0])
    for taken_ns, data in packets[300:]:
        wearable.data(imu.DATA_UUID, data, taken_ns + FAST_NS)
        assert (errors_ns(wearable, taken_ns) == FAST_NS).all()
    counts = wearable.counts["imu"]
    assert (counts.implausible, counts.restarts, counts.samples) == (1, 0, 600)


def test_a_burst_after_a_stall_finds_its_times() -> None:
    """Packets of 2 s that were held and come at once belong to those 2 s; also if they are the first of the link."""
    for before in (0, 100):
        made, wearable = Made(), linked()
        for _ in range(before):
            taken_ns, data = made.packet()
            wearable.data(imu.DATA_UUID, data, taken_ns + FAST_NS)
        held = [made.packet() for _ in range(50)]
        for n, (_, data) in enumerate(held):
            wearable.data(imu.DATA_UUID, data, held[-1][0] + FAST_NS + n * 50_000)
        late = errors_ns(wearable, held[-1][0])
        assert late.min() > 0 and late.max() < FAST_NS + 50 * 50_000 + 100_000
        assert wearable.counts["imu"].samples == 2 * (before + 50)


def test_memory_stays_bounded() -> None:
    made, wearable = Made(per_packet=5), linked()
    for _ in range(20_000):
        taken_ns, data = made.packet()
        wearable.data(imu.DATA_UUID, data, taken_ns + FAST_NS)
    times, values = wearable.rings["acc"].samples(taken_ns)
    assert 250 <= len(times) == len(values) <= 260  # 5 s at 50 Hz, and the chunk at the edge


@given(st.lists(st.integers(0, 60), min_size=1, max_size=60), st.integers(20, 2_000))
def test_looking_at_the_samples_changes_nothing(order: list[int], keep_ms: int) -> None:
    """A ring that is looked at after every packet holds what one holds that is looked at once, whatever comes when."""
    modality = Modality("acc", ("x",), "g", RATE_HZ)
    clock = ClockFit()
    clock.observe(START_NS, START_NS)
    looked, blind = SampleRing(modality, keep_ms * 1_000_000), SampleRing(modality, keep_ms * 1_000_000)
    for place in order:
        # Three samples each, which reach into the next packet's first period when they are stamped a little late.
        first = START_NS + place * 3 * PERIOD_NS + (place % 5) * 1_000_000
        times = first + np.arange(3) * PERIOD_NS
        values = np.full((3, 1), place, np.float32)
        assert looked.add(clock, times, values) == blind.add(clock, times.copy(), values)
        seen_times, seen = looked.samples(0)
        assert (np.diff(seen_times) > 0).all() and len(seen_times) == len(seen)
    for one, other in zip(looked.samples(0), blind.samples(0), strict=True):
        np.testing.assert_array_equal(one, other)


def test_heart_rate_lies_at_its_arrivals() -> None:
    wearable = Wearable("strap", keep_ns=5_000_000_000)
    wearable.connected()
    arrivals = [START_NS + round((n + 0.05 * (n % 3)) * 1e9) for n in range(8)]
    for n, arrival_ns in enumerate(arrivals):
        assert wearable.data(heart_rate.MEASUREMENT_UUID, bytes([0, 60 + n]), arrival_ns) == ["hr"]
    times, values = wearable.rings["hr"].samples(0)
    assert times.tolist()[-5:] == arrivals[-5:] and values[-1, 0] == 67
    cut = Cutter(wearable.rings["hr"], heart_rate.MODALITY, 3, 1_000_000_000).cut(arrivals[-1])
    assert cut.coverage == 1 and cut.age_ns == 0 and cut.total == 8
    assert cut.window.shape == (1, 3) and np.allclose(cut.window[0], [64, 65, 66], atol=0.2)


def test_a_window_is_cut_on_the_model_s_grid() -> None:
    modality = Modality("acc", ("x", "y", "z"), "g", 50.0)
    ring, clock = SampleRing(modality, 10_000_000_000), ClockFit()
    times = np.arange(200) * PERIOD_NS
    clock.observe(int(times[-1]), int(times[-1]) + START_NS)
    wave = np.sin(2 * np.pi * 1.5 * times / 1e9).astype(np.float32)
    for i in range(0, 200, 4):
        if 80 <= i < 100:
            continue
        assert ring.add(clock, times[i : i + 4], np.stack([wave[i : i + 4]] * 3, axis=1))
    assert not ring.add(clock, times[8:12] + 1, np.zeros((4, 3), np.float32)), "it overlaps"
    end_ns = START_NS + int(times[150]) + 7_000_000
    cut = Cutter(ring, modality, 100, 500_000_000).cut(end_ns)
    grid = (end_ns - START_NS - np.arange(100, 0, -1) * PERIOD_NS) / 1e9
    got = np.abs(cut.window[0] - np.sin(2 * np.pi * 1.5 * grid))
    received = (grid < times[79] / 1e9) | (grid > times[100] / 1e9)
    assert received.sum() == 79 and got[received].max() < 5e-3  # linear beside the gap
    assert 0.79 <= cut.coverage <= 0.81 and cut.age_ns == 7_000_000
    assert cut.total == 180 - 49  # all but those after the end


def test_bytes_before_the_info_are_malformed_not_a_crash() -> None:
    wearable = Wearable("w", keep_ns=5_000_000_000)
    wearable.connected()
    assert wearable.data(imu.DATA_UUID, acc_packet(0, 0, [START_NS]), START_NS) == []
    wearable.info(imu.INFO_UUID, b"\1\0")
    assert wearable.counts["imu"].malformed == 2 and "IMU info" in wearable.problem
    assert wearable.data("00002a19-0000-1000-8000-00805f9b34fb", b"\x64", START_NS) == []


def test_a_mad_first_packet_leaves_no_samples() -> None:
    made, wearable = Made(), linked()
    mad = acc_packet(40_000, 2_000_000_000, [START_NS + 20_000 * 10**9] * 2)
    wearable.data(imu.DATA_UUID, mad, START_NS + FAST_NS - 1)
    for _ in range(50):
        taken_ns, data = made.packet()
        wearable.data(imu.DATA_UUID, data, taken_ns + FAST_NS)
    assert (errors_ns(wearable, taken_ns) == FAST_NS).all()
    counts = wearable.counts["imu"]
    assert (counts.implausible, counts.restarts, counts.lost) == (1, 0, 0)
    assert wearable.rings["acc"].total == 100
