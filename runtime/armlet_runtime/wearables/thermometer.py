"""The Health Thermometer service of the Bluetooth SIG: body temperature, final and intermediate measurements.

Source: Health Thermometer Service 1.0, 3.1 and 3.3, and the GATT Specification Supplement, 0x2A1C and 0x2A1E. Both
characteristics (indicate, and notify) have one layout; FLOAT is that of :mod:`armlet_runtime.wearables.ieee11073`::

    u8     flags        bit 0: Fahrenheit; 1: time stamp follows; 2: kind of temperature follows
    FLOAT  temperature  in degrees Celsius or Fahrenheit
    7 B    time stamp, if bit 1
    u8     kind of temperature, if bit 2

A time stamp counts seconds: a measurement's time is its arrival.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from ..errors import PacketError
from ..modalities import Modality
from .ieee11073 import float32, to_float32
from .profile import UNITS, Batch, Group, ProfileBase, Steps, Subscribe, Wanted, sig

SERVICE_UUID = sig(0x1809)
FINAL_UUID = sig(0x2A1C)
INTERMEDIATE_UUID = sig(0x2A1E)

MODALITY = Modality("temp", ("body",), UNITS["temp"], 1.0)
GROUP = Group("thermometer", (MODALITY,))

_HEAD = struct.Struct("<BI")
_FAHRENHEIT, _STAMP, _KIND = 0x01, 0x02, 0x04
# Range of temperatures of a body or its skin; anything else is an invalid measurement.
_COLDEST, _HOTTEST = -50.0, 100.0


def encode(celsius: float) -> bytes:
    """A measurement with nothing optional; NaN for none."""
    return _HEAD.pack(0, to_float32(celsius, 2))


def decode(data: bytes) -> float:
    """Degrees Celsius; NaN if the packet holds no measurement.

    Raises:
        PacketError: The bytes are not as long as their flags say.
    """
    if len(data) < _HEAD.size:
        raise PacketError(f"thermometer packet is {len(data)} bytes long, needs {_HEAD.size}")
    flags, raw = _HEAD.unpack_from(data)
    wanted = _HEAD.size + (7 if flags & _STAMP else 0) + (1 if flags & _KIND else 0)
    if len(data) != wanted:
        raise PacketError(f"thermometer packet with flags 0x{flags:02x} must be {wanted} bytes long, not {len(data)}")
    value = float32(raw)
    return (value - 32) / 1.8 if flags & _FAHRENHEIT else value


class ThermometerDecoder:
    """Temperature as a modality. What no body can have is no sample."""

    groups: tuple[Group, ...] = (GROUP,)

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """See :class:`armlet_runtime.wearables.profile.Decoder`."""
        celsius = decode(data)
        valid = math.isfinite(celsius) and _COLDEST <= celsius <= _HOTTEST
        return [Batch(GROUP, {MODALITY.name: np.full((int(valid), 1), celsius if valid else 0.0, np.float32)})]


class ThermometerProfile(ProfileBase):
    """The Health Thermometer service as a profile."""

    name: str = "thermometer"
    services: tuple[str, ...] = (SERVICE_UUID,)
    sources: tuple[str, ...] = (FINAL_UUID, INTERMEDIATE_UUID)
    carries: tuple[str, ...] = (MODALITY.name,)
    silence_s: float = 120.0  # it measures when it is used

    def start(self, wanted: Wanted) -> Steps:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        for source in self.sources:
            if source in wanted.characteristics:
                yield Subscribe(source)

    def decoder(self) -> ThermometerDecoder:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        return ThermometerDecoder()
