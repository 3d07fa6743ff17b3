"""The recording of a live run: begun with it, or at any time later, and then as good for a replay."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ..errors import DataError
from .recording import BEGAN, ENDED_NS, Packet, now_text
from .recording_writer import RecordingWriter


class Recorder:
    """Writes what arrives while a recording goes on. A context manager, which ends it.

    A recording that cannot be written, as on a full disk, never disturbs the run: what comes then is lost and counted.

    Attributes:
        problem: A sentence on why the newest recording could not be written to its end; empty if it could.
        lost: Packets and decisions that the newest recording lacks because of it.
    """

    def __init__(self) -> None:
        self._writer: RecordingWriter | None = None
        self._path: Path | None = None
        self._opening: list[Packet] = []
        self.problem = ""
        self.lost = 0

    @property
    def path(self) -> Path | None:
        """Where the recording is written that goes on; None if nothing is being recorded."""
        return self._path

    def start(self, path: Path, meta: Mapping[str, str], opening: Iterable[Packet] = ()) -> None:
        """Begin a recording.

        Args:
            path: The new file.
            meta: Of the recording.
            opening: Of a recording that begins in the middle of a run: what a replay needs to decode the packets to
                come, see :attr:`.Wearable.opening`. It is written with the time of the first packet that follows, so
                that the recording begins when it was begun and not when the wearables were connected.

        Raises:
            DataError: One goes on already, the file exists, or it cannot be made.
        """
        if self._path is not None:
            raise DataError(f"{self._path} is being recorded already: end that recording first")
        self._writer = RecordingWriter.create(path, path.stem, "", {BEGAN: now_text(), **meta})
        self._path, self.problem, self.lost = path, "", 0
        self._opening = sorted(opening, key=lambda packet: packet.arrival_ns)

    def stop(self, ended_ns: int | None = None) -> Path:
        """End the recording; its path. :attr:`problem` says whether it is whole.

        Args:
            ended_ns: Up to when decisions were made, on the clock of the arrivals; None for now.

        Raises:
            DataError: Nothing is being recorded.
        """
        writer, path = self._writer, self._path
        if writer is None or path is None:
            raise DataError("nothing is being recorded")
        self._writer, self._path = None, None
        writer.add_meta({ENDED_NS: str(time.monotonic_ns() if ended_ns is None else ended_ns)})
        writer.close()
        self._look(writer, path)
        return path

    def write(self, packet: Packet) -> None:
        """Write a packet, if a recording goes on."""
        if self._writer is None or self._path is None:
            return
        if self._opening:
            for earlier in self._opening:
                self._writer.packet(replace(earlier, arrival_ns=packet.arrival_ns))
            self._opening = []
        self._writer.packet(packet)
        self._look(self._writer, self._path)

    def decision(self, decided_ns: int, line: bytes) -> None:
        """Write a decision, if a recording goes on; see :meth:`RecordingWriter.decision`."""
        if self._writer is not None and self._path is not None:
            self._writer.decision(decided_ns, line)
            self._look(self._writer, self._path)

    def _look(self, writer: RecordingWriter, path: Path) -> None:
        if writer.problem:
            self.problem = f"{path} cannot be written any more: {writer.problem}. The recording ends there."
            self.lost = writer.lost

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None and self._path is not None:
            self._writer.__exit__(kind, error, trace)
            self._look(self._writer, self._path)
