"""Something that prints lines, as a twin: see :mod:`armlet_runtime.wearables.uart`."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

import numpy as np

from armlet_runtime.signals import Stream
from armlet_runtime.wearables import uart

from .base import NOTIFY, WRITE, WRITE_QUIETLY, DeviceClock, Due, Twin, characteristic, taken

UART_BYTES = 20
"""Of a notification of Espruino's UART: lines straddle them."""


class UartTwin(Twin):
    """Something that prints lines (:mod:`armlet_runtime.wearables.uart`); a Bangle.js waits for its program."""

    def __init__(self, streams: Mapping[str, Stream], name: str) -> None:
        self._taken = {name: taken([stream]) for name, stream in streams.items()}
        self._rates_hz = {name: stream.modality.rate_hz for name, stream in streams.items()}
        self._is_bangle = name.startswith(uart.BANGLE_NAME)
        self._code = b""
        write = characteristic(uart.WRITE_UUID, WRITE | WRITE_QUIETLY, write=self._written)
        super().__init__(uart.SERVICE_UUID, [write, characteristic(uart.NOTIFY_UUID, NOTIFY)], [uart.NOTIFY_UUID])

    def _written(self, data: bytes) -> None:
        self._code += data

    def running(self, source: str) -> bool:
        """See :class:`Twin`; a program has come whole when its line has ended."""
        return not self._is_bangle or (b"Bangle.on(" in self._code and self._code.endswith(b"\n"))

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`."""
        lines = heapq.merge(*(self._lines(name, begin_ns, end_ns, clock) for name in self._taken))
        for at_ns, line, source in lines:
            for start in range(0, len(line), UART_BYTES):
                yield Due(at_ns + start, line[start : start + UART_BYTES], source)

    def _lines(self, name: str, begin_ns: int, end_ns: int, clock: DeviceClock) -> Iterator[Due]:
        times_ns, (values,) = self._taken[name]
        for i in range(*np.searchsorted(times_ns, (begin_ns, end_ns)).tolist()):
            clock_ms = clock.at(int(times_ns[i]) - begin_ns) // 1000
            line = uart.encode(clock_ms, self._rates_hz[name], {name: [round(x, 6) for x in values[i].tolist()]})
            yield Due(int(times_ns[i]), line, uart.NOTIFY_UUID)

    def disconnected(self) -> None:
        """See :class:`Twin`."""
        self._code = b""
