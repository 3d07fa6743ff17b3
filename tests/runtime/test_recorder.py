"""Recordings of live runs: begun in their middle, on a full disk, and killed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.conversion import with_streams
from armlet_runtime.signals.recorder import Recorder
from armlet_runtime.signals.recording import Packet, Stream
from armlet_runtime.signals.recording_reader import read_recording
from armlet_runtime.signals.recording_writer import RecordingWriter
from armlet_runtime.signals.wearable import Wearable
from armlet_runtime.wearables import movesense, muse, polar, uart

WEEK_NS = 7 * 24 * 3600 * 10**9
HALF_PACKET = 150  # bytes of a Movesense notification on a link with a small MTU


class Wearing:
    """One wearable of a live run, and the run's recorder."""

    def __init__(self) -> None:
        self.recorder, self.wearable = Recorder(), Wearable("w", 10**9)

    def take(self, at_ns: int, kind: str, source: str, data: bytes) -> None:
        packet = Packet(at_ns, "w", kind, source, data)
        self.recorder.write(packet)
        self.wearable.take(packet)

    def movesense(self, numbers: range, began_ns: int) -> None:
        """So many packets of acceleration and turning at 104 Hz, each in two notifications."""
        for number in numbers:
            values = {name: np.full((8, 3), number, np.float32) for name in ("acc", "gyro")}
            whole = movesense.encode_motion(1, round(number * 1000 / 13), values)
            at_ns = began_ns + round(number * 1e9 / 13)
            self.take(at_ns, "data", movesense.NOTIFY_UUID, whole[:HALF_PACKET])
            self.take(at_ns, "data", movesense.NOTIFY_UUID, bytes([movesense.REST, 1]) + whole[HALF_PACKET:])

    def connect(self, at_ns: int = 0) -> None:
        self.take(at_ns, "connected", "", b"")


def test_a_recording_begun_a_week_later_decodes_from_its_beginning(tmp_path: Path) -> None:
    """A Movesense at 104 Hz sends half a packet a notification: what it was asked for must not be pushed out."""
    wearing = Wearing()
    wearing.connect()
    wearing.take(1, "written", movesense.WRITE_UUID, bytes([movesense.SUBSCRIBE, 1]) + b"/Meas/IMU6/104")
    wearing.take(2, "data", movesense.NOTIFY_UUID, bytes([movesense.ANSWER, 1, 200, 0]))
    wearing.movesense(range(400), 0)
    wearing.movesense(range(400, 800), WEEK_NS)
    wearing.recorder.start(tmp_path / "r.mcap", {"bundle": "x"}, wearing.wearable.opening)
    with pytest.raises(DataError, match="is being recorded already"):
        wearing.recorder.start(tmp_path / "s.mcap", {})
    wearing.movesense(range(800, 840), WEEK_NS)
    assert wearing.recorder.stop(WEEK_NS + 10**12) == tmp_path / "r.mcap"
    assert wearing.recorder.path is None and wearing.recorder.problem == "" and wearing.recorder.lost == 0

    recording = read_recording(tmp_path / "r.mcap")
    assert not recording.truncated and recording.meta["bundle"] == "x"
    arrivals = [packet.arrival_ns for packet in recording.packets]
    assert arrivals[0] == WEEK_NS + round(800 * 1e9 / 13) and arrivals == sorted(arrivals)
    acc = with_streams(recording).streams["acc"]
    assert acc.modality.rate_hz == 104.0 and len(acc.times_ns) == 40 * 8
    assert acc.values[:, 0] == pytest.approx(np.repeat(np.arange(800.0, 840.0), 8))
    assert acc.times_ns[0] >= arrivals[0] - 10**9


def test_what_a_polar_answered_is_kept_and_no_more(tmp_path: Path) -> None:
    wearing = Wearing()
    wearing.connect()
    start = bytes([polar.START, polar.ACC]) + polar.encode_settings({polar.RATE: (50.0,)})
    wearing.take(1, "info", polar.CONTROL_UUID, bytes([polar.FEATURES, 0xFF]))
    wearing.take(2, "written", polar.CONTROL_UUID, start)
    answer = polar.encode_answer(polar.Answer(polar.START, polar.ACC, polar.DONE, {polar.FACTOR: (0.5,)}))
    wearing.take(3, "data", polar.CONTROL_UUID, answer)
    frame = polar.HEAD.pack(polar.ACC, 10**9, 1) + np.array([[1000, 0, 0]], "<i2").tobytes()
    for number in range(1000):
        wearing.take(4 + number, "data", polar.DATA_UUID, frame)
    assert [packet.kind for packet in wearing.wearable.opening] == ["connected", "info", "written", "data"]
    wearing.take(2000, "disconnected", "", b"")
    assert wearing.wearable.opening == []


