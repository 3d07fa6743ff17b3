"""A Thingy:52, as a twin: see :mod:`armlet_runtime.wearables.thingy52`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from armlet_runtime.signals import Stream
from armlet_runtime.wearables import thingy52

from .base import NOTIFY, READ, WRITE, DeviceClock, Due, Twin, characteristic, taken


class ThingyTwin(Twin):
    """A Thingy:52 (:mod:`armlet_runtime.wearables.thingy52`)."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._rate_hz = streams["acc"].modality.rate_hz
        self._times_ns, values = taken([streams[name] for name in thingy52.SCALES])
        self._values = dict(zip(thingy52.SCALES, values, strict=True))
        self._set_hz = 0
        config = characteristic(
            thingy52.CONFIGURATION_UUID, READ | WRITE, thingy52.configuration(round(self._rate_hz)), self._written
        )
        raw = characteristic(thingy52.RAW_UUID, NOTIFY)
        super().__init__(thingy52.SERVICE_UUID, [config, raw], [thingy52.RAW_UUID])
        self.advertised = thingy52.ADVERTISED_UUID

    def _written(self, data: bytes) -> None:
        self._set_hz = thingy52.CONFIGURATION.unpack(data)[3]

    def running(self, source: str) -> bool:
        """See :class:`Twin`; it can only be played at the recording's rate."""
        return self._set_hz == round(self._rate_hz)

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`."""
        for i in range(*np.searchsorted(self._times_ns, (begin_ns, end_ns)).tolist()):
            sample = {name: values[i].tolist() for name, values in self._values.items()}
            yield Due(int(self._times_ns[i]), thingy52.encode(sample), thingy52.RAW_UUID)
