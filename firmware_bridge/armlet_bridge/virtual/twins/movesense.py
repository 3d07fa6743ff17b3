"""A Movesense sensor, as a twin: see :mod:`armlet_runtime.wearables.movesense`."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator, Mapping

from armlet_runtime.signals import Stream
from armlet_runtime.wearables import movesense

from .base import NOTIFY, WRITE, DeviceClock, Due, Twin, characteristic, keep, taken, whole_chunks

MOVESENSE_BYTES = 155
"""Of a notification of a Movesense sensor, which agrees to an ATT MTU of 158: what is longer is sent in two."""


class MovesenseTwin(Twin):
    """A Movesense sensor (:mod:`armlet_runtime.wearables.movesense`)."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        motion = [streams[name] for name in movesense.SCALES if name in streams]
        self._motion = (motion[0].modality.rate_hz, *taken(motion)) if motion else None
        self._names = [stream.modality.name for stream in motion]
        self._ecg = (streams["ecg"].modality.rate_hz, *taken([streams["ecg"]])) if "ecg" in streams else None
        self._subscribed: dict[int, str] = {}
        write = characteristic(movesense.WRITE_UUID, WRITE, write=self._written)
        self._notify = characteristic(movesense.NOTIFY_UUID, NOTIFY)
        super().__init__(movesense.SERVICE_UUID, [write, self._notify], [movesense.NOTIFY_UUID])

    def _written(self, data: bytes) -> None:
        code, reference, path = data[0], data[1], data[2:].decode()
        if code == movesense.UNSUBSCRIBE:
            self._subscribed.pop(reference, None)
            return
        parts = path.strip("/").split("/")
        source = self._ecg if parts[1] == "ECG" else self._motion
        has = parts[1] == "ECG" or set(movesense.PATHS.get(parts[1], ())) <= set(self._names)
        status = 200 if source is not None and has and float(parts[2]) == source[0] else 404
        if status == 200:
            self._subscribed[reference] = parts[1]
        answer = bytes([movesense.ANSWER, reference]) + status.to_bytes(2, "little")
        keep(asyncio.ensure_future(self.device.notify_subscribers(self._notify, answer)))

    def running(self, source: str) -> bool:
        """See :class:`Twin`."""
        return bool(self._subscribed)

    def is_due(self, due: Due) -> bool:
        """See :class:`Twin`."""
        return due.value[1] in self._subscribed

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`."""
        return heapq.merge(self._motion_packets(begin_ns, end_ns, clock), self._ecg_packets(begin_ns, end_ns, clock))

    def _motion_packets(self, begin_ns: int, end_ns: int, clock: DeviceClock) -> Iterator[Due]:
        if self._motion is None:
            return
        rate_hz, times_ns, values = self._motion
        size = round(rate_hz / movesense.MOTION_PACKETS_HZ)
        for chunk in whole_chunks(times_ns, begin_ns, end_ns, rate_hz, size):
            names = movesense.PATHS.get(self._subscribed.get(movesense.MOTION_REF, ""), ("acc",))
            samples = {name: array[chunk] for name, array in zip(self._names, values, strict=True) if name in names}
            clock_ms = clock.at(int(times_ns[chunk.start]) - begin_ns) // 1000
            data = movesense.encode_motion(movesense.MOTION_REF, clock_ms, samples)
            at_ns = int(times_ns[chunk.stop - 1])
            yield Due(at_ns, data[:MOVESENSE_BYTES], movesense.NOTIFY_UUID)
            if len(data) > MOVESENSE_BYTES:
                rest = bytes([movesense.REST, movesense.MOTION_REF]) + data[MOVESENSE_BYTES:]
                yield Due(at_ns + 1, rest, movesense.NOTIFY_UUID)

    def _ecg_packets(self, begin_ns: int, end_ns: int, clock: DeviceClock) -> Iterator[Due]:
        if self._ecg is None:
            return
        rate_hz, times_ns, (values,) = self._ecg
        for chunk in whole_chunks(times_ns, begin_ns, end_ns, rate_hz, movesense.ECG_PER_PACKET):
            clock_ms = clock.at(int(times_ns[chunk.start]) - begin_ns) // 1000
            data = movesense.encode_ecg(movesense.ECG_REF, clock_ms, values[chunk, 0])
            yield Due(int(times_ns[chunk.stop - 1]), data, movesense.NOTIFY_UUID)

    def disconnected(self) -> None:
        """See :class:`Twin`."""
        self._subscribed.clear()
