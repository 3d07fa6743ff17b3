"""Recordings as the live loop takes them: streams as packets and back, other rates, what people bring decided on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.errors import DataError, PacketError
from armlet_runtime.formats import empatica
from armlet_runtime.formats.polar_logger import read as read_polar
from armlet_runtime.live.core import LiveCore
from armlet_runtime.modalities import Modality
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.signals.conversion import packets_of, with_streams
from armlet_runtime.signals.rate_conversion import at_rate
from armlet_runtime.signals.recording import Packet, Recording, Stream
from armlet_runtime.signals.wearable import Wearable
from armlet_runtime.wearables import imu
from armlet_runtime.wearables.replayed_samples import SOURCE, ReplayedDecoder, encode, encode_info

ACC = Modality("acc", ("x", "y", "z"), "g", 50.0)
GYRO = Modality("gyro", ("x", "y", "z"), "rad/s", 50.0)


@pytest.fixture
def model(small_draft: Path) -> Iterator[BundleModel]:
    draft = Draft(small_draft)
    made = BundleModel(draft.manifest, draft.read, "litert")
    yield made
    made.close()


def stream(modality: Modality, times_ns: np.ndarray, seed: int = 0) -> Stream:
    values = np.random.default_rng(seed).normal(size=(len(times_ns), len(modality.channels)))
    return Stream(modality, times_ns.astype(np.int64), values.astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.integers(1, 400_000_000), min_size=1, max_size=60),
    start=st.integers(0, 10**15),
    missing=st.booleans(),
)
def test_streams_are_the_same_after_a_replay(steps: list[int], start: int, missing: bool) -> None:
    """As packets, decoded again: every time to the nanosecond, every value to the bit."""
    acc = stream(ACC, start + np.cumsum(steps))
    gyro = stream(GYRO, start + np.cumsum(steps[::-1]), 1)
    if missing:
        gyro.values[0] = np.nan
    recording = Recording("walk", "anna", streams={"acc": acc, "gyro": gyro})
    packets, said = packets_of(recording, (ACC, GYRO))
    assert not said and [p.arrival_ns for p in packets] == sorted(p.arrival_ns for p in packets)
    back = with_streams(Recording("walk", "anna", packets=packets))
    for name, one in recording.streams.items():
        np.testing.assert_array_equal(back.streams[name].times_ns, one.times_ns)
        np.testing.assert_array_equal(back.streams[name].values, one.values)
        assert back.streams[name].modality == one.modality


@pytest.mark.parametrize("seed", range(3))
def test_packets_as_streams_hold_each_sample_once(seed: int) -> None:
    """However the clock is known better from packet to packet, over a bad link and a restart."""
    info = imu.ImuInfo(50.0, {"acc": 0.001})
    packets = [Packet(0, "w", "connected", "", b""), Packet(0, "w", "info", imu.INFO_UUID, imu.encode_info(info))]
    rng = np.random.default_rng(seed)
    arrival_ns, epoch_us, sent = 0, 0, []
    for number in range(1500):
        if number == 900:
            epoch_us = -17_000_000  # it began anew
        clock_us = epoch_us + round(number * 40_000 * (1 + 80e-6))
        values = np.full((2, 3), 0.001) * (2 * number + np.arange(2))[:, None]
        arrival_ns = max(arrival_ns, number * 40_000_000 + int(rng.integers(5_000_000, 60_000_000)))
        if rng.random() < 0.95:
            data = imu.encode_data(
                info, number - (900 if epoch_us else 0), clock_us, {"acc": values.astype(np.float32)}
            )
            packets.append(Packet(arrival_ns, "w", "data", imu.DATA_UUID, data))
            sent += [2 * number, 2 * number + 1]
    stream = with_streams(Recording("walk", "anna", packets=packets)).streams["acc"]
    numbers = np.rint(stream.values[:, 0] / 0.001).astype(int).tolist()
    assert len(numbers) == len(set(numbers)) and numbers == sorted(numbers)
    assert set(sent) - set(numbers) <= set(range(1790, 1810))  # by the restart, runs may overlap
    assert (np.diff(stream.times_ns) > 0).all()


def sines(rate_hz: float, *frequencies: float, seconds: float = 20.0) -> Stream:
    times = np.rint(np.arange(round(seconds * rate_hz)) * 1e9 / rate_hz)
    values = np.stack([np.sin(2 * np.pi * hz * times / 1e9) for hz in frequencies], axis=1)
    modality = Modality("acc", tuple("xyz")[: len(frequencies)], "g", rate_hz)
    return Stream(modality, times.astype(np.int64), values.astype(np.float32))


@pytest.mark.parametrize("rate_hz", [64.0, 100.0, 130.0, 256.0, 1000.0])
def test_a_lower_rate_keeps_what_it_can_carry_and_nothing_else(rate_hz: float) -> None:
    """5 Hz passes to within a hundredth, and 27 Hz and more would alias at 50 Hz, and are gone (60 dB down)."""
    brought = at_rate(sines(rate_hz, 5.0, 27.0, 0.45 * rate_hz), 50.0)
    assert brought.modality.rate_hz == 50.0 and np.diff(brought.times_ns).tolist() == [20_000_000] * (
        len(brought.times_ns) - 1
    )
    inside = (brought.times_ns > 3e9) & (brought.times_ns < 17e9)
    truth = np.sin(2 * np.pi * 5.0 * brought.times_ns[inside] / 1e9)
    assert np.abs(brought.values[inside, 0] - truth).max() < 0.01
    assert np.abs(brought.values[inside, 1:]).max() < 0.01


def test_a_higher_rate_is_interpolated() -> None:
    brought = at_rate(sines(32.0, 2.0), 50.0)
    truth = np.sin(2 * np.pi * 2.0 * brought.times_ns / 1e9)
    assert len(brought.times_ns) == 999 and np.abs(brought.values[:, 0] - truth).max() < 0.02


def test_gaps_stay_gaps_at_another_rate() -> None:
    whole = sines(100.0, 5.0)
    there = (whole.times_ns < 5e9) | (whole.times_ns >= 8e9)
    values = whole.values[there].copy()
    values[10:40] = np.nan  # not received
    brought = at_rate(Stream(whole.modality, whole.times_ns[there], values), 50.0)
    gaps = np.flatnonzero(np.diff(brought.times_ns) > 25_000_000)
    assert len(gaps) == 2 and brought.times_ns[gaps[1] + 1] == 8_000_000_000
    assert brought.times_ns[gaps[0]] <= 100_000_000 and brought.times_ns[gaps[0] + 1] >= 400_000_000
    assert np.isfinite(brought.values).all()
    empty = at_rate(Stream(whole.modality, whole.times_ns[:3], np.full((3, 1), np.nan, np.float32)), 50.0)
    assert not len(empty.times_ns)


def test_what_does_not_fit_the_model_is_told() -> None:
    times = np.arange(100) * 20_000_000
    other = Recording("r", "p", streams={"acc": stream(Modality("acc", ("a", "b"), "mg", 50.0), times)})
    with pytest.raises(DataError, match="'acc' is a, b in 'mg'; the model wants x, y, z in 'g'"):
        packets_of(other, (ACC, GYRO))
    with pytest.raises(DataError, match="the recording has nothing; the model wants acc, gyro"):
        packets_of(Recording("r", "p"), (ACC, GYRO))
    packets, said = packets_of(Recording("r", "p", streams={"gyro": stream(GYRO, times)}), (ACC, GYRO))
    assert len(packets) == 2 + 20 and not said


def decided(model: BundleModel, recording: Recording) -> set[tuple[str, ...]]:
    packets, _ = packets_of(recording, model.manifest.modalities)
    core = LiveCore(model)
    decisions = [one for packet in packets for one in core.packet(packet)] + core.advance(packets[-1].arrival_ns + 1)
    assert [one.index for one in decisions] == list(range(len(decisions))) and len(decisions) > 10
    return {one.subset for one in decisions}


def test_sessions_of_other_programs_are_decided_on(model: BundleModel) -> None:
    rows = "".join(f"{n % 50 - 25},{n % 7},64\n" for n in range(320))
    wrist = {"ACC.csv": f"1644226773.00, 1644226773.00, 1644226773.00\n32.0, 32.0, 32.0\n{rows}".encode()}
    assert decided(model, empatica.read(wrist, "wrist", "ben")) == {("acc",)}
    stamps = [
        (599616050941733632 + n * 19_230_769, f"2026-04-24T14:10:{15 + n // 52:02d}.{n % 52 * 19:03d}")
        for n in range(520)
    ]
    verity = [
        (
            f"Polar_VeritySense_0C301E3F_20260424_141015_{key}.txt",
            f"Phone timestamp;sensor timestamp [ns];{names}\n{text}".encode(),
        )
        for key, names, text in (
            (
                "ACC",
                "X [mg];Y [mg];Z [mg]",
                "".join(f"{phone};{sensor};{sensor % 97};5;1000\n" for sensor, phone in stamps),
            ),
            (
                "GYRO",
                "X [dps];Y [dps];Z [dps]",
                "".join(f"{phone};{sensor};{sensor % 89}.5;0;0\n" for sensor, phone in stamps),
            ),
        )
    ]
    assert decided(model, read_polar(verity, "arm", "ben")) == {("acc", "gyro")}


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_noise_in_played_packets_is_samples_or_a_packet_error(seed: int) -> None:
    rng = random.Random(seed)
    said = [
        ("info", encode_info([ACC, Modality("hr", ("bpm",), "bpm", 1.0)])),
        ("data", encode(0, np.array([20_000_000, 0]), np.zeros((2, 3), np.float32))),
        ("data", encode(1, np.array([0]), np.ones((1, 1), np.float32))),
    ]
    decoder, wearable = ReplayedDecoder(), Wearable("w", 10**9)
    for number in range(30):
        kind, data = said[number] if number < 3 else rng.choice(said)
        spoilt = bytearray(data)
        if number >= 3 and rng.random() < 0.7:
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(spoilt) + 1)
                spoilt[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        try:
            for batch in decoder.take(kind, SOURCE, bytes(spoilt)):
                assert batch.count > 0 and batch.before_ns is not None and batch.before_ns[-1] == 0
        except PacketError:
            pass
        wearable.take(Packet(10**12 + number * 10**7, "w", kind, SOURCE, bytes(spoilt)))
        for ring in wearable.rings.values():
            times, values = ring.samples(0)
            assert (np.diff(times) > 0).all() and len(times) == len(values)
