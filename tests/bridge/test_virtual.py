"""Virtual wearables: what they play arrives whole, in time and in step; what falls due without a link is gone."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bleak import BleakClient, BleakScanner
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.device import BLEDevice
from numpy.typing import NDArray

from armlet_bridge.radio.bumble_backend import Bluetooth, open_bluetooth
from armlet_bridge.virtual.air import AirController, AirLink
from armlet_bridge.virtual.twins import SCALES, DeviceClock, ImuTwin
from armlet_bridge.virtual.wearable import LinkLoss, Play, WearableSpec, default_wearables, put_on
from armlet_runtime.cli import main
from armlet_runtime.errors import ArmletError, UsageError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Recording, Stream
from armlet_runtime.signals.recording_writer import write_recording
from armlet_runtime.wearables import heart_rate, imu

MakeRecording = Callable[..., Recording]


class Listener:
    """Connects to every wearable, again after each loss, and keeps what it hears with the time of arrival."""

    def __init__(self, bluetooth: Bluetooth) -> None:
        self.bluetooth = bluetooth
        self.packets: dict[str, list[tuple[int, imu.ImuPacket]]] = {}
        self.losses: list[tuple[int, str]] = []
        self._tasks: list[asyncio.Future[None]] = []

    async def start(self, count: int) -> None:
        found: dict[str, BLEDevice] = {}
        async with BleakScanner(backend=self.bluetooth.scanner) as scanner:
            async for device, advertisement in scanner.advertisement_data():
                assert advertisement.service_uuids == [imu.SERVICE_UUID]
                if advertisement.local_name is not None:  # it comes with the scan response
                    found[advertisement.local_name] = device
                if len(found) == count:
                    break
        self._tasks = [asyncio.ensure_future(self._listen(name, device)) for name, device in found.items()]

    async def _listen(self, name: str, device: BLEDevice) -> None:
        while True:
            lost = asyncio.Event()

            def gone(_: BleakClient, lost: asyncio.Event = lost) -> None:
                self.losses.append((time.monotonic_ns(), name))
                lost.set()

            client = BleakClient(device, gone, backend=self.bluetooth.client)
            await client.connect()
            info = imu.decode_info(bytes(await client.read_gatt_char(imu.INFO_UUID)))
            into = self.packets.setdefault(name, [])

            def heard(
                _: BleakGATTCharacteristic,
                data: bytearray,
                info: imu.ImuInfo = info,
                into: list[tuple[int, imu.ImuPacket]] = into,
            ) -> None:
                into.append((time.monotonic_ns(), imu.decode_data(info, bytes(data))))

            await client.start_notify(imu.DATA_UUID, heard)
            await lost.wait()

    def samples(self, name: str, modality: str) -> NDArray[np.int_]:
        """What was heard of the counting recording's channel x, as sample numbers."""
        values = np.concatenate([packet.samples[modality][:, 0] for _, packet in self.packets[name]])
        numbers: NDArray[np.int_] = np.rint(values * 1000).astype(np.int_)
        return numbers

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


async def test_two_wearables_at_50_hz_lose_nothing_and_are_in_step(make_recording: MakeRecording) -> None:
    air = AirLink()
    recording = make_recording(3.0)
    events: list[dict[str, object]] = []
    async with (
        put_on(recording, air, log=events.append) as play,
        open_bluetooth(AirController("host", air)) as bluetooth,
    ):
        listener = Listener(bluetooth)
        await listener.start(2)
        await play.run()
        await asyncio.sleep(0.2)
        listener.stop()
    assert [event["event"] for event in events] == ["start", "end"]
    start_ns = int(str(events[0]["monotonic_ns"]))
    for name, modality in (("Armlet-Acc", "acc"), ("Armlet-Gyro", "gyro")):
        packets = listener.packets[name]
        assert (listener.samples(name, modality) == np.arange(150)).all()
        sequences = np.array([packet.sequence for _, packet in packets])
        assert (np.diff(sequences) % imu.SEQUENCE_WRAP == 1).all()
        clocks = np.array([packet.clock_us for _, packet in packets])
        assert (np.diff(clocks) == 40_000).all()
        # Sent when its last sample is taken: sample 2 k + 1 at (2 k + 1) * 20 ms, never before.
        due_ms = (2 * np.arange(75) + 1) * 20
        late_ms = (np.array([arrival for arrival, _ in packets]) - start_ns) / 1e6 - due_ms
        assert late_ms.min() >= 0
        assert np.median(late_ms) < 30
        assert play.wearables[name].sent == 75
        assert play.wearables[name].dropped == 0


