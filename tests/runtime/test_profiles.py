"""The profiles' bytes: documented packets, other people's decoders as judges, starts and stops, and noise."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from armlet_runtime.errors import PacketError
from armlet_runtime.signals.recording import Packet
from armlet_runtime.signals.wearable import Wearable
from armlet_runtime.signals.window_cutter import Cutter
from armlet_runtime.wearables import (
    PROFILES,
    UNITS,
    Profile,
    Wanted,
    arduino,
    battery,
    device_information,
    movesense,
    muse,
    oximeter,
    polar,
    thermometer,
    thingy52,
    uart,
)
from armlet_runtime.wearables import ieee11073 as medical
from armlet_runtime.wearables.profile import Ask, Batch, Read, Step, Steps, Write

from .fuzz_decoders import changed, check, conversation, fuzz, fuzz_facts


def carry_out(steps: Steps, answers: Sequence[bytes] = ()) -> list[Step]:
    """Go through steps, giving the answers in order to those that want one."""
    left, done = list(answers), []
    try:
        step = next(steps)
        while True:
            done.append(step)
            step = steps.send(left.pop(0) if isinstance(step, Read | Ask) else b"")
    except StopIteration:
        return done


def written(steps: Sequence[Step]) -> list[str]:
    return [step.data.hex(" ") for step in steps if isinstance(step, Write | Ask)]


# --- every profile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_what_a_profile_says_of_itself(profile: Profile) -> None:
    decoder = profile.decoder()
    batches = [batch for said in conversation(profile) for batch in decoder.take(*said)]
    assert batches
    check(decoder, batches)
    for group in decoder.groups:
        assert group.name.split(".")[0] == profile.name
        assert len({modality.rate_hz for modality in group.modalities}) == 1
        for modality in group.modalities:
            assert modality.name in profile.carries and modality.unit == UNITS[modality.name]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_noise_is_samples_or_a_packet_error(profile: Profile, seed: int) -> None:
    fuzz(profile, 300, seed)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_noise_at_any_time_leaves_streams_in_order(profile: Profile, seed: int) -> None:
    """Decoder, clock and rings together: packets spoilt, repeated and reordered, at any times, and links that come and
    go. Nothing raises, nothing grows, and samples stay in order."""
    rng = random.Random(seed)
    said = conversation(profile)
    wearable = Wearable("w", 2_000_000_000)
    at_ns = 10**12
    for n in range(200):
        kind, source, data = said[n % len(said)] if rng.random() < 0.6 else rng.choice(said)
        at_ns += rng.choice((0, 1, 1_000_000, 20_000_000, 300_000_000, 5_000_000_000))
        if rng.random() < 0.02:
            wearable.take(Packet(at_ns, "w", rng.choice(("connected", "disconnected")), "", b""))
        wearable.take(Packet(at_ns, "w", kind, source, changed(data, rng) if rng.random() < 0.4 else data))
        for ring in wearable.rings.values():
            if ring.total:
                times, values = ring.samples(at_ns)
                assert len(times) == len(values) < 20_000 and (np.diff(times) > 0).all()
                Cutter(ring, ring.modality, 50, 1_000_000_000).cut(at_ns)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10)
def test_noise_in_what_wearables_say_of_themselves(seed: int) -> None:
    fuzz_facts(200, seed)


def test_facts() -> None:
    assert battery.decode(b"\x64") == 100 and battery.decode(battery.encode(7)) == 7
    for bad in (b"", b"\x65", b"\x01\x02"):
        with pytest.raises(PacketError, match="from 0 to 100"):
            battery.decode(bad)
    assert device_information.decode(b"Polar Electro Oy\0") == "Polar Electro Oy"
    assert device_information.decode(b"\xff\x1b[31m") == "\ufffd [31m"


# --- numbers of IEEE 11073 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "value"),
    [(0x0061, 97.0), (0xF3CA, 97.0), (0xF48D, 116.5), (0x1005, 50.0), (0xFFFF, -0.1), (0x07FD, 2045.0)],
)
def test_sfloat(raw: int, value: float) -> None:
    assert medical.sfloat(raw) == pytest.approx(value)


@pytest.mark.parametrize("raw", [0x07FE, 0x07FF, 0x0800, 0x0801, 0x0802])
def test_sfloat_that_is_no_number(raw: int) -> None:
    assert math.isnan(medical.sfloat(raw))


# 0xFF00016E is the example of the Health Thermometer's own specification: 36.6.
@pytest.mark.parametrize(
    ("raw", "value"), [(0xFF00016E, 36.6), (0x0000016E, 366.0), (0xFEFFFFF6, -0.1), (0x02000001, 100.0)]
)
def test_float(raw: int, value: float) -> None:
    assert medical.float32(raw) == pytest.approx(value)
    assert math.isnan(medical.float32(0x007FFFFF))


@given(st.floats(-200, 200), st.integers(0, 1))
def test_sfloat_round_trip(value: float, decimals: int) -> None:
    raw = medical.to_sfloat(value, decimals)
    assert medical.sfloat(raw) == pytest.approx(value, abs=0.51 / 10**decimals)
    assert medical.float32(medical.to_float32(value, decimals + 2)) == pytest.approx(
        value, abs=0.51 / 10 ** (decimals + 2)
    )


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(PacketError, match="does not fit 16 bits"):
        medical.to_sfloat(300.0, 1)
    assert math.isnan(medical.sfloat(medical.to_sfloat(math.nan, 0)))


# Packets by the layouts of the specifications.
@pytest.mark.parametrize(
    ("source", "packet", "wanted"),
    [
        (oximeter.CONTINUOUS_UUID, "00 61 00 48 00", (97.0, 72.0)),
        (oximeter.CONTINUOUS_UUID, "03 61 00 48 00 60 00 47 00 5f 00 46 00", (97.0, 72.0)),
        (oximeter.CONTINUOUS_UUID, "1c ca f3 48 00 20 00 00 00 00 12 00", (97.0, 72.0)),
        (oximeter.SPOT_UUID, "11 61 00 48 00 e8 07 02 1d 0c 1e 00", (97.0, 72.0)),
    ],
)
def test_oximeter(source: str, packet: str, wanted: tuple[float, float]) -> None:
    assert oximeter.decode(source, bytes.fromhex(packet)) == pytest.approx(wanted)
    (batch,) = oximeter.OximeterDecoder().take("data", source, bytes.fromhex(packet))
    assert (batch.values["spo2"].item(), batch.values["hr"].item()) == pytest.approx(wanted)


def test_oximeter_without_a_measurement_is_no_sample() -> None:
    decoder = oximeter.OximeterDecoder()
    for packet in ("00 ff 07 48 00", "00 61 00 ff 07", "00 65 00 48 00"):
        assert decoder.take("data", oximeter.CONTINUOUS_UUID, bytes.fromhex(packet))[0].count == 0


@pytest.mark.parametrize(
    ("packet", "celsius"),
    [("00 6e 01 00 ff", 36.6), ("01 da 03 00 ff", 37.0), ("06 6e 01 00 ff e8 07 02 1d 0c 1e 00 02", 36.6)],
)
def test_thermometer(packet: str, celsius: float) -> None:
    assert thermometer.decode(bytes.fromhex(packet)) == pytest.approx(celsius)
    (batch,) = thermometer.ThermometerDecoder().take("data", thermometer.FINAL_UUID, bytes.fromhex(packet))
    assert batch.values["temp"].item() == pytest.approx(celsius, abs=1e-4)


# --- Polar ------------------------------------------------------------------------------------------------------------

# What an H10 offers: its product page in Polar's SDK documentation.
H10_FEATURES = bytes.fromhex("0f 05 00")
H10_ECG = "f0 01 00 00 00 00 01 82 00 01 01 0e 00"
H10_ACC = "f0 01 02 00 00 00 04 19 00 32 00 64 00 c8 00 01 01 10 00 02 03 02 00 04 00 08 00"


def started(measurement: int, error: int = 0) -> bytes:
    return bytes([0xF0, 2, measurement, error, 0])


def test_starting_an_h10_writes_what_its_documentation_says() -> None:
    answers = [H10_FEATURES, bytes.fromhex(H10_ECG), started(0), bytes.fromhex(H10_ACC), started(2)]
    steps = carry_out(polar.PolarProfile().start(Wanted({"ecg": None, "acc": 200.0})), answers)
    assert written(steps) == [
        "01 00",
        "02 00 00 01 82 00 01 01 0e 00",
        "01 02",
        "02 02 00 01 c8 00 01 01 10 00 02 01 08 00",
    ]


def test_a_polar_that_runs_already_is_started_anew() -> None:
    answers = [H10_FEATURES, bytes.fromhex(H10_ECG), started(0, 6), b"\xf0\x03\x00\x00\x00", started(0)]
    steps = carry_out(polar.PolarProfile().start(Wanted({"ecg": None})), answers)
    assert [one[:5] for one in written(steps)] == ["01 00", "02 00", "03 00", "02 00"]
    assert written(carry_out(polar.PolarProfile().stop(Wanted({"ecg": None})), [b""])) == ["03 00"]


def test_a_polar_setting_of_newer_firmware_is_left_out() -> None:
    newer = bytes.fromhex(H10_ECG + "0b 02 01 02 03")
    steps = carry_out(polar.PolarProfile().start(Wanted({"ecg": None})), [H10_FEATURES, newer, started(0)])
    assert written(steps) == ["01 00", "02 00 00 01 82 00 01 01 0e 00"]
    # Of a stream that runs, an unknown setting may be what its samples are scaled by.
    with pytest.raises(PacketError, match="Polar setting 11 is unknown"):
        polar.decode_answer(started(0) + bytes.fromhex("0b 01 01"))
    with pytest.raises(PacketError, match="Polar setting 1 is cut off"):
        polar.decode_answer(bytes.fromhex(H10_ECG)[:-1])


def test_a_polar_that_refuses_says_why() -> None:
    answers = [H10_FEATURES, bytes.fromhex(H10_ECG), started(0, 13)]
    with pytest.raises(PacketError, match="ecg: it is in its charger"):
        carry_out(polar.PolarProfile().start(Wanted({"ecg": None})), answers)
    with pytest.raises(PacketError, match="starts nothing that is wanted"):
        carry_out(polar.PolarProfile().start(Wanted({"ppg": None})), [H10_FEATURES])


def running(measurement: int, rate: float = 52.0, factor: float | None = None) -> polar.PolarDecoder:
    decoder = polar.PolarDecoder()
    command = bytes([polar.START, measurement]) + polar.encode_settings({polar.RATE: (rate,)})
    settings: dict[int, tuple[float, ...]] = {} if factor is None else {polar.FACTOR: (factor,)}
    assert decoder.take("written", polar.CONTROL_UUID, command) == []
    answer = polar.encode_answer(polar.Answer(polar.START, measurement, polar.DONE, settings))
    assert decoder.take("data", polar.CONTROL_UUID, answer) == []
    return decoder


def test_polar_frames_by_the_specification() -> None:
    head = struct.pack("<BQB", polar.ECG, 599_618_164_814_402_794, 0)
    (batch,) = running(polar.ECG, 130.0).take(
        "data", polar.DATA_UUID, head + bytes.fromhex("01 00 00 ff ff ff 00 00 80")
    )
    assert batch.values["ecg"][:, 0] == pytest.approx([0.001, -0.001, -8388.608])
    assert batch.clock_ns == 599_618_164_814_402_794 and batch.group.counters is not None
    assert batch.group.counters.stamps_last
    head = struct.pack("<BQB", polar.ACC, 1, 1)
    (batch,) = running(polar.ACC).take("data", polar.DATA_UUID, head + struct.pack("<6h", 1, -2, 1000, 4, 5, -6))
    assert batch.values["acc"] == pytest.approx(np.array([[0.001, -0.002, 1.0], [0.004, 0.005, -0.006]]))


def test_a_known_compressed_frame() -> None:
    """The bytes of "testPmdDeltaFrameDecoder" in Polar's public SDK, with the samples that it expects."""
    frame = bytes.fromhex("ff ff ff ff ff ff 03 03 aa aa cc cf 03 02 aa aa cc")
    wanted = [[-1, -1, -1], [1, -4, 1], [-2, -2, 2], [1, -4, 1], [3, -7, 3], [0, -5, 4]]
    assert polar.expand(frame, 16, 3).tolist() == wanted


