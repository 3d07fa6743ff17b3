"""The Pulse Oximeter service of the Bluetooth SIG: oxygen saturation and pulse, spot checks and continuous.

Source: Pulse Oximeter Service 1.0.1, 3.1 and 3.2, and the GATT Specification Supplement, 0x2A5E and 0x2A5F. All numbers
are little-endian; SFLOAT is that of :mod:`armlet_runtime.wearables.ieee11073`. ``continuous`` (notify)::

    u8         flags   bit 0: fast follows; 1: slow follows; 2: measurement status; 3: device status; 4: pulse amplitude
    2 SFLOAT   normal  oxygen saturation in percent, pulse in beats a minute
    2 SFLOAT   fast    if bit 0
    2 SFLOAT   slow    if bit 1
    u16        measurement status, if bit 2
    u24        device and sensor status, if bit 3
    SFLOAT     pulse amplitude index, if bit 4

``spot check`` (indicate) has the flags: bit 0 time stamp (7 bytes), 1 measurement status (u16), 2 device status (u24),
3 pulse amplitude (SFLOAT), 4 the clock is not set; and then the two SFLOAT, and what the flags say in that order.

The service has no clock that is good for windows (a time stamp counts seconds): a measurement's time is its arrival.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from ..errors import PacketError
from ..modalities import Modality
from .ieee11073 import sfloat, to_sfloat
from .profile import UNITS, Batch, Group, ProfileBase, Steps, Subscribe, Wanted, sig

SERVICE_UUID = sig(0x1822)
SPOT_UUID = sig(0x2A5E)
CONTINUOUS_UUID = sig(0x2A5F)

SPO2 = Modality("spo2", ("spo2",), UNITS["spo2"], 1.0)
PULSE = Modality("hr", ("bpm",), UNITS["hr"], 1.0)
GROUP = Group("oximeter", (SPO2, PULSE))

_FLAGS_AND_NORMAL = struct.Struct("<BHH")
_CONTINUOUS_FIELDS = (4, 4, 2, 3, 2)  # bytes of what bits 0, 1, ... of the flags announce
_SPOT_FIELDS = (7, 2, 3, 2)


def encode(spo2: float, bpm: float) -> bytes:
    """A continuous measurement with nothing optional; NaN for what could not be measured."""
    return _FLAGS_AND_NORMAL.pack(0, to_sfloat(spo2, 1), to_sfloat(bpm, 0))


def decode(source: str, data: bytes) -> tuple[float, float]:
    """Oxygen saturation (percent) and pulse (beats a minute) of a measurement; NaN for what could not be measured.

    Raises:
        PacketError: The bytes are not as long as their flags say.
    """
    if len(data) < _FLAGS_AND_NORMAL.size:
        raise PacketError(f"oximeter packet is {len(data)} bytes long, needs {_FLAGS_AND_NORMAL.size}")
    flags, spo2, bpm = _FLAGS_AND_NORMAL.unpack_from(data)
    fields = _SPOT_FIELDS if source == SPOT_UUID else _CONTINUOUS_FIELDS
    wanted = _FLAGS_AND_NORMAL.size + sum(size for bit, size in enumerate(fields) if flags >> bit & 1)
    if len(data) != wanted:
        raise PacketError(f"oximeter packet with flags 0x{flags:02x} must be {wanted} bytes long, not {len(data)}")
    return sfloat(spo2), sfloat(bpm)


class OximeterDecoder:
    """Saturation and pulse as modalities. A measurement that lacks either, or is impossible, is no sample."""

    groups: tuple[Group, ...] = (GROUP,)

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """See :class:`armlet_runtime.wearables.profile.Decoder`."""
        spo2, bpm = decode(source, data)
        valid = math.isfinite(spo2) and math.isfinite(bpm) and 0 < spo2 <= 100 and 0 < bpm < 1000
        shape = (int(valid), 1)
        values = {SPO2.name: np.full(shape, spo2, np.float32), PULSE.name: np.full(shape, bpm, np.float32)}
        return [Batch(GROUP, values)]


class OximeterProfile(ProfileBase):
    """The Pulse Oximeter service as a profile."""

    name: str = "oximeter"
    services: tuple[str, ...] = (SERVICE_UUID,)
    sources: tuple[str, ...] = (CONTINUOUS_UUID, SPOT_UUID)
    carries: tuple[str, ...] = (SPO2.name, PULSE.name)
    silence_s: float = 120.0  # a spot check comes when a person makes it

    def start(self, wanted: Wanted) -> Steps:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        for source in self.sources:
            if source in wanted.characteristics:
                yield Subscribe(source)

    def decoder(self) -> OximeterDecoder:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        return OximeterDecoder()
