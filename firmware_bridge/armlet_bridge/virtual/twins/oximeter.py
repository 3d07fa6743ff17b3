"""The SIG's Pulse Oximeter service, as a twin: see :mod:`armlet_runtime.wearables.oximeter`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from armlet_runtime.errors import UsageError
from armlet_runtime.signals import Stream
from armlet_runtime.wearables import oximeter

from .base import NOTIFY, DeviceClock, Due, Twin, characteristic


class OximeterTwin(Twin):
    """The SIG's Pulse Oximeter service (:mod:`armlet_runtime.wearables.oximeter`), continuous."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        pair = [streams["spo2"], streams["hr"]]
        if not np.array_equal(pair[0].times_ns, pair[1].times_ns):
            raise UsageError("spo2 and hr are not sampled at the same times: give each a wearable of its own")
        self._streams = pair
        continuous = characteristic(oximeter.CONTINUOUS_UUID, NOTIFY)
        super().__init__(oximeter.SERVICE_UUID, [continuous], [oximeter.CONTINUOUS_UUID])

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`; a NaN is sent as the NaN of the format."""
        times_ns = self._streams[0].times_ns
        for i in range(*np.searchsorted(times_ns, (begin_ns, end_ns)).tolist()):
            spo2, bpm = (float(stream.values[i, 0]) for stream in self._streams)
            yield Due(int(times_ns[i]), oximeter.encode(spo2, bpm), oximeter.CONTINUOUS_UUID)
