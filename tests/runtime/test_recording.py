"""Recordings as MCAP files: exact, indexed, readable after a kill, and refusing what is not theirs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mcap.reader import make_reader

from armlet_runtime.decisions import Decision
from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Label, Packet, Recording, Stream
from armlet_runtime.signals.recording_reader import read_recording
from armlet_runtime.signals.recording_writer import RecordingWriter, write_recording

ACC = Modality("acc", ("x", "y", "z"), "g", 50.0)
HR = Modality("hr", ("hr",), "bpm", 1.0)


def _stream(modality: Modality, samples: int, seed: int = 0) -> Stream:
    rng = np.random.default_rng(seed)
    times = (np.arange(samples) * 1e9 / modality.rate_hz).astype(np.int64)
    return Stream(modality, times, rng.normal(size=(samples, len(modality.channels))).astype(np.float32))


def _same(a: Recording, b: Recording) -> None:
    assert (a.name, a.person, a.meta, a.labels, a.packets) == (b.name, b.person, b.meta, b.labels, b.packets)
    assert a.decisions == b.decisions
    assert a.streams.keys() == b.streams.keys()
    for name in a.streams:
        assert a.streams[name].modality == b.streams[name].modality
        assert np.array_equal(a.streams[name].times_ns, b.streams[name].times_ns)
        assert a.streams[name].values.tobytes() == b.streams[name].values.tobytes()


text = st.text(max_size=10)
times = st.integers(0, 2**63 - 1)


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    recording = Recording(draw(text), draw(text), draw(st.dictionaries(text, text, max_size=3)))
    for modality in (ACC, HR):
        at = np.array(sorted(draw(st.sets(times, max_size=8))), np.int64)
        shape = (len(at), len(modality.channels))
        values = draw(
            hnp.arrays(np.float32, shape, elements=st.floats(allow_infinity=False, allow_nan=False, width=32))
        )
        recording.streams[modality.name] = Stream(modality, at, values)
    spans = draw(st.lists(st.tuples(times, times, text), max_size=4))
    recording.labels = [Label(*span) for span in spans]
    packets = draw(st.lists(st.tuples(times, text, text, text, st.binary(max_size=40)), max_size=6))
    recording.packets = [Packet(*packet) for packet in packets]
    for index, (at_ns, label, score) in enumerate(draw(st.lists(st.tuples(times, text, st.floats(0, 1)), max_size=3))):
        made = Decision(
            index, 0, at_ns, ("acc",), label, (score,), (), {"acc": 0.0, "hr": None}, {"acc": 1.0}, "litert"
        )
        recording.decisions.append(made.to_json())
    return recording


@settings(max_examples=60, deadline=None)
@given(recordings())
def test_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, recording: Recording) -> None:
    path = tmp_path_factory.mktemp("r") / "r.mcap"
    write_recording(path, recording)
    back = read_recording(path)
    _same(recording, back)
    assert not back.truncated


def test_missing_values_stay_missing(tmp_path: Path) -> None:
    stream = Stream(HR, np.array([0, 1], np.int64), np.array([[np.nan], [-0.0]], np.float32))
    write_recording(tmp_path / "r.mcap", Recording("r", "p", streams={"hr": stream}))
    values = read_recording(tmp_path / "r.mcap").streams["hr"].values
    assert np.isnan(values[0, 0]) and values[1, 0] == 0 and np.signbit(values[1, 0])


@pytest.mark.parametrize(
    ("times_ns", "values", "says"),
    [
        ([0, 0], [[1], [2]], "rise strictly"),
        ([-1, 0], [[1], [2]], "must not be negative"),
        ([0, 1], [[1], [np.inf]], "infinite"),
        ([0, 1], [[1]], "needs int64 times"),
    ],
)
def test_refuses_streams_that_are_none(
    tmp_path: Path, times_ns: list[int], values: list[list[float]], says: str
) -> None:
    stream = Stream(HR, np.array(times_ns, np.int64), np.array(values, np.float32))
    with pytest.raises(DataError, match=says):
        write_recording(tmp_path / "r.mcap", Recording("r", "p", streams={"hr": stream}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.alone("measures processor time, which tracing for coverage doubles")
def test_ten_minutes_of_two_streams_are_quick(tmp_path: Path) -> None:
    gyro = Modality("gyro", ("x", "y", "z"), "rad/s", 50.0)
    recording = Recording("r", "p", streams={m.name: _stream(m, 30_000) for m in (ACC, gyro)})
    write_recording(tmp_path / "r.mcap", recording)
    start = time.process_time()  # CPU time: other load on the machine does not count
    back = read_recording(tmp_path / "r.mcap")
    assert time.process_time() - start < 2
    _same(recording, back)


def test_other_readers_find_index_schema_and_messages(tmp_path: Path) -> None:
    recording = Recording("r", "p", streams={"acc": _stream(ACC, 100)}, labels=[Label(0, 5, "walk")])
    write_recording(tmp_path / "r.mcap", recording)
    with (tmp_path / "r.mcap").open("rb") as file:
        reader = make_reader(file)
        summary = reader.get_summary()
        assert summary is not None and len(summary.chunk_indexes) >= 1
        assert summary.statistics is not None and summary.statistics.message_count == 101
        assert {schema.encoding for schema in summary.schemas.values()} == {"jsonschema"}
        wanted = list(reader.iter_messages(topics=["/streams/acc"], starting_at=20_000_000, ending_at=20_000_000))
    assert [message.log_time for _, _, message in wanted] == [20_000_000]


WRITE_FOREVER = """
import sys
from pathlib import Path
from armlet_runtime.signals.recording import Packet
from armlet_runtime.signals.recording_writer import RecordingWriter
writer = RecordingWriter.create(Path(sys.argv[1]), "live", "me")
for i in range(100_000_000):
    writer.packet(Packet(i * 20_000_000, "Armlet-Acc", "data", "uuid", i.to_bytes(4, "little") * 5))
    if i == 5000:
        print("running", flush=True)
