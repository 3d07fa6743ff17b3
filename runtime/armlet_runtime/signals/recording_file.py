"""Recordings as MCAP files, written as they come and read front to back.

The file is MCAP 0 (https://mcap.dev/spec), chunked, zstd, indexed, with CRCs; all messages are JSON with a JSON schema,
so that Foxglove plots them::

    metadata "armlet.recording"   name, person
    metadata "armlet.meta"        the recording's own meta; a later record of this name adds to an earlier one
    topic /streams/NAME           one message a sample: {channel: number}, null for NaN; log time = the sample's time;
                                  the channel's metadata hold the modality as JSON
    topic /labels                 {"start_ns", "end_ns", "name"}; log time = start_ns
    topic /packets                {"wearable", "kind", "source", "data" (base64)}; log time = arrival_ns
    topic /decisions              a :class:`armlet_runtime.decisions.Decision`; log time = decided_ns
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec
import numpy as np

from ..errors import DataError, ForeignRecordingError
from ..files import write_atomic
from ..modalities import Modality
from .recording import Label, Packet, Recording, Stream, decoded

# A live writer closes a chunk after so much of the messages' time: a killed run loses no more than this.
FLUSH_NS = 1_000_000_000

# Samples of a stream that are written together.
_PIECE = 1 << 14

_INFO, _META = "armlet.recording", "armlet.meta"
_STREAMS, _LABELS, _PACKETS, _DECISIONS = "/streams/", "/labels", "/packets", "/decisions"
_NUMBER, _STRING = {"type": "number"}, {"type": "string"}


class _PacketMessage(msgspec.Struct, forbid_unknown_fields=True):
    wearable: str
    kind: str
    source: str
    data: bytes


class _LabelMessage(msgspec.Struct, forbid_unknown_fields=True):
    start_ns: int
    end_ns: int
    name: str


_NAMES, _NUMBERS = {"type": "array", "items": _STRING}, {"type": "array", "items": _NUMBER}
_DECISION_SCHEMA = {
    "index": _NUMBER,
    "subset": _NAMES,
    "label": {"type": ["string", "null"]},
    "scores": _NUMBERS,
    "reason": {"type": ["string", "null"]},
    "latency_s": {"type": ["number", "null"]},
}
"""What programs that plot it need; the rest of a decision is there as well."""


class _WholeRecords:
    """What mcap writes into: its bytes reach the file together, or those that did are taken back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0
        self._waiting = bytearray()

    @property
    def waiting(self) -> bool:
        """Whether there are bytes that :meth:`flush` would write."""
        return bool(self._waiting)

    def write(self, data: bytes) -> None:
        self._waiting += data

    def tell(self) -> int:
        return self._size + len(self._waiting)

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: It cannot be written; the file ends where it ended before.
        """
        left = bytes(self._waiting)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            with suppress(OSError):  # a reader leaves the cut record out as well
                self._file.truncate(self._size)
            raise
        self._size += len(self._waiting)
        self._waiting.clear()


class RecordingWriter:
    """Writes a recording as it comes; what was flushed is readable even if the process is killed.

    Use it as a context manager, or call :meth:`close`. Packets and decisions are flushed once a second of their own
    time (:data:`FLUSH_NS`). A new file that an error leaves without any message is removed, so that its name is free
    for the next attempt. A file that no :meth:`close` has ended is read back as ``truncated``.

    A file that cannot be written, as on a full disk, ends there and stays readable: what comes later is lost and
    counted, and no method raises because of it.

    Attributes:
        problem: Why the file could not be written to its end; empty if all is well.
        lost: Messages (packets, decisions) that the file lacks because of it.
    """

    def __init__(self, file: BinaryIO, name: str, person: str, meta: Mapping[str, str] | None = None) -> None:
        """Begin a recording in an open file."""
        from mcap.writer import Writer

        self._file = file
        self._created: Path | None = None
        self._records = _WholeRecords(file)
        self._writer = Writer(self._records, enable_data_crcs=True)
        self._channels: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._flushed_ns: int | None = None
        self._unwritten = 0  # messages that are not in the file yet
        self.problem = ""
        self.lost = 0
        self._writer.start(profile="armlet", library="armlet")
        self._writer.add_metadata(_INFO, {"name": name, "person": person})
        self._writer.add_metadata(_META, dict(meta or {}))
        self._attempt(self._writer.flush)

    @classmethod
    def create(cls, path: Path, name: str, person: str, meta: Mapping[str, str] | None = None) -> RecordingWriter:
        """Begin a recording in a new file.

        Raises:
            DataError: The file exists (a recording is never overwritten), or cannot be made.
        """
        try:
            file = path.open("xb", buffering=0)
        except FileExistsError as error:
            raise DataError(f"{path} exists already: choose another name for the new recording") from error
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}") from error
        writer = cls(file, name, person, meta)
        writer._created = path
        if writer.problem:
            file.close()
            path.unlink()
            raise DataError(f"{path} cannot be written: {writer.problem}")
        return writer

    def stream(self, stream: Stream) -> None:
        """Write a whole stream.

        Raises:
            DataError: Its arrays do not fit :class:`Stream`, its times are negative, or a value is infinite.
        """
        _check_stream(stream)
        modality = stream.modality
        topic = _STREAMS + modality.name
        self._channel(
            topic,
            {name: {"type": ["number", "null"]} for name in modality.channels},
            {"modality": msgspec.json.encode(modality).decode()},
        )
        # In pieces: as objects of Python the numbers take ten times the memory.
        for start in range(0, len(stream.times_ns), _PIECE):
            piece = slice(start, start + _PIECE)
            rows: list[list[float]] = stream.values[piece].tolist()  # float32 to float is exact, as JSON keeps it
            for time, row in zip(stream.times_ns[piece].tolist(), rows, strict=True):
                self._write(topic, time, dict(zip(modality.channels, row, strict=True)))

    def label(self, label: Label) -> None:
        """Write one label."""
        self._channel(_LABELS, {"start_ns": _NUMBER, "end_ns": _NUMBER, "name": _STRING}, {})
        self._write(_LABELS, label.start_ns, _LabelMessage(label.start_ns, label.end_ns, label.name))

    def packet(self, packet: Packet) -> None:
        """Write one packet; packets come in order of arrival."""
        data = {"type": "string", "contentEncoding": "base64"}
        self._channel(_PACKETS, {"wearable": _STRING, "kind": _STRING, "source": _STRING, "data": data}, {})
        message = _PacketMessage(packet.wearable, packet.kind, packet.source, packet.data)
        self._write(_PACKETS, packet.arrival_ns, message)
        self._flush_by(packet.arrival_ns)

    def decision(self, decided_ns: int, line: bytes) -> None:
        """Write one decision: when it fell due, and itself as :attr:`Recording.decisions` has it."""
        self._channel(_DECISIONS, _DECISION_SCHEMA, {})
        self._add(_DECISIONS, decided_ns, line)
        self._flush_by(decided_ns)

    def add_meta(self, meta: Mapping[str, str]) -> None:
        """Write more of the recording's meta."""
        self._writer.add_metadata(_META, dict(meta))
        self._attempt(self._records.flush)

    def finish(self) -> None:
        """Write what is left and the index; nothing can be written after it. The file stays open."""
        if not self.problem:
            self._writer.finish()
            self._attempt(self._records.flush)

    def close(self) -> None:
        """:meth:`finish`, flush to the disk and close the file; a second call does nothing."""
        if self._file.closed:
            return
        self.finish()
        self._attempt(lambda: os.fsync(self._file.fileno()))
        try:
            self._file.close()
        except OSError as error:  # some file systems say only here that they are full
            self.problem = self.problem or str(error.strerror)

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is not None and self._created is not None and not self._counts:
            self._created.unlink(missing_ok=True)

    def _channel(self, topic: str, properties: Mapping[str, object], metadata: dict[str, str]) -> None:
        if topic in self._channels:
            return
        schema = msgspec.json.encode({"type": "object", "title": topic, "properties": properties})
        schema_id = self._writer.register_schema("armlet" + topic.replace("/", "."), "jsonschema", schema)
        self._channels[topic] = self._writer.register_channel(topic, "json", schema_id, metadata)
        self._counts[topic] = 0

    def _write(self, topic: str, time_ns: int, message: object) -> None:
        self._add(topic, time_ns, msgspec.json.encode(message))

    def _add(self, topic: str, time_ns: int, data: bytes) -> None:
        if self.problem:
            self.lost += 1
            return
        self._writer.add_message(self._channels[topic], time_ns, data, time_ns, self._counts[topic] & 0xFFFFFFFF)
        self._counts[topic] += 1
        self._unwritten += 1
        if self._records.waiting:  # a chunk is full
            self._attempt(self._records.flush)

    def _flush_by(self, now_ns: int) -> None:
        if self._flushed_ns is None or now_ns - self._flushed_ns >= FLUSH_NS:
            self._attempt(self._writer.flush)
            self._flushed_ns = now_ns

    def _attempt(self, write: Callable[[], None]) -> None:
        """Write to the file, unless that has failed before; the messages that it lacks then are counted."""
        if self.problem:
            return
        try:
            write()
        except OSError as error:
            self.problem = error.strerror or type(error).__name__
            self.lost += self._unwritten
        self._unwritten = 0


