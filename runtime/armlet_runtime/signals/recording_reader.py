"""Reading recordings: files in MCAP, also those whose writer was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from ..errors import DataError, ForeignRecordingError
from ..modalities import Modality
from .recording import Label, Packet, Recording, Stream
from .recording_layout import DECISIONS, INFO, LABELS, META, PACKETS, STREAMS, LabelMessage, PacketMessage, check_stream


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
        info = self._metadata.get(INFO, {})
        if not {"name", "person"} <= info.keys():
            raise ForeignRecordingError("it is an MCAP file, but holds no armlet recording")
        recording = Recording(info["name"], info["person"], self._metadata.get(META, {}), truncated=truncated)
        try:
            for channel in self._channels.values():
                if channel.topic.startswith(STREAMS):
                    modality = msgspec.json.decode(channel.metadata["modality"], type=Modality)
                    recording.streams[modality.name] = self._stream(modality, channel.topic)
            labels = self._decode(LABELS, LabelMessage)
            packets = self._decode(PACKETS, PacketMessage)
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise DataError(f"a message does not follow its schema: {error}") from error
        recording.labels = [Label(m.start_ns, m.end_ns, m.name) for m in labels]
        recording.decisions = self._messages.get(DECISIONS, [])
        times = self._times.get(PACKETS, [])
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
        check_stream(stream)
        return stream