def test_the_opening_of_a_muse_holds_no_samples() -> None:
    """Three of four electrodes' notifications give no samples: they wait for the fourth."""
    wearing = Wearing()
    wearing.connect()
    wearing.take(1, "written", muse.CONTROL_UUID, muse.command("p21"))
    for number in range(1000):
        for source in muse.EEG_UUIDS:
            wearing.take(2 + number, "data", source, muse.encode_eeg(number, np.zeros(12, np.float32)))
    assert [packet.kind for packet in wearing.wearable.opening] == ["connected", "written"]


def test_a_line_that_told_its_rate_once_decodes_in_a_later_recording(tmp_path: Path) -> None:
    """Over the UART service only the first line of a kind needs its rate, and a line is several notifications."""
    wearing = Wearing()
    wearing.connect()

    def line(number: int, rate: str) -> None:
        text = f'{{"t": {number * 20}, {rate}"acc": [{number}, 0, 1]}}\n'.encode()
        for start in range(0, len(text), 20):
            wearing.take(number * 20_000_000, "data", uart.NOTIFY_UUID, text[start : start + 20])

    line(0, '"hz": 50, ')
    for number in range(1, 500):
        line(number, "")
    wearing.recorder.start(tmp_path / "r.mcap", {}, wearing.wearable.opening)
    for number in range(500, 600):
        line(number, "")
    wearing.recorder.stop()
    acc = with_streams(read_recording(tmp_path / "r.mcap")).streams["acc"]
    assert acc.modality.rate_hz == 50.0
    assert acc.values[:, 0].tolist() == list(range(500, 600)), "no sample from before the recording began"


# --- a full disk ------------------------------------------------------------------------------------------------------


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process can be larger: the system's own refusal, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_recording_and_not_the_run(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.start(tmp_path / "r.mcap", {})
    noise = np.random.default_rng(1)
    with room_for(20_000):
        for number in range(200):
            at_ns = number * 100_000_000
            recorder.write(Packet(at_ns, "w", "data", "s", noise.bytes(500)))
            recorder.decision(at_ns, b"{}")
        assert "r.mcap cannot be written any more: File too large" in recorder.problem and recorder.path is not None
        assert recorder.stop(1) == tmp_path / "r.mcap" and recorder.path is None
    recording = read_recording(tmp_path / "r.mcap")
    assert recording.truncated and (tmp_path / "r.mcap").stat().st_size <= 20_000
    assert len(recording.packets) > 10 and len(recording.packets) + len(recording.decisions) + recorder.lost == 400
    # The next one has room again.
    recorder.start(tmp_path / "s.mcap", {})
    assert recorder.problem == "" and recorder.lost == 0
    recorder.write(Packet(5, "w", "data", "s", b"1"))
    recorder.stop(5)
    assert len(read_recording(tmp_path / "s.mcap").packets) == 1


def test_a_disk_that_is_full_from_the_start_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    recorder = Recorder()
    with room_for(10), pytest.raises(DataError, match=r"r\.mcap cannot be written: File too large"):
        recorder.start(tmp_path / "r.mcap", {})
    assert recorder.path is None and not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_the_end_leaves_what_was_flushed(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.start(tmp_path / "r.mcap", {})
    recorder.write(Packet(0, "w", "data", "s", b"0"))
    recorder.write(Packet(1, "w", "data", "s", b"1"))
    with room_for((tmp_path / "r.mcap").stat().st_size):
        recorder.stop(2)
    assert recorder.problem and recorder.lost == 1 and recorder.path is None
    assert [packet.data for packet in read_recording(tmp_path / "r.mcap").packets] == [b"0"]


def test_whole_streams_are_written_as_ever(tmp_path: Path) -> None:
    """More than a chunk at once, in one file."""
    times = np.arange(50_000, dtype=np.int64) * 20_000_000
    values = np.random.default_rng(1).normal(size=(50_000, 1)).astype(np.float32)
    stream = Stream(Modality("acc", ("x",), "g", 50.0), times, values)
    with RecordingWriter.create(tmp_path / "r.mcap", "r", "p") as writer:
        writer.stream(stream)
    assert writer.problem == "" and writer.lost == 0
    back = read_recording(tmp_path / "r.mcap")
    assert not back.truncated and np.array_equal(back.streams["acc"].values, stream.values)


# --- a kill -----------------------------------------------------------------------------------------------------------

DECIDE_IN_SILENCE = """
import sys
from pathlib import Path
from armlet_runtime.signals.recording import Packet
from armlet_runtime.signals.recording_writer import RecordingWriter
writer = RecordingWriter.create(Path(sys.argv[1]), "live", "me")
writer.packet(Packet(0, "w", "data", "s", b"1"))
for hop in range(1, 41):
    writer.decision(hop * 500_000_000, b'{"index": %d}' % hop)
print("silent", flush=True)
sys.stdin.read()
"""


def test_decisions_without_packets_outlive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "live.mcap"
    command = [sys.executable, "-c", DECIDE_IN_SILENCE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}) as process:
        assert process.stdout is not None and process.stdout.readline() == b"silent\n"
        process.send_signal(signal.SIGKILL)
    recording = read_recording(path)
    assert recording.truncated and len(recording.decisions) >= 39