def write_recording(path: Path, recording: Recording) -> None:
    """Write a whole recording, or nothing: an existing file is replaced only by a complete one.

    Reading it back gives the same recording: times and labels to the nanosecond, values bit for bit.

    Raises:
        DataError: A stream does not fit :class:`Stream`, a time is negative, a value is infinite (MCAP and JSON
            have none of these), or the file cannot be written.
    """
    times = [label.start_ns for label in recording.labels] + [packet.arrival_ns for packet in recording.packets]
    if min(times, default=0) < 0:
        raise DataError(f"the recording '{recording.name}' has a time before 0, which an MCAP file cannot keep")
    buffer = io.BytesIO()
    writer = RecordingWriter(buffer, recording.name, recording.person, recording.meta)
    for stream in recording.streams.values():
        writer.stream(stream)
    for label in recording.labels:
        writer.label(label)
    for packet in recording.packets:
        writer.packet(packet)
    for line in recording.decisions:
        writer.decision(decoded(line).decided_ns, line)
    writer.finish()
    try:
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def read_recording(path: Path) -> Recording:
    """Read a recording.

    A file without its end, as a killed run leaves it, is read up to its last whole chunk and marked ``truncated``.

    Raises:
        ForeignRecordingError: It is an MCAP file that armlet did not write.
        DataError: The file cannot be read, is no MCAP file, or is damaged.
    """
    from mcap.exceptions import EndOfFile, InvalidMagic, RecordLengthLimitExceeded
    from mcap.stream_reader import StreamReader
    from mcap.writer import MCAP0_MAGIC

    content = _Content()
    truncated = False
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            reader = StreamReader(_Exact(file), emit_chunks=True, validate_crcs=True, record_size_limit=size)
            for record in reader.records:
                content.add(record)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except InvalidMagic as error:
        raise DataError(f"{path} is not an MCAP file") from error
    except (EndOfFile, RecordLengthLimitExceeded) as error:  # the last record is longer than the rest of the file
        if size < len(MCAP0_MAGIC):
            raise DataError(f"{path} is not an MCAP file: it has {size} bytes") from error
        truncated = True
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    except Exception as error:  # whatever else mcap and zstd raise on bytes that they cannot read
        raise DataError(f"{path} is damaged: {type(error).__name__} {error}") from error
    try:
        return content.recording(truncated)
    except DataError as error:
        raise type(error)(f"{path}: {error}") from error


