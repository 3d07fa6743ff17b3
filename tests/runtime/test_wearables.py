"""Wearable profiles: bytes become samples, or a PacketError, and nothing else."""

import struct
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armlet_runtime.errors import PacketError
from armlet_runtime.signals.wearable import Wearable
from armlet_runtime.wearables import heart_rate, imu
from armlet_runtime.wearables.registry import (
    PROFILES,
    profile_of_characteristic,
    profiles_of_advertisement,
    profiles_of_services,
)

INFO = imu.ImuInfo(50.0, {"acc": 1 / 8192, "gyro": 1 / 1000})
PACKET = imu.encode_data(INFO, 7, 1_000, {name: np.ones((3, 3), np.float32) for name in INFO.scales})


def test_profiles_are_found_by_what_wearables_show() -> None:
    for profile in PROFILES:
        assert all(profile_of_characteristic(source) is profile for source in profile.sources)
        for service in profile.services:
            assert profiles_of_services(["0000180f-0000-1000-8000-00805f9b34fb", service]) == [profile]
        for service in profile.services + profile.advertised:
            assert profile in profiles_of_advertisement("anything", [service])
        for name in profile.names:
            assert profile in profiles_of_advertisement(f"{name} 1234", [])
    assert profiles_of_advertisement(None, []) == []
    assert profile_of_characteristic("00002a19-0000-1000-8000-00805f9b34fb") is None
    uuids = [u for profile in PROFILES for u in profile.services + profile.advertised + profile.sources]
    assert all(uuid == str(UUID(uuid)) for uuid in uuids)  # bleak gives them so
    sources = [source for profile in PROFILES for source in profile.sources]
    assert len(set(sources)) == len(sources)


@given(
    sequence=st.integers(0, 2**20),
    clock_us=st.integers(0, 2**40),
    raw=st.lists(st.tuples(*[st.integers(-32768, 32767)] * 6), min_size=1, max_size=40),
)
def test_imu_round_trip(sequence: int, clock_us: int, raw: list[tuple[int, ...]]) -> None:
    values = np.array(raw, np.float64).reshape(len(raw), 2, 3)
    scales = np.array([np.float32(scale) for scale in INFO.scales.values()], np.float64)
    samples = {name: (values[:, i] * scales[i]).astype(np.float32) for i, name in enumerate(INFO.scales)}
    decoder = imu.ImuProfile().decoder()
    assert decoder.take("info", imu.INFO_UUID, imu.encode_info(INFO)) == []
    (batch,) = decoder.take("data", imu.DATA_UUID, imu.encode_data(INFO, sequence, clock_us, samples))
    assert (batch.sequence, batch.clock_ns, batch.count) == (sequence % 2**16, clock_us % 2**32 * 1000, len(raw))
    for i, name in enumerate(INFO.scales):
        assert np.array_equal(np.rint(batch.values[name] / scales[i]), values[:, i])


@settings(max_examples=300)
@given(data=st.data())
def test_changed_imu_packets_are_samples_or_a_packet_error(data: st.DataObject) -> None:
    changed = bytearray(PACKET)
    for _ in range(data.draw(st.integers(0, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    changed = changed[: data.draw(st.integers(0, len(changed)))] + data.draw(st.binary(max_size=8))
    try:
        packet = imu.decode_data(INFO, bytes(changed))
    except PacketError:
        return
    assert len(changed) == 8 + 12 * len(packet.samples["acc"])


@pytest.mark.parametrize(
    ("packet", "says"),
    [
        (b"", "shorter than its header"),
        (PACKET[:-1], "must be 44 bytes long, not 43"),
        (PACKET + b"\0", "must be 44 bytes long, not 45"),
        (b"\2" + PACKET[1:], "layout 2"),
        (struct.pack("<BBHI", 1, 0, 0, 0), "with 0 samples"),
    ],
)
def test_imu_packets_that_are_none(packet: bytes, says: str) -> None:
    with pytest.raises(PacketError, match=says):
        imu.decode_data(INFO, packet)


# Packets by the specification's own layout, not by our encoder.
@pytest.mark.parametrize(
    ("packet", "wanted"),
    [
        ("00 48", heart_rate.HeartRate(72)),
        ("01 2c 01", heart_rate.HeartRate(300)),
        ("06 50", heart_rate.HeartRate(80, contact=True)),
        ("04 50", heart_rate.HeartRate(80, contact=False)),
        ("08 50 0a 00", heart_rate.HeartRate(80, energy_kj=10)),
        ("10 3c 00 04 00 02", heart_rate.HeartRate(60, rr_s=(1.0, 0.5))),
        ("1f 3c 00 05 00 00 04", heart_rate.HeartRate(60, (1.0,), True, 5)),
        ("e0 48", heart_rate.HeartRate(72)),  # reserved flags are ignored
    ],
)
def test_heart_rate_by_the_specification(packet: str, wanted: heart_rate.HeartRate) -> None:
    assert heart_rate.decode(bytes.fromhex(packet)) == wanted


@pytest.mark.parametrize("packet", ["", "00", "01 48", "00 48 00", "08 48 00", "10 48 00", "08 48 00 00 00 00"])
def test_heart_rate_packets_that_are_none(packet: str) -> None:
    with pytest.raises(PacketError):
        heart_rate.decode(bytes.fromhex(packet))


@given(
    st.builds(
        heart_rate.HeartRate,
        st.integers(0, 65535),
        st.lists(st.integers(0, 65535).map(lambda n: n / 1024), max_size=9).map(tuple),
        st.none() | st.booleans(),
        st.none() | st.integers(0, 65535),
    )
)
def test_heart_rate_round_trip(measurement: heart_rate.HeartRate) -> None:
    assert heart_rate.decode(heart_rate.encode(measurement)) == measurement


def test_heart_rate_without_contact_is_no_sample() -> None:
    decoder = heart_rate.HeartRateProfile().decoder()

    def counts(packet: str) -> list[int]:
        return [b.count for b in decoder.take("data", heart_rate.MEASUREMENT_UUID, bytes.fromhex(packet))]

    assert [counts(packet) for packet in ("06 50", "04 50", "00 00", "16 50 00 04 00 02 00 00")] == [
        [1],
        [0],
        [0],
        [1, 2],
    ]
    assert {group.counters for group in decoder.groups} == {None}
    # The energy spent is the sensor's own sum.
    _, energy = decoder.take("data", heart_rate.MEASUREMENT_UUID, bytes.fromhex("0c 50 39 01"))
    assert energy.values["energy"].tolist() == [[313.0]] and energy.group.modalities[0].unit == "kJ"


def test_beats_lie_their_intervals_apart_whatever_the_arrivals() -> None:
    wearable = Wearable("strap", keep_ns=60_000_000_000)
    intervals = [800, 850, 790, 810, 900, 1000, 700, 805]
    at_ns = 0
    for n in range(0, 8, 2):
        at_ns += round(sum(intervals[n : n + 2]) / 1024 * 1e9)
        packet = struct.pack("<BBHH", 0x16, 72, *intervals[n : n + 2])
        wearable.data(heart_rate.MEASUREMENT_UUID, packet, at_ns + (n % 4) * 20_000_000)
    times, values = wearable.rings["rr"].samples(0)
    assert np.array_equal(np.rint(values[:, 0] * 1024), intervals)
    assert np.abs(np.diff(times) / 1e9 - values[1:, 0]).max() < 0.05
