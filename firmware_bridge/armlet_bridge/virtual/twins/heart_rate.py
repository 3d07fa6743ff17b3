"""The SIG's Heart Rate service, as a twin: see :mod:`armlet_runtime.wearables.heart_rate`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from armlet_runtime.signals import Stream
from armlet_runtime.wearables import heart_rate

from .base import NOTIFY, READ, DeviceClock, Due, Twin, characteristic

_CHEST = bytes([1])  # as a Body Sensor Location (0x2A38)


class HeartRateTwin(Twin):
    """The SIG's Heart Rate service (:mod:`armlet_runtime.wearables.heart_rate`), worn on the chest."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._rate = streams["hr"]
        self._intervals = streams.get("rr")
        self._energy = streams.get("energy")
        location = characteristic(heart_rate.LOCATION_UUID, READ, _CHEST)
        measurement = characteristic(heart_rate.MEASUREMENT_UUID, NOTIFY)
        super().__init__(heart_rate.SERVICE_UUID, [measurement, location], [heart_rate.MEASUREMENT_UUID])

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`; this service has neither clock nor counter. A NaN is sent as lost skin contact."""
        first, last = np.searchsorted(self._rate.times_ns, (begin_ns, end_ns))
        before_ns = begin_ns - 1
        for i in range(first, last):
            at_ns = int(self._rate.times_ns[i])
            bpm = float(self._rate.values[i, 0])
            contact = math.isfinite(bpm)
            measurement = heart_rate.HeartRate(
                round(bpm) if contact else 0,
                self._beats(before_ns, at_ns) if contact else (),
                contact,
                self._energy_kj(before_ns, at_ns),
            )
            yield Due(at_ns, heart_rate.encode(measurement), heart_rate.MEASUREMENT_UUID)
            before_ns = at_ns

    def _beats(self, after_ns: int, until_ns: int) -> tuple[float, ...]:
        if self._intervals is None:
            return ()
        first, last = np.searchsorted(self._intervals.times_ns, (after_ns + 1, until_ns + 1))
        return tuple(self._intervals.values[first:last, 0].tolist())

    def _energy_kj(self, after_ns: int, until_ns: int) -> int | None:
        if self._energy is None:
            return None
        first, last = np.searchsorted(self._energy.times_ns, (after_ns + 1, until_ns + 1))
        return round(float(self._energy.values[last - 1, 0])) if last > first else None
