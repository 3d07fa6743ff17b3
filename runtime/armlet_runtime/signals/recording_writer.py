"""Writing recordings: a live run's as it goes on, and whole ones; :mod:`.recording_layout` has the layout."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from ..errors import DataError
from ..files import write_atomic
from .recording import Label, Packet, Recording, Stream, decoded
from .recording_layout import DECISIONS, INFO, LABELS, META, PACKETS, STREAMS, LabelMessage, PacketMessage, check_stream

# A live writer closes a chunk after so much of the messages' time: a killed run loses no more than this.
FLUSH_NS = 1_000_000_000

# Samples of a stream that are written together.
_PIECE = 1 << 14

_NUMBER, _STRING = {"type": "number"}, {"type": "string"}


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
        self._writer.add_metadata(INFO, {"name": name, "person": person})
        self._writer.add_metadata(META, dict(meta or {}))
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
        check_stream(stream)
        modality = stream.modality
        topic = STREAMS + modality.name
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
        self._channel(LABELS, {"start_ns": _NUMBER, "end_ns": _NUMBER, "name": _STRING}, {})
        self._write(LABELS, label.start_ns, LabelMessage(label.start_ns, label.end_ns, label.name))

    def packet(self, packet: Packet) -> None:
        """Write one packet; packets come in order of arrival."""
        data = {"type": "string", "contentEncoding": "base64"}
        self._channel(PACKETS, {"wearable": _STRING, "kind": _STRING, "source": _STRING, "data": data}, {})
        message = PacketMessage(packet.wearable, packet.kind, packet.source, packet.data)
        self._write(PACKETS, packet.arrival_ns, message)
        self._flush_by(packet.arrival_ns)

    def decision(self, decided_ns: int, line: bytes) -> None:
        """Write one decision: when it fell due, and itself as :attr:`Recording.decisions` has it."""
        self._channel(DECISIONS, _DECISION_SCHEMA, {})
        self._add(DECISIONS, decided_ns, line)
        self._flush_by(decided_ns)

    def add_meta(self, meta: Mapping[str, str]) -> None:
        """Write more of the recording's meta."""
        self._writer.add_metadata(META, dict(meta))
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