class _Exact:
    """A file whose reads are complete or report the end; mcap takes a short read for a complete one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        from mcap.exceptions import EndOfFile

        data = self._file.read(count)
        if len(data) < count:
            raise EndOfFile
        return data


class _Content:
    """Collects the records of an MCAP file from front to back, so that a missing index does not matter."""

    def __init__(self) -> None:
        self._channels: dict[int, Any] = {}
        self._times: dict[str, list[int]] = {}
        self._messages: dict[str, list[bytes]] = {}
        self._metadata: dict[str, dict[str, str]] = {}

    def add(self, record: Any) -> None:
        from mcap.exceptions import EndOfFile
        from mcap.records import Channel, Chunk, Message, Metadata
        from mcap.stream_reader import breakup_chunk

        if isinstance(record, Chunk):
            try:
                inner = breakup_chunk(record, validate_crc=True)
            except EndOfFile as error:
                raise DataError("a chunk ends early") from error
            for message in inner:
                self.add(message)
        elif isinstance(record, Metadata):
            self._metadata.setdefault(record.name, {}).update(record.metadata)
        elif isinstance(record, Channel):
            self._channels[record.id] = record
            self._times.setdefault(record.topic, [])
            self._messages.setdefault(record.topic, [])
        elif isinstance(record, Message):
            topic = self._channels[record.channel_id].topic
            self._times[topic].append(record.log_time)
            self._messages[topic].append(record.data)

    def recording(self, truncated: bool) -> Recording:
        info = self._metadata.get(_INFO, {})
        if not {"name", "person"} <= info.keys():
            raise ForeignRecordingError("it is an MCAP file, but holds no armlet recording")
        recording = Recording(info["name"], info["person"], self._metadata.get(_META, {}), truncated=truncated)
        try:
            for channel in self._channels.values():
                if channel.topic.startswith(_STREAMS):
                    modality = msgspec.json.decode(channel.metadata["modality"], type=Modality)
                    recording.streams[modality.name] = self._stream(modality, channel.topic)
            labels = self._decode(_LABELS, _LabelMessage)
            packets = self._decode(_PACKETS, _PacketMessage)
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise DataError(f"a message does not follow its schema: {error}") from error
        recording.labels = [Label(m.start_ns, m.end_ns, m.name) for m in labels]
        recording.decisions = self._messages.get(_DECISIONS, [])
        times = self._times.get(_PACKETS, [])
        recording.packets = [
            Packet(time, m.wearable, m.kind, m.source, m.data) for time, m in zip(times, packets, strict=True)
        ]
        return recording

    def _decode(self, topic: str, kind: Any) -> list[Any]:
        # One call for all messages is much faster than a call for each.
        joined = b"[" + b",".join(self._messages.get(topic, [])) + b"]"
        return list(msgspec.json.decode(joined, type=list[kind]))

    def _stream(self, modality: Modality, topic: str) -> Stream:
        rows = self._decode(topic, dict[str, float | None])
        columns = [np.array([row[name] for row in rows], np.float64) for name in modality.channels]
        values = np.stack(columns, axis=1).astype(np.float32) if columns else np.zeros((len(rows), 0), np.float32)
        stream = Stream(modality, np.array(self._times[topic], np.int64), values)
        _check_stream(stream)
        return stream


def _check_stream(stream: Stream) -> None:
    name, channels = stream.modality.name, len(stream.modality.channels)
    times, values = stream.times_ns, stream.values
    if times.dtype != np.int64 or values.dtype != np.float32 or values.shape != (len(times), channels):
        raise DataError(
            f"the stream '{name}' needs int64 times (n,) and float32 values (n, {channels}), "
            f"not {times.dtype} {times.shape} and {values.dtype} {values.shape}"
        )
    if len(times) and (times[0] < 0 or (np.diff(times) <= 0).any()):
        raise DataError(f"the times of the stream '{name}' must not be negative and must rise strictly")
    if np.isinf(values).any():
        raise DataError(f"the stream '{name}' holds an infinite value")