@given(
    st.integers(1, 4).flatmap(
        lambda channels: st.lists(
            st.lists(st.integers(-(2**15), 2**15 - 1), min_size=channels, max_size=channels), min_size=1, max_size=300
        )
    )
)
def test_compressing_round_trip(samples: list[list[int]]) -> None:
    array: NDArray[np.int64] = np.array(samples, np.int64)
    assert np.array_equal(polar.expand(polar.compress(array, 16), 16, array.shape[1]), array)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([key for key in polar.LAYOUTS if key not in ((polar.ACC, 2), (polar.MAG, 0x81))]),
    st.integers(2, 40),
    st.integers(0, 2**32 - 1),
)
def test_polar_python_reads_the_same(layout: tuple[int, int], count: int, seed: int) -> None:
    """The judge is zHElEARN's polar-python (MIT)."""
    judge = pytest.importorskip("polar_python.parsers", reason="polar-python is not installed")
    measurement, layout_byte = layout
    how = polar.LAYOUTS[layout]
    most = 1 << (how.bits - 2)
    raw = np.random.default_rng(seed).integers(-most, most, (count, how.channels))
    if layout_byte & polar.COMPRESSED:
        body = polar.compress(raw, how.bits)
    else:
        body = b"".join(int(one).to_bytes(how.bits // 8, "little", signed=True) for one in raw.reshape(-1))
    frame = polar.HEAD.pack(measurement, 5, layout_byte) + body
    factor = 0.25 if layout_byte & polar.COMPRESSED else 1.0
    (batch,) = running(measurement, factor=factor).take("data", polar.DATA_UUID, frame)
    (values,) = batch.values.values()
    read = judge.parse_polar_data(bytearray(frame), lambda _: factor)
    if measurement == polar.MAG:
        theirs = np.array([[one.x, one.y, one.z] for one in read.data]) * 100
    elif measurement == polar.GYRO:
        theirs = np.radians(np.array(read.data))
    elif measurement == polar.ACC:  # it cuts thousandths off
        assert values == pytest.approx(np.array(read.data) / 1000, abs=1.01e-3)
        return
    elif measurement == polar.PPG:
        # It gives no factor to light, nor does a sensor.
        theirs = np.array(read.samples) * factor
    else:
        theirs = np.array(read.data)[:, None] / 1000
    assert values == pytest.approx(theirs, rel=1e-6)


def test_polar_intervals_leave_out_those_of_a_moved_sensor() -> None:
    body = b"".join(struct.pack("<BHHB", 60, ms, 10, flags) for ms, flags in ((800, 6), (5, 7), (900, 6), (0, 6)))
    (batch,) = running(polar.PPI, 1.0).take("data", polar.DATA_UUID, polar.HEAD.pack(polar.PPI, 0, 0) + body)
    assert batch.values["rr"][:, 0] == pytest.approx([0.8, 0.9])
    assert batch.before_ns is not None and batch.before_ns.tolist() == [900_000_000, 0]


def test_a_frame_of_what_was_not_started_is_refused() -> None:
    with pytest.raises(PacketError, match="which was not started"):
        polar.PolarDecoder().take("data", polar.DATA_UUID, polar.HEAD.pack(polar.ECG, 0, 0) + bytes(3))


# --- Muse -------------------------------------------------------------------------------------------------------------


def test_muse_commands_as_the_public_clients_send_them() -> None:
    has = frozenset(muse.MuseProfile.sources)
    assert written(carry_out(muse.MuseProfile().start(Wanted({}, has)))) == ["02 68 0a", "04 70 35 30 0a", "02 64 0a"]
    without = written(carry_out(muse.MuseProfile().start(Wanted({}, has - muse.PPG_UUIDS.keys()))))
    assert without == ["02 68 0a", "04 70 32 31 0a", "02 64 0a"]


@settings(max_examples=60)
@given(
    st.sampled_from(sorted({*muse.EEG_UUIDS, *muse.PPG_UUIDS, muse.ACC_UUID, muse.GYRO_UUID})),
    st.binary(min_size=20, max_size=20),
)
def test_openble_muse_reads_the_same(source: str, packet: bytes) -> None:
    """The judge is openble-muse (MIT), whose gyroscope has the app's sign."""
    judge = pytest.importorskip("openble.muse.packets", reason="openble-muse is not installed")
    decoder = muse.MuseDecoder()
    reading = judge.decode(source, packet)
    theirs = np.array(reading.samples)
    sources = next((one for one in (muse.EEG_UUIDS, muse.PPG_UUIDS) if source in one), {source: ""})
    batches: list[Batch] = []
    for one in sources:
        batches += decoder.take("data", one, packet)
    (batch,) = batches
    (values,) = batch.values.values()
    assert batch.sequence == reading.sequence
    if source == muse.GYRO_UUID:
        theirs = -np.radians(theirs)
    assert values[:, : theirs.shape[1]] == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def test_muse_electrodes_are_joined_by_their_counter() -> None:
    decoder = muse.MuseDecoder()
    electrodes = list(muse.EEG_UUIDS)
    packets = {n: muse.encode_eeg(n, np.full(12, float(n), np.float32)) for n in range(20)}
    got: list[Batch] = []
    for n in range(20):
        for electrode in electrodes if n % 5 != 3 else electrodes[:-1]:  # one electrode's packet is lost
            got += decoder.take("data", electrode, packets[n])
    assert [batch.sequence for batch in got] == [n for n in range(20) if n % 5 != 3]
    assert all(batch.values["eeg"].shape == (12, 4) for batch in got)


def test_a_muse_counter_that_stayed_incomplete_is_not_completed_a_turn_later() -> None:
    """The counter wraps after 51 minutes, and what one electrode sent then belongs to no sample of today."""

    def sent(sequence: int, microvolts: float, sources: Iterable[str] = tuple(muse.EEG_UUIDS)) -> list[Batch]:
        data = muse.encode_eeg(sequence, np.full(muse.EEG_PER_PACKET, microvolts, np.float32))
        return [batch for source in sources for batch in decoder.take("data", source, data)]

    first, *others = muse.EEG_UUIDS
    decoder = muse.MuseDecoder()
    assert sent(5, 100.0, others) == []  # the packet of the first electrode is lost
    assert all(len(sent(sequence, 0.0)) == 1 for sequence in (*range(6, 400), *range(65_000, 65_536), *range(5)))
    assert sent(5, 0.0, [first]) == []
    (batch,) = sent(5, 0.0, others)
    assert np.abs(batch.values["eeg"]).max() < 1.0


def test_muse_packets_across_the_wrap_of_their_counter_still_meet() -> None:
    decoder = muse.MuseDecoder()
    data = muse.encode_eeg(muse.SEQUENCE_WRAP - 1, np.zeros(muse.EEG_PER_PACKET, np.float32))
    first, *others = muse.EEG_UUIDS
    assert all(decoder.take("data", source, data) == [] for source in others)
    after = muse.encode_eeg(0, np.zeros(muse.EEG_PER_PACKET, np.float32))
    assert sum(len(decoder.take("data", source, after)) for source in muse.EEG_UUIDS) == 1
    assert len(decoder.take("data", first, data)) == 1


# --- Movesense --------------------------------------------------------------------------------------------------------


def test_movesense_asks_for_the_least_that_has_what_is_wanted() -> None:
    ok = [bytes([1, 1, 200, 0]), bytes([1, 2, 200, 0])]

    def paths(**rates: float | None) -> list[str]:
        steps = carry_out(movesense.MovesenseProfile().start(Wanted(rates)), ok)
        return [step.data[2:].decode() for step in steps if isinstance(step, Ask)]

    assert paths() == ["/Meas/IMU9/52", "/Meas/ECG/125"]
    assert paths(acc=50.0) == ["/Meas/Acc/52"]
    assert paths(gyro=100.0) == ["/Meas/IMU6/104"]
    assert paths(acc=None, mag=20.0) == ["/Meas/IMU9/26"]
    assert paths(ecg=256.0) == ["/Meas/ECG/256"]
    with pytest.raises(PacketError, match="/Meas/ECG/125: status 404"):
        carry_out(movesense.MovesenseProfile().start(Wanted({"ecg": None})), [bytes([1, 2, 0x94, 0x01])])


def test_movesense_motion_and_ecg() -> None:
    decoder = movesense.MovesenseDecoder()
    decoder.take("written", movesense.WRITE_UUID, bytes([1, 1]) + b"/Meas/IMU6/26")
    floats = [9.80665, 0.0, -9.80665, 19.6133, 1.0, 2.0, 180.0, 0.0, 0.0, -90.0, 0.0, 0.0]
    packet = struct.pack("<BBI12f", 2, 1, 81_234, *floats)
    (batch,) = decoder.take("data", movesense.NOTIFY_UUID, packet)
    assert batch.clock_ns == 81_234_000_000
    assert batch.values["acc"][0] == pytest.approx([1.0, 0.0, -1.0]) and batch.values["acc"][1, 0] == pytest.approx(2.0)
    assert batch.values["gyro"][:, 0] == pytest.approx([math.pi, -math.pi / 2])
    decoder.take("written", movesense.WRITE_UUID, bytes([1, 2]) + b"/Meas/ECG/125")
    (batch,) = decoder.take("data", movesense.NOTIFY_UUID, struct.pack("<BBI2i", 2, 2, 5, 1000, -1000))
    assert batch.values["ecg"][:, 0] == pytest.approx([0.381, -0.381])


def test_movesense_packets_in_two_parts() -> None:
    decoder = movesense.MovesenseDecoder()
    decoder.take("written", movesense.WRITE_UUID, bytes([1, 1]) + b"/Meas/IMU9/104")
    rng = np.random.default_rng(1)
    values = {name: rng.normal(size=(8, 3)).astype(np.float32) for name in movesense.SCALES}
    whole = movesense.encode_motion(1, 77, values)
    for cut in (100, 150, 155):
        assert decoder.take("data", movesense.NOTIFY_UUID, whole[:cut]) == []
        (batch,) = decoder.take("data", movesense.NOTIFY_UUID, bytes([3, 1]) + whole[cut:])
        for name, array in values.items():
            assert batch.values[name] == pytest.approx(array, rel=1e-5)
    assert len(decoder.take("data", movesense.NOTIFY_UUID, whole)) == 1  # where the link has room for it
    with pytest.raises(PacketError, match="without its beginning"):
        decoder.take("data", movesense.NOTIFY_UUID, bytes([3, 1]) + whole[100:])


# --- fixed layouts ----------------------------------------------------------------------------------------------------


def test_thingy_by_its_documentation() -> None:
    steps = carry_out(thingy52.ThingyProfile().start(Wanted({"acc": 100.0})))
    assert written(steps) == ["f4 01 f4 01 f4 01 64 00 01"]
    decoder = thingy52.ThingyDecoder()
    with pytest.raises(PacketError, match="before its rate was set"):
        decoder.take("data", thingy52.RAW_UUID, bytes(18))
    decoder.take("written", thingy52.CONFIGURATION_UUID, thingy52.configuration(100))
    packet = struct.pack("<9h", 1024, 0, -512, 32 * 180, 0, 0, 16 * 48, 0, 0)
    (batch,) = decoder.take("data", thingy52.RAW_UUID, packet)
    assert batch.values["acc"][0] == pytest.approx([1.0, 0.0, -0.5])
    assert batch.values["gyro"][0] == pytest.approx([math.pi, 0.0, 0.0])
    assert batch.values["mag"][0] == pytest.approx([48.0, 0.0, 0.0]) and decoder.groups[0].modalities[0].rate_hz == 100


@pytest.mark.parametrize("base", arduino.SERVICE_UUIDS)
def test_arduino_by_its_sketch(base: str) -> None:
    decoder = arduino.ArduinoDecoder()
    for number, name, wanted in (("3001", "acc", 180.0), ("3002", "gyro", math.pi), ("3003", "mag", 180.0)):
        (batch,) = decoder.take("data", base.replace("-0000-", f"-{number}-"), struct.pack("<3f", 180.0, 0.0, 0.0))
        assert batch.values[name][0] == pytest.approx([wanted, 0.0, 0.0])


# --- lines ------------------------------------------------------------------------------------------------------------


def lines(*parts: bytes) -> list[Batch]:
    decoder = uart.UartDecoder()
    return [batch for part in parts for batch in decoder.take("data", uart.NOTIFY_UUID, part)]


def test_lines_are_samples_however_they_are_cut() -> None:
    text = b'>\x1b[Jhello\r\n{"t":20,"hz":50,"acc":[0.5,-1,2e-1]}\r\n{"t":40,"acc":[1,2,3],"note":"x"}\n{"who":"me"}\n'
    for size in (1, 7, 20, 200):
        got = lines(*(text[i : i + size] for i in range(0, len(text), size)))
        assert [batch.clock_ns for batch in got] == [20_000_000, 40_000_000]
        assert got[0].values["acc"][0] == pytest.approx([0.5, -1.0, 0.2]) and got[1].group.modalities[0].rate_hz == 50


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"t":1,"acc":[1,2,3]}\n', 'needs "hz"'),
        (b'{"t":-1,"hz":50,"acc":[1,2,3]}\n', 'needs "t"'),
        (b'{"t":1,"hz":50,"acc":[1,2,"3"]}\n', "which is no number"),
        (b'{"t":1,"hz":50,"acc":[]}\n', "list of 1 to 16 numbers"),
        (b'{"t":1,"hz":50,"acc":[1e999]}\n', "no number|no JSON"),
        (b'{"t":1,\n', "no JSON object"),
        (b"{" * 600, "more than 512 bytes"),
    ],
)
def test_lines_that_are_no_samples(line: bytes, said: str) -> None:
    with pytest.raises(PacketError, match=said):
        lines(line)


def test_a_bangle_gets_its_program_in_small_writes() -> None:
    has = Wanted({"acc": 25.0, "hr": None}, name="Bangle.js 1234")
    code = b"".join(step.data for step in carry_out(uart.UartProfile().start(has)) if isinstance(step, Write))
    assert code.startswith(b"\x10Bangle.setPollInterval(40);Bangle.on('accel',") and code.endswith(b"\n")
    assert code.count(b"\n") == 1 and b"hz:25,acc:[a.x,a.y,a.z]" in code and b"hr:[h.bpm]" in code
    assert code.count(b"(") == code.count(b")") and code.count(b"{") == code.count(b"}")
    assert written(carry_out(uart.UartProfile().start(Wanted({}, name="ESP32")))) == []
