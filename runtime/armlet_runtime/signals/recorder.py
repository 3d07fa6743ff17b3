"""The recording of a live run: begun with it, or at any time later, and then as good for a replay."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from ..errors import DataError
from .recording import BEGAN, ENDED_NS, Packet, now_text
from .recording_file import RecordingWriter

# Of one connection so many packets are remembered that gave no samples: a dozen commands with their answers, and room.
_REMEMBERED = 200


class Recorder:
    """Writes what arrives while a recording goes on. A context manager, which ends it.

    To decode what a wearable sends, a replay needs what was said when it was connected. That is remembered, so that a
    recording that begins later has it at its beginning.
    """

    def __init__(self) -> None:
        self._writer: RecordingWriter | None = None
        self._path: Path | None = None
        self._said: dict[str, deque[Packet]] = {}
        self._samples: dict[str, int] = {}

    @property
    def path(self) -> Path | None:
        """Where the recording is written that goes on; None if there is none."""
        return self._path

    def start(self, path: Path, meta: Mapping[str, str]) -> None:
        """Begin a recording.

        Raises:
            DataError: One goes on already, the file exists, or it cannot be made.
        """
        if self._path is not None:
            raise DataError(f"{self._path} is being recorded already")
        self._writer = RecordingWriter.create(path, path.stem, "", {BEGAN: now_text(), **meta})
        self._path = path
        for packet in sorted((one for said in self._said.values() for one in said), key=lambda one: one.arrival_ns):
            self._writer.packet(packet)

    def stop(self, ended_ns: int | None = None) -> Path:
        """End the recording; where it lies.

        Args:
            ended_ns: Up to when decisions were made, on the clock of the arrivals; None for now.

        Raises:
            DataError: There is none.
        """
        if self._writer is None or self._path is None:
            raise DataError("nothing is being recorded")
        self._writer.add_meta({ENDED_NS: str(time.monotonic_ns() if ended_ns is None else ended_ns)})
        self._writer.close()
        path, self._path, self._writer = self._path, None, None
        return path

    def write(self, packet: Packet) -> None:
        """Write a packet, if a recording goes on."""
        if self._writer is not None:
            self._writer.packet(packet)

    def decision(self, decided_ns: int, line: bytes) -> None:
        """Write a decision, if a recording goes on; see :meth:`RecordingWriter.decision`."""
        if self._writer is not None:
            self._writer.decision(decided_ns, line)

    def remember(self, packet: Packet, samples: int) -> None:
        """Keep a packet for recordings that begin later, if it was part of the conversation at the connection.

        Args:
            packet: The newest one of its wearable.
            samples: How many samples its wearable has given until now; a packet that gave some is no conversation.
        """
        name = packet.wearable
        gave = samples != self._samples.get(name, 0)
        self._samples[name] = samples
        if packet.kind == "connected":
            self._said[name] = deque(maxlen=_REMEMBERED)
        elif packet.kind == "disconnected":
            self._said.pop(name, None)
        if name in self._said and not gave:
            self._said[name].append(packet)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)