async def test_link_loss_drops_what_is_due_and_clock_and_counter_go_on(make_recording: MakeRecording) -> None:
    air = AirLink()
    events: list[dict[str, object]] = []
    async with (
        put_on(make_recording(4.5), air, log=events.append) as play,
        open_bluetooth(AirController("host", air)) as bluetooth,
    ):
        listener = Listener(bluetooth)
        await listener.start(2)
        await play.run(losses=[LinkLoss("Armlet-Gyro", 0.5, 1.5), LinkLoss("Armlet-Gyro", 2.5, 3.5)])
        await asyncio.sleep(0.2)
        listener.stop()
    by_name = {(event["event"], event["wearable"]): event for event in events}
    assert by_name.keys() == {
        ("start", None),
        ("link_lost", "Armlet-Gyro"),
        ("link_back", "Armlet-Gyro"),
        ("end", None),
    }
    assert [name for _, name in listener.losses[:2]] == ["Armlet-Gyro"] * 2
    assert (listener.samples("Armlet-Acc", "acc") == np.arange(225)).all(), "the other link is not concerned"
    heard = listener.samples("Armlet-Gyro", "gyro")
    gaps = np.flatnonzero(np.diff(heard) != 1)
    assert len(gaps) == 2
    for gap, (lost_s, back_s) in zip(gaps, ((0.5, 1.5), (2.5, 3.5)), strict=True):
        assert abs(heard[gap] - lost_s * 50) <= 3
        assert back_s * 50 - 3 <= heard[gap + 1] <= (back_s + 1.0) * 50
    packets = [packet for _, packet in listener.packets["Armlet-Gyro"]]
    sequences = np.array([packet.sequence for packet in packets])
    clocks = np.array([packet.clock_us for packet in packets])
    # The number of a packet and the clock still tell which samples it holds.
    assert (np.diff(sequences) * 2 == np.diff(heard[::2])).all()
    assert (np.diff(clocks) == np.diff(heard[::2]) * 20_000).all()
    wearable = play.wearables["Armlet-Gyro"]
    assert wearable.sent + wearable.dropped == 113
    assert wearable.dropped > 10


