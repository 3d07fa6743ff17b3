"""armlet's IMU service, as a twin: see :mod:`armlet_runtime.wearables.imu`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from armlet_runtime.errors import UsageError
from armlet_runtime.signals import Stream
from armlet_runtime.wearables import imu

from ...radio import ATT_MTU
from .base import NOTIFY, READ, DeviceClock, Due, Twin, characteristic, chunks, taken

SCALES = {
    "acc": 4.0 / 32768,
    "gyro": math.radians(1000) / 32768,
    "mag": 4912.0 / 32768,
}
"""Unit per LSB of the IMU: +-4 g, +-1000 degrees/s (17.45 rad/s), +-4912 uT, ranges that common 16-bit IMUs have."""


class ImuTwin(Twin):
    """armlet's IMU service (:mod:`armlet_runtime.wearables.imu`)."""

    def __init__(self, streams: Sequence[Stream], samples_per_packet: int) -> None:
        names = " and ".join(stream.modality.name for stream in streams)
        self._times_ns, values = taken(streams)
        if samples_per_packet < 1:
            raise UsageError(f"an IMU packet holds at least 1 sample, not {samples_per_packet}")
        self._samples_per_packet = samples_per_packet
        self._info = imu.ImuInfo(
            streams[0].modality.rate_hz, {stream.modality.name: SCALES[stream.modality.name] for stream in streams}
        )
        still = {name: np.zeros((samples_per_packet, 3), np.float32) for name in self._info.scales}
        length = len(imu.encode_data(self._info, 0, 0, still))
        if length > ATT_MTU - 3:
            raise UsageError(
                f"{samples_per_packet} samples of {names} make a packet of {length} bytes; {ATT_MTU - 3} is the most"
            )
        self._values = {stream.modality.name: array for stream, array in zip(streams, values, strict=True)}
        info = characteristic(imu.INFO_UUID, READ, imu.encode_info(self._info))
        super().__init__(imu.SERVICE_UUID, [info, characteristic(imu.DATA_UUID, NOTIFY)], [imu.DATA_UUID])

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`."""
        for chunk in chunks(self._times_ns, begin_ns, end_ns, self._info.rate_hz, self._samples_per_packet):
            samples = {name: values[chunk] for name, values in self._values.items()}
            clock_us = clock.at(int(self._times_ns[chunk.start]) - begin_ns)
            data = imu.encode_data(self._info, sequence, clock_us, samples)
            yield Due(int(self._times_ns[chunk.stop - 1]), data, imu.DATA_UUID)
            sequence += 1
