"""The SIG's Health Thermometer service, as a twin: see :mod:`armlet_runtime.wearables.thermometer`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from armlet_runtime.signals import Stream
from armlet_runtime.wearables import thermometer

from .base import INDICATE, DeviceClock, Due, Twin, characteristic


class ThermometerTwin(Twin):
    """The SIG's Health Thermometer service (:mod:`armlet_runtime.wearables.thermometer`); it indicates."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        final = characteristic(thermometer.FINAL_UUID, INDICATE)
        super().__init__(thermometer.SERVICE_UUID, [final], [thermometer.FINAL_UUID])

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`; a NaN is sent as the NaN of the format."""
        times_ns = self._stream.times_ns
        for i in range(*np.searchsorted(times_ns, (begin_ns, end_ns)).tolist()):
            yield Due(int(times_ns[i]), thermometer.encode(float(self._stream.values[i, 0])), thermometer.FINAL_UUID)
