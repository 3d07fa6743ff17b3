"""Every profile against its virtual twin: scanned, connected, started, heard, decoded and aligned through bleak."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armlet_bridge.radio.bumble_backend import open_bluetooth
from armlet_bridge.virtual.air import AirController, AirLink
from armlet_bridge.virtual.twins import DeviceClock, make_twin, twin_for
from armlet_bridge.virtual.wearable import Play, WearableSpec, put_on
from armlet_runtime.bluetooth import Session
from armlet_runtime.errors import UsageError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Packet, Recording, Stream
from armlet_runtime.signals.recording_reader import read_recording
from armlet_runtime.signals.recording_writer import write_recording
from armlet_runtime.signals.wearable import Wearable
from armlet_runtime.wearables import PROFILES, UNITS, movesense, muse, polar, uart

SECONDS = 2.5
# What channel 0 rises by from sample to sample, well above what any wearable resolves: a sample says which it is.
STEPS = {
    "acc": 0.02, "gyro": 0.02, "mag": 0.6, "ecg": 0.005, "eeg": 2.0, "ppg": 1000.0, "hr": 1.0, "spo2": 0.5,
    "temp": 0.25, "rr": 0.02, "energy": 1.0,
}  # fmt: skip
ZERO = {"hr": 60.0, "spo2": 90.0, "temp": 30.0, "rr": 0.7, "energy": 900.0}
CHANNELS = {"acc": 3, "gyro": 3, "mag": 3, "eeg": 4}
ARRIVALS = ("hr", "spo2", "temp", "rr", "energy")  # placed by their arrivals

# Without a clock: in 3 s on a busy host their rates are not known well yet.
COUNTED = ("Muse-ABCD", "Thingy", "Arduino")

WORN: dict[str, tuple[str, dict[str, float]]] = {
    "Own imu": ("imu", {"acc": 50.0, "gyro": 50.0, "mag": 50.0}),
    "Strap": ("heart_rate", {"hr": 5.0, "rr": 5.0, "energy": 5.0}),
    "Oximeter": ("oximeter", {"spo2": 5.0, "hr": 5.0}),
    "Thermometer": ("thermometer", {"temp": 5.0}),
    "Polar H10 12345678": ("polar", {"ecg": 130.0, "acc": 200.0}),
    "Polar Sense 87654321": ("polar", {"ppg": 55.0, "acc": 52.0, "gyro": 52.0, "mag": 20.0, "rr": 5.0}),
    "Muse-ABCD": ("muse", {"eeg": 256.0, "ppg": 64.0, "acc": 52.0, "gyro": 52.0}),
    "Movesense 204730000081": ("movesense", {"acc": 52.0, "gyro": 52.0, "mag": 52.0, "ecg": 125.0}),
    "Thingy": ("thingy52", {"acc": 50.0, "gyro": 50.0, "mag": 50.0}),
    "Arduino": ("arduino", {"acc": 119.0, "mag": 20.0}),
    "Bangle.js abcd": ("uart", {"acc": 50.0, "hr": 5.0}),
    "Printer": ("uart", {"gyro": 20.0, "eeg": 25.0}),
}


def channels_of(name: str, profile: str) -> int:
    if name == "ppg":
        return {"polar": 4, "muse": 3}[profile]
    return CHANNELS.get(name, 1)


def rising(profile: str, rates_hz: dict[str, float]) -> Recording:
    """Streams whose channel 0 rises evenly through 0, and whose others fall."""
    streams = {}
    for name, rate_hz in rates_hz.items():
        count, width = round(SECONDS * rate_hz), channels_of(name, profile)
        middle = 0 if name in ZERO else count // 2
        ramp = ((np.arange(count) - middle) * STEPS[name])[:, None] * np.array([1.0] + [-1.0] * (width - 1))
        values = (ramp + ZERO.get(name, 0.0)).astype(np.float32)
        if name == "ppg":
            values = np.abs(values) + 100_000  # light is not negative
            values[:, 0] = 100_000 + np.arange(count) * STEPS["ppg"]
        times = np.rint(np.arange(count) * 1e9 / rate_hz).astype(np.int64)
        modality = Modality(name, tuple(f"c{i}" for i in range(width)), UNITS[name], rate_hz)
        streams[name] = Stream(modality, times, values)
    return Recording("rising", "nobody", streams=streams)


def test_every_profile_has_its_twin() -> None:
    assert {profile for profile, _ in WORN.values()} == {profile.name for profile in PROFILES}


@pytest.mark.parametrize(
    ("channels", "rate_hz", "profile"),
    [
        ({"acc": 3, "gyro": 3}, 50.0, "imu"),
        ({"acc": 1}, 50.0, "uart"),  # a length without its axes
        ({"ppg": 4}, 50.0, "polar"),
        ({"ppg": 3}, 64.0, "muse"),
        ({"ppg": 3}, 50.0, "uart"),
        ({"ppg": 1}, 64.0, "uart"),
        ({"eeg": 4}, 256.0, "muse"),
        ({"spo2": 1}, 1.0, "uart"),
        ({"smell": 1}, 1.0, None),
    ],
)
def test_what_plays_a_recording(channels: dict[str, int], rate_hz: float, profile: str | None) -> None:
    def stream(name: str, count: int) -> Stream:
        modality = Modality(name, tuple(map(str, range(count))), "", rate_hz)
        return Stream(modality, np.zeros(0, np.int64), np.zeros((0, count), np.float32))

    assert twin_for([stream(name, count) for name, count in channels.items()]) == profile


# Not all at once: the virtual controllers, too, run on the one core.
GROUPS = [sorted(WORN)[i::3] for i in range(3)]


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: ",".join(WORN[name][0] for name in names))
async def test_the_whole_path(names: list[str], tmp_path: Path) -> None:
    air = AirLink()
    starts: dict[str, int] = {}
    recordings = {name: rising(*WORN[name]) for name in names}
    async with AsyncExitStack() as stack:
        plays: list[Play] = []
        for name in names:
            profile, rates_hz = WORN[name]

            def log(event: dict[str, Any], name: str = name) -> None:
                if event["event"] == "start":
                    starts[name] = event["monotonic_ns"]

            spec = WearableSpec(name, tuple(rates_hz), profile)
            plays.append(await stack.enter_async_context(put_on(recordings[name], air, [spec], 2, 50.0, log)))
        bluetooth = await stack.enter_async_context(open_bluetooth(AirController("host", air)))
        session = Session(bluetooth, names)
        running = asyncio.ensure_future(session.run())
        packets: list[Packet] = []
        try:
            worn = [wearable for play in plays for wearable in play.wearables.values()]
            await until(
                lambda: all(one.ready for one in worn) and all(link.learned for link in session.links.values()), 30
            )
            for one in worn:  # what a legacy advertisement has room for
                for advertising in one.controller.advertising_sets.values():
                    assert len(advertising.data) <= 31 and len(advertising.scan_response_data) <= 31
            profiles = {name: link.profiles for name, link in session.links.items()}
            await asyncio.gather(*(play.run() for play in plays))
            await asyncio.sleep(0.5)
            await until(lambda: len(session._packets) >= sum(one.sent for one in worn))
            packets = session.take()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        farewells = session.take()
    assert session.links.keys() == set(names) and session.dropped == 0
    # A recording holds all that decoding needs.
    write_recording(tmp_path / "live.mcap", Recording("live", "nobody", packets=packets))
    replayed = read_recording(tmp_path / "live.mcap").packets
    assert replayed == packets
    for name in names:
        profile, link = WORN[name][0], session.links[name]
        assert (profiles[name], link.attempts, link.connections) == ((profile,), 1, 1), link
        assert (link.rssi, link.battery, link.about["maker"], link.mtu) == (-50, 100, "armlet", 517)
        assert link.interval_ms is not None and 15 <= link.interval_ms <= 30
        check(name, [packet for packet in replayed if packet.wearable == name], recordings[name], starts[name])
    # What would go on sending was told to stop.
    said = {packet.data for packet in farewells if packet.kind == "written"}
    for name in names:
        assert FAREWELLS.get(WORN[name][0]) in {*said, None}


FAREWELLS = {
    "polar": bytes([polar.STOP, polar.ACC]),
    "muse": muse.command("h"),
    "movesense": bytes([movesense.UNSUBSCRIBE, movesense.ECG_REF]),
}


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def check(name: str, packets: Sequence[Packet], recording: Recording, start_ns: int) -> None:
    """That what was heard is what was played, whole and at its times."""
    wearable = Wearable(name, keep_ns=60_000_000_000)
    for packet in packets:
        wearable.take(packet)
    assert wearable.problem == "", (name, wearable.problem)
    assert wearable.rings.keys() == recording.streams.keys(), name
    for what, stream in recording.streams.items():
        ring = wearable.rings[what]
        assert ring.modality.unit == stream.modality.unit
        assert ring.modality.rate_hz == pytest.approx(expected_hz(name, stream))
        times, values = ring.samples(start_ns)
        indices = np.rint((values[:, 0] - stream.values[0, 0]) / STEPS[what]).astype(int)
        assert (np.diff(indices) == 1).all(), f"{name} {what}: some were lost"
        assert len(indices) >= 0.5 * len(stream.times_ns), f"{name} {what}: {len(indices)} of {len(stream.times_ns)}"
        # Half of what the coarsest of them resolves.
        assert np.abs(values - stream.values[indices]).max() <= STEPS[what] / 4, f"{name} {what}"
        late_ms = (times - stream.times_ns[indices]) / 1e6
        slack_ms = 30.0 if name in COUNTED else 2.0  # stamps in whole ms
        assert late_ms.min() > -slack_ms, f"{name} {what}: before it was taken"
        if what not in ARRIVALS:
            assert np.ptp(late_ms) < 25 + slack_ms, f"{name} {what}: unevenly placed, by {np.ptp(late_ms):.1f} ms"
    assert sum(counts.malformed + counts.lost + counts.implausible for counts in wearable.counts.values()) == 0


def expected_hz(name: str, stream: Stream) -> float:
    """What comes when it comes has nominally 1 Hz."""
    slow = stream.modality.name in ARRIVALS and not name.startswith(("Bangle", "Printer"))
    return 1.0 if slow else stream.modality.rate_hz


@pytest.mark.parametrize(
    ("modalities", "profile", "said"),
    [
        (("ppg",), "polar", "a virtual polar sends 4 channels of ppg; the recording has 3"),
        (("temp",), "muse", "a virtual muse carries acc, eeg, gyro, ppg, not temp"),
        (("acc",), "thingy52", "needs acc and gyro and mag, not acc"),
        (("acc",), "arduino", "at 119 Hz; the recording has it at 50 Hz"),
        (("acc",), "toaster", "no virtual 'toaster'"),
        (("temp", "spo2"), "thermometer", "carries temp, and needs temp, not temp and spo2"),
    ],
)
def test_twins_that_cannot_be(modalities: tuple[str, ...], profile: str | None, said: str) -> None:
    streams = list(rising("muse", dict.fromkeys(modalities, 50.0)).streams.values())
    with pytest.raises(UsageError, match=said):
        make_twin(streams, 2, "W", profile)


def test_uart_lines_straddle_notifications() -> None:
    twin = make_twin(list(rising("uart", {"acc": 50.0}).streams.values()), 2, "Printer", "uart")
    lines = [due.value for due in twin.packets(0, 10**9, DeviceClock(0, 0.0), 0)]
    assert max(map(len, lines)) == 20 and b"".join(lines).count(b"\n") == 50 and uart.NOTIFY_UUID in twin.notifying
