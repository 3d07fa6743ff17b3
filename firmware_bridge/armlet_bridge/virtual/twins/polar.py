"""Polar's measurement service, as a twin: see :mod:`armlet_runtime.wearables.polar`."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.signals import Stream
from armlet_runtime.wearables import polar

from .base import INDICATE, NOTIFY, READ, WRITE, DeviceClock, Due, Twin, characteristic, chunks, keep, taken

POLAR_FACTORS = {polar.ACC: 8000 / 32768, polar.GYRO: 2000 / 32768, polar.MAG: 50 / 32768}
"""Of a Verity Sense: +-8 g in thousandths, +-2000 degrees/s, +-50 gauss in 16 bits."""

POLAR_FRAME_S = 0.25
"""Time of the samples in a frame, seconds."""


class PolarTwin(Twin):
    """Polar's measurement service (:mod:`armlet_runtime.wearables.polar`).

    With ECG it is an H10 and sends raw frames; else it is a Verity Sense and compresses.
    """

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        kinds = {kind.modality: number for number, kind in polar.KINDS.items()}
        self._streams = {kinds[name]: stream for name, stream in streams.items()}
        self._taken = {number: taken([stream]) for number, stream in self._streams.items()}
        self._compresses = "ecg" not in streams
        self._started: set[int] = set()
        features = bytes([polar.FEATURES, sum(1 << number for number in self._streams), 0])
        self._control = characteristic(polar.CONTROL_UUID, READ | WRITE | INDICATE, features, self._written)
        super().__init__(
            polar.SERVICE_UUID, [self._control, characteristic(polar.DATA_UUID, NOTIFY)], [polar.DATA_UUID]
        )
        self.advertised = polar.COMPANY_UUID

    def _settings(self, number: int) -> dict[int, tuple[float, ...]]:
        if number == polar.PPI:
            return {}
        rate = self._streams[number].modality.rate_hz
        bits = {polar.ECG: 14.0, polar.PPG: 22.0}.get(number, 16.0)
        return {polar.RATE: (rate,), polar.RESOLUTION: (bits,)}

    def _written(self, data: bytes) -> None:
        command, number = (data[0], data[1]) if len(data) > 1 else (0, 0)
        settings: dict[int, tuple[float, ...]] = {}
        error = polar.DONE
        if number not in self._streams:
            error = 2
        elif command == polar.GET:
            settings = self._settings(number)
        elif command == polar.START:
            if number in self._started:
                error = polar.ALREADY
            elif polar.decode_settings(data[2:]) != self._settings(number):
                error = 5
            else:
                self._started.add(number)
                if self._compresses and number in POLAR_FACTORS:
                    settings = {polar.FACTOR: (POLAR_FACTORS[number],)}
        elif command == polar.STOP:
            self._started.discard(number)
        else:
            error = 1
        answer = polar.encode_answer(polar.Answer(command, number, error, settings))
        keep(asyncio.ensure_future(self.device.indicate_subscribers(self._control, answer)))

    def is_due(self, due: Due) -> bool:
        """See :class:`Twin`: what was not started is not sent."""
        return due.value[0] in self._started

    def running(self, source: str) -> bool:
        """See :class:`Twin`."""
        return bool(self._started)

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`; a frame's clock is that of its last sample."""
        return heapq.merge(*(self._frames(number, begin_ns, end_ns, clock) for number in self._streams))

    def _frames(self, number: int, begin_ns: int, end_ns: int, clock: DeviceClock) -> Iterator[Due]:
        times_ns, (values,) = self._taken[number]
        rate_hz = self._streams[number].modality.rate_hz
        layout_byte, scale = self._layout(number)
        for chunk in chunks(times_ns, begin_ns, end_ns, rate_hz, max(1, round(rate_hz * POLAR_FRAME_S))):
            at_ns = int(times_ns[chunk.stop - 1])
            head = polar.HEAD.pack(number, clock.at(at_ns - begin_ns) * 1000, layout_byte)
            yield Due(at_ns, head + self._body(number, layout_byte, values[chunk], scale), polar.DATA_UUID)

    def _layout(self, number: int) -> tuple[int, float]:
        """Layout byte, and unit per LSB."""
        layout_byte = {polar.ECG: 0, polar.PPI: 0, polar.ACC: 1}.get(number, polar.COMPRESSED)
        if self._compresses and number == polar.ACC:
            layout_byte |= polar.COMPRESSED
        if number == polar.PPI:
            return layout_byte, 1e-3
        factor = POLAR_FACTORS.get(number, 1.0) if layout_byte & polar.COMPRESSED else 1.0
        return layout_byte, polar.LAYOUTS[number, layout_byte].scale * factor

    @staticmethod
    def _body(number: int, layout_byte: int, values: NDArray[np.float32], scale: float) -> bytes:
        raw = np.rint(values.astype(np.float64) / scale).astype(np.int64)
        if number == polar.PPI:
            return b"".join(bytes([0]) + int(ms).to_bytes(2, "little") + bytes([10, 0, 6]) for ms in raw[:, 0])
        bits = polar.LAYOUTS[number, layout_byte].bits
        raw = np.clip(raw, -(1 << bits - 1), (1 << bits - 1) - 1)
        if layout_byte & polar.COMPRESSED:
            return polar.compress(raw, bits)
        return b"".join(int(value).to_bytes(bits // 8, "little", signed=True) for value in raw.reshape(-1))

    def disconnected(self) -> None:
        """See :class:`Twin`."""
        self._started.clear()
