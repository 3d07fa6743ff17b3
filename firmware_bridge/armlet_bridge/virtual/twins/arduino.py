"""An Arduino with the dashboard's sketch, as a twin: see :mod:`armlet_runtime.wearables.arduino`."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

import numpy as np

from armlet_runtime.signals import Stream
from armlet_runtime.wearables import arduino

from .base import NOTIFY, DeviceClock, Due, Twin, characteristic, taken


class ArduinoTwin(Twin):
    """An Arduino with the dashboard's sketch (:mod:`armlet_runtime.wearables.arduino`)."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._taken = {name: taken([stream]) for name, stream in streams.items()}
        service = arduino.SERVICE_UUIDS[0]
        self._sources = {name: source for source, name in reversed(arduino.SOURCES.items()) if name in streams}
        sources = list(self._sources.values())
        super().__init__(service, [characteristic(source, NOTIFY) for source in sources], sources)

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`."""
        return heapq.merge(*(self._samples(name, begin_ns, end_ns) for name in self._taken))

    def _samples(self, name: str, begin_ns: int, end_ns: int) -> Iterator[Due]:
        times_ns, (values,) = self._taken[name]
        for i in range(*np.searchsorted(times_ns, (begin_ns, end_ns)).tolist()):
            yield Due(int(times_ns[i]), arduino.encode(name, values[i].tolist()), self._sources[name])