def test_packets_break_at_gaps_and_clocks_drift() -> None:
    times_ns = (np.array([0, 1, 2, 5, 6, 7, 8]) * 20_000_000).astype(np.int64)
    values = np.tile(np.arange(7, dtype=np.float32)[:, None] / np.float32(10), (1, 3))
    values[6, 1] = np.nan
    stream = Stream(Modality("acc", ("x", "y", "z"), "g", 50.0), times_ns, values)
    profile = ImuTwin([stream], 2)
    info = imu.ImuInfo(50.0, {"acc": SCALES["acc"]})
    packets = list(profile.packets(0, 10**9, DeviceClock(2**32 - 30_000, 1000.0), 65_534))
    assert [due // 20_000_000 for due, *_ in packets] == [1, 2, 6, 7]
    read = [imu.decode_data(info, value) for _, value, _ in packets]
    assert [len(packet.samples["acc"]) for packet in read] == [2, 1, 2, 1], "a sample with a NaN was not taken"
    assert [packet.sequence for packet in read] == [65_534, 65_535, 0, 1]
    elapsed = [(packet.clock_us - read[0].clock_us) % imu.CLOCK_WRAP_US for packet in read]
    assert elapsed == [0, 40_040, 100_100, 140_140]
    late = list(profile.packets(times_ns[3], times_ns[5], DeviceClock(0, 0.0), 0))
    assert [due for due, *_ in late] == [times_ns[4]]


def test_ranges_hold_what_people_do() -> None:
    info = imu.ImuInfo(50.0, {name: SCALES[name] for name in ("acc", "gyro")})
    most = {"acc": np.full((1, 3), 2.0, np.float32), "gyro": np.full((1, 3), -10.0, np.float32)}
    read = imu.decode_data(info, imu.encode_data(info, 0, 0, most)).samples
    for name, values in most.items():
        assert np.abs(read[name] - values).max() <= SCALES[name] / 2


async def test_heart_rate_strap(make_recording: MakeRecording) -> None:
    recording = make_recording(1.0)
    times_ns = (np.arange(5) * 200_000_000).astype(np.int64)
    bpm = np.array([[60.4], [61.0], [np.nan], [250.0], [260.0]], np.float32)
    recording.streams["hr"] = Stream(Modality("hr", heart_rate.MODALITY.channels, "bpm", 5.0), times_ns, bpm)
    assert [spec.name for spec in default_wearables(recording)] == ["Armlet-Acc", "Armlet-Gyro", "Armlet-Hr"]
    air = AirLink()
    strap = [WearableSpec("Strap", ("hr",))]
    async with put_on(recording, air, strap) as play, open_bluetooth(AirController("host", air)) as bluetooth:
        device = await BleakScanner.find_device_by_filter(
            lambda _, advertisement: heart_rate.SERVICE_UUID in advertisement.service_uuids, backend=bluetooth.scanner
        )
        assert device is not None
        got: list[heart_rate.HeartRate] = []
        async with BleakClient(device, backend=bluetooth.client) as client:
            assert await client.read_gatt_char("2a19") == b"\x64"
            assert await client.read_gatt_char("2a29") == b"armlet"
            await client.start_notify(
                heart_rate.MEASUREMENT_UUID, lambda _, data: got.append(heart_rate.decode(bytes(data)))
            )
            await play.run()
            await asyncio.sleep(0.1)
    assert [(one.bpm, one.contact) for one in got] == [(60, True), (61, True), (0, False), (250, True), (260, True)]


@pytest.mark.parametrize(
    ("specs", "samples", "said"),
    [
        ([WearableSpec("W", ("ecg",))], 2, "holds acc, gyro, not ecg"),
        ([WearableSpec("W", ("acc",)), WearableSpec("W", ("gyro",))], 2, "same name"),
        ([WearableSpec("W", ("acc", "gyro"))], 43, "514 is the most"),
        ([WearableSpec("W", ("acc",))], 0, "at least 1 sample, not 0"),
        ([WearableSpec("W", ("acc",))], -1, "at least 1 sample, not -1"),
        ([WearableSpec("W", ("acc",))], 121, "1 to 120 samples"),
        ([WearableSpec("W" * 30, ("acc",))], 2, "longer than the 29 bytes"),
    ],
)
async def test_impossible_wearables_are_refused(
    specs: list[WearableSpec], samples: int, said: str, recording: Recording
) -> None:
    with pytest.raises(ArmletError, match=said):
        async with put_on(recording, AirLink(), specs, samples):
            pass


async def test_nothing_to_play_is_refused(recording: Recording) -> None:
    async with put_on(recording, AirLink()) as play:
        assert isinstance(play, Play)
        with pytest.raises(UsageError, match=r"the recording is 2\.0 s long"):
            await play.run(start_s=5.0)
    recording.streams.clear()
    with pytest.raises(UsageError, match="no streams"):
        async with put_on(recording, AirLink()):
            pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--wearable", "acc"], "give MODALITY=NAME"),
        (["--wearable", "acc+=W"], "give MODALITY=NAME"),
        (["--link-loss", "gyro:1"], "give NAME:START:END"),
        (["--link-loss", "gyro:2:1"], "END must come after it"),
        (["--link-loss", "gyro:nan:1"], "END must come after it"),
        (["--link-loss", "gyro:1:inf"], "END must come after it"),
        (["--link-loss", "hr:1:2"], "no wearable 'hr', only Armlet-Acc, Armlet-Gyro"),
        (["--duration", "nan"], "'nan' is not a number of seconds"),
        (["--start", "soon"], "'soon' is not a number of seconds"),
        (["--drift-ppm", "nan"], "cannot drift by nan ppm"),
        (["--listen", "tcp-client:127.0.0.1:1"], "give tcp-server:HOST:PORT, unix-server:PATH or vhci"),
        (["--events", "no/such/folder"], "cannot write no/such/folder"),
    ],
)
def test_mistakes_on_the_command_line_are_said(
    options: list[str], said: str, recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recording(tmp_path / "walk.mcap", recording)
    command = ["wearables", "simulate", str(tmp_path / "walk.mcap"), "--listen", f"unix-server:{tmp_path / 'air'}"]
    try:
        code = main([*command, *options])
    except SystemExit as refused:  # by argparse
        code = int(str(refused.code))
    assert code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_simulate_in_a_process_of_its_own(kind: str, make_recording: MakeRecording, tmp_path: Path) -> None:
    write_recording(tmp_path / "walk.mcap", make_recording(4.0))
    listen = "tcp-server:127.0.0.1:0" if kind == "tcp" else f"unix-server:{tmp_path / 'air'}"
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "armlet_runtime", "wearables", "simulate", str(tmp_path / "walk.mcap")]
    command += ["--listen", listen, "--start", "0.5", "--duration", "2.5", "--link-loss", "gyro:0.5:1.5"]
    command += ["--events", str(log)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready.startswith("Armlet-Acc, Armlet-Gyro on the air at ")
    assert process.stdout.readline() == "silent until all are subscribed to\n"
    async with open_bluetooth(ready.split()[-1]) as bluetooth:
        listener = Listener(bluetooth)
        await listener.start(2)
        rest, errors = await asyncio.to_thread(process.communicate, None, 20)
        listener.stop()
    assert process.returncode == 0, errors
    assert errors == ""
    assert rest.split("\n")[0] == "start"
    assert (listener.samples("Armlet-Acc", "acc") == np.arange(25, 150)).all()
    assert len(listener.samples("Armlet-Gyro", "gyro")) < 100
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "link_lost", "link_back", "end"]
    assert events[0]["recording_s"] == 0.5
    assert abs(events[1]["monotonic_ns"] - events[0]["monotonic_ns"] - 0.5e9) < 0.1e9
    assert events[3]["packets"]["Armlet-Acc"] == {"sent": 63, "dropped": 0}


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_simulate_ends_cleanly_when_asked(by: signal.Signals, make_recording: MakeRecording, tmp_path: Path) -> None:
    write_recording(tmp_path / "walk.mcap", make_recording(4.0))
    command = [sys.executable, "-m", "armlet_runtime", "wearables", "simulate", str(tmp_path / "walk.mcap")]
    process = subprocess.Popen(
        [*command, "--listen", f"unix-server:{tmp_path / 'air'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(by)
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (130, "armlet: interrupted\n")
    assert not (tmp_path / "air").exists()


def test_scan_and_info(make_recording: MakeRecording, tmp_path: Path) -> None:
    write_recording(tmp_path / "walk.mcap", make_recording(60.0))
    armlet = [sys.executable, "-m", "armlet_runtime", "wearables"]
    simulate = [*armlet, "simulate", str(tmp_path / "walk.mcap"), "--listen", "tcp-server:127.0.0.1:0"]
    process = subprocess.Popen([*simulate, "--wearable", "acc+gyro=Imu"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        bluetooth = f"bumble:{process.stdout.readline().split()[-1]}"
        reach = ["--bluetooth", bluetooth, "--json", str(tmp_path / "out.json")]
        subprocess.run([*armlet, "scan", "--seconds", "0.5", *reach], check=True, capture_output=True)
        (heard,) = json.loads((tmp_path / "out.json").read_text())
        assert (heard["name"], heard["profiles"]) == ("Imu", ["imu"])
        told = subprocess.run([*armlet, "info", "Imu", *reach], check=True, capture_output=True, text=True).stdout
        for says in ("rssi        -50 dBm", "battery     100 %", "mtu         517 bytes", "interval    15 ms"):
            assert f"{says}\n" in told
        assert "modality    acc (x, y, z) in g at 50 Hz\n" in told
        about = json.loads((tmp_path / "out.json").read_text())
        assert about["address"] == heard["address"]
        assert (about["maker"], about["battery"]) == ("armlet", 100)
        assert [(modality["name"], modality["rate_hz"]) for modality in about["modalities"]] == [
            ("acc", 50.0),
            ("gyro", 50.0),
        ]
        watch = subprocess.run(
            [*armlet, "watch", "Imu", "--duration", "6", *reach], check=True, capture_output=True, text=True
        )
        last = re.fullmatch(
            r"streaming  -50 dBm  battery 100 %  acc\+gyro ([\d.]+) Hz lost 0.0% clock .*", watch.stdout.split("\n")[-2]
        )
        assert last and 40 < float(last[1]) < 60, watch.stdout
        watched = json.loads((tmp_path / "out.json").read_text())
        assert (watched["profiles"], watched["mtu"]) == (["imu"], 517)
        assert watched["groups"]["imu"]["samples"] > 50 and watched["groups"]["imu"]["bound_ms"] > 0
        missing = subprocess.run(
            [*armlet, "info", "Nobody", "--seconds", "0.5", *reach], capture_output=True, text=True, check=False
        )
        assert missing.returncode == 2
        assert "'Nobody'" in missing.stderr
        assert "heard" in missing.stderr
    finally:
        process.terminate()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def test_info_of_what_has_sent_nothing(make_recording: MakeRecording, tmp_path: Path) -> None:
    walk = make_recording(60.0)
    beats = Stream(Modality("hr", ("bpm",), "bpm", 1.0), np.arange(60) * 10**9, np.full((60, 1), 70, np.float32))
    write_recording(tmp_path / "walk.mcap", replace(walk, streams={**walk.streams, "hr": beats}))
    armlet = [sys.executable, "-m", "armlet_runtime", "wearables"]
    simulate = [*armlet, "simulate", str(tmp_path / "walk.mcap"), "--listen", "tcp-server:127.0.0.1:0"]
    # Neither plays while the other is not subscribed to.
    worn = ["--wearable", "hr=Strap@heart_rate", "--wearable", "acc=Printer@uart"]
    process = subprocess.Popen([*simulate, *worn], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        reach = ["--bluetooth", f"bumble:{process.stdout.readline().split()[-1]}"]
        strap, printer = (
            subprocess.run([*armlet, "info", name, *reach], check=True, capture_output=True, text=True).stdout
            for name in ("Strap", "Printer")
        )
        watch = subprocess.run(
            [*armlet, "watch", "Strap", "--duration", "3", *reach], check=True, capture_output=True, text=True
        ).stdout
        assert watch.endswith("streaming  -50 dBm  battery 100 %  it has sent nothing yet\n")
        assert "profiles    heart_rate\n" in strap and "modality    hr (bpm) in bpm at 1 Hz\n" in strap
        assert "profiles    uart\n" in printer and "modality    none yet" in printer
    finally:
        process.terminate()
        process.communicate(timeout=10)


WITHOUT_BRIDGE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "bumble":
            raise ModuleNotFoundError("No module named 'bumble'", name="bumble")

sys.meta_path.insert(0, Missing())
from armlet_runtime.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_bridge(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_BRIDGE, "wearables", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_board_without_the_bridge_scans_and_says_what_simulate_needs(recording: Recording, tmp_path: Path) -> None:
    write_recording(tmp_path / "walk.mcap", recording)
    # There is no BlueZ here, which it says: so it has come as far as the scan.
    scan = without_bridge("scan", "--seconds", "0.1")
    assert scan.returncode in (0, 2) and "bumble" not in scan.stderr and "Traceback" not in scan.stderr
    assert scan.returncode == 0 or "cannot scan" in scan.stderr
    refused = without_bridge("simulate", tmp_path / "walk.mcap", "--listen", "tcp-server:127.0.0.1:0")
    assert refused.returncode == 2
    assert refused.stderr == (
        "armlet: 'armlet wearables simulate' needs the package 'bumble', which is not installed: "
        "pip install 'armlet[bridge]'\n"
    )