"""


def test_a_killed_writer_leaves_all_but_the_last_chunk(tmp_path: Path) -> None:
    path = tmp_path / "live.mcap"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(path)], stdout=subprocess.PIPE, env={**os.environ}
    )
    assert process.stdout is not None and process.stdout.readline() == b"running\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    recording = read_recording(path)
    assert recording.truncated and recording.name == "live"
    assert len(recording.packets) >= 4900  # packets flushed once a second of their time: 50
    for i, packet in enumerate(recording.packets):
        assert (packet.arrival_ns, packet.data) == (i * 20_000_000, i.to_bytes(4, "little") * 5)


def test_every_cut_file_is_recovered_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "live.mcap"
    with RecordingWriter.create(path, "live", "me") as writer:
        for i in range(200):
            writer.packet(Packet(i * 20_000_000, "w", "data", "u", bytes([i])))
    whole = path.read_bytes()
    seen = set()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        try:
            recording = read_recording(path)
        except DataError:
            assert end < 200
            continue
        assert recording.truncated
        assert [packet.data[0] for packet in recording.packets] == list(range(len(recording.packets)))
        seen.add(len(recording.packets))
    assert max(seen) == 200 and len(seen) > 3


def test_a_live_recording_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.mcap").write_bytes(b"precious")
    with pytest.raises(DataError, match="exists already"):
        RecordingWriter.create(tmp_path / "r.mcap", "r", "p")
    assert (tmp_path / "r.mcap").read_bytes() == b"precious"
    with pytest.raises(DataError, match="cannot be written"):
        RecordingWriter.create(tmp_path / "none" / "r.mcap", "r", "p")


def test_an_error_before_the_first_message_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    with pytest.raises(RuntimeError), RecordingWriter.create(path, "r", "p"):
        raise RuntimeError
    assert not path.exists()
    with pytest.raises(RuntimeError), RecordingWriter.create(path, "r", "p") as writer:
        writer.packet(Packet(5, "w", "data", "u", b"1"))
        raise RuntimeError
    assert len(read_recording(path).packets) == 1


def test_meta_added_at_the_end_is_read(tmp_path: Path) -> None:
    with RecordingWriter.create(tmp_path / "r.mcap", "r", "p", {"a": "1"}) as writer:
        writer.add_meta({"ended_ns": "5"})
    assert read_recording(tmp_path / "r.mcap").meta == {"a": "1", "ended_ns": "5"}


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "r.mcap"
    recording = Recording("r", "p", {"k": "v"}, {"acc": _stream(ACC, 20)}, [Label(0, 9, "walk")])
    recording.packets = [Packet(i, "w", "data", "u", bytes([i])) for i in range(5)]
    write_recording(path, recording)
    return path.read_bytes()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_is_the_same_recording_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, small_file: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(small_file)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("d") / "r.mcap"
    path.write_bytes(damaged)
    try:
        back = read_recording(path)
    except DataError as error:
        assert str(path) in str(error)
        return
    path.write_bytes(small_file)
    whole = read_recording(path)
    if not back.truncated and bytes(damaged) != small_file:  # then only the index or the header was hit
        _same(whole, back)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    path = tmp_path_factory.mktemp("g") / "r.mcap"
    for content in (garbage, b"\x89MCAP0\r\n" + garbage):
        path.write_bytes(content)
        with pytest.raises(DataError):
            read_recording(path)


def test_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_recording(tmp_path / "none.mcap")
    (tmp_path / "x.mcap").write_bytes(b"PK\x03\x04 not mcap")
    with pytest.raises(DataError, match="is not an MCAP file"):
        read_recording(tmp_path / "x.mcap")
    (tmp_path / "empty.mcap").touch()
    with pytest.raises(DataError, match="is not an MCAP file: it has 0 bytes"):
        read_recording(tmp_path / "empty.mcap")
