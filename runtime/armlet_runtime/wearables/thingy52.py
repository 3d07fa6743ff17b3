"""Nordic Thingy:52, its motion service: acceleration, gyroscope, magnetometer.

Source: Nordic-Thingy52-FW documentation (github.com/NordicSemiconductor/Nordic-Thingy52-FW, "Motion service" in the
firmware architecture). Little-endian::

    configuration (read, write)  u16 pedometer interval ms, u16 temperature compensation interval ms,
                                 u16 magnetometer compensation interval ms, u16 rate in Hz (5 to 200), u8 wake on motion
    raw data (notify)            3 x s16 acceleration, 6Q10: 1/1024 g
                                 3 x s16 gyroscope, 11Q5: 1/32 degree/s
                                 3 x s16 magnetometer, 12Q4: 1/16 uT

One notification is one sample. There is neither clock nor counter.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from ..errors import PacketError
from ..modalities import Modality
from .profile import SENSOR_DRIFT_PPM, UNITS, XYZ, Batch, Counters, Group, ProfileBase, Steps, Subscribe, Wanted, Write

SERVICE_UUID = "ef680400-9b35-4933-9b10-52ffa9740042"
CONFIGURATION_UUID = "ef680401-9b35-4933-9b10-52ffa9740042"
RAW_UUID = "ef680406-9b35-4933-9b10-52ffa9740042"
ADVERTISED_UUID = "ef680100-9b35-4933-9b10-52ffa9740042"
"""UUID of the Thingy's configuration service, which it advertises."""

SCALES = {"acc": 1 / 1024, "gyro": math.radians(1 / 32), "mag": 1 / 16}
SLOWEST_HZ, FASTEST_HZ, DEFAULT_HZ = 5, 200, 50
COUNTERS = Counters(drift_ppm=SENSOR_DRIFT_PPM)

CONFIGURATION = struct.Struct("<HHHHB")
# As the firmware has them by default; only the rate is of interest.
_PEDOMETER_MS, _TEMPERATURE_MS, _MAGNETOMETER_MS, _WAKE = 500, 500, 500, 1
_RAW = struct.Struct("<9h")


def configuration(rate_hz: int) -> bytes:
    """The bytes of a configuration."""
    return CONFIGURATION.pack(_PEDOMETER_MS, _TEMPERATURE_MS, _MAGNETOMETER_MS, rate_hz, _WAKE)


def encode(values: dict[str, list[float]]) -> bytes:
    """The bytes of one sample; by modality its three axes."""
    raw = [round(axis / scale) for name, scale in SCALES.items() for axis in values[name]]
    return _RAW.pack(*(max(-32768, min(32767, value)) for value in raw))


class ThingyDecoder:
    """Decodes one connection. The rate is that which was written."""

    def __init__(self) -> None:
        self.groups: tuple[Group, ...] = ()

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """See :class:`armlet_runtime.wearables.profile.Decoder`."""
        if source == CONFIGURATION_UUID:
            self._configured(data)
            return []
        if not self.groups:
            raise PacketError("a Thingy:52 sample came before its rate was set")
        if len(data) != _RAW.size:
            raise PacketError(f"Thingy:52 sample is {len(data)} bytes long, not {_RAW.size}")
        raw = np.array(_RAW.unpack(data), np.float64).reshape(3, 1, 3)
        values = {name: (raw[i] * scale).astype(np.float32) for i, (name, scale) in enumerate(SCALES.items())}
        return [Batch(self.groups[0], values)]

    def _configured(self, data: bytes) -> None:
        if len(data) != CONFIGURATION.size:
            raise PacketError(f"Thingy:52 configuration is {len(data)} bytes long, not {CONFIGURATION.size}")
        rate = CONFIGURATION.unpack(data)[3]
        if not SLOWEST_HZ <= rate <= FASTEST_HZ:
            raise PacketError(f"Thingy:52 cannot sample at {rate} Hz")
        modalities = tuple(Modality(name, XYZ, UNITS[name], float(rate)) for name in SCALES)
        self.groups = (Group("thingy52", modalities, COUNTERS),)


class ThingyProfile(ProfileBase):
    """The motion service as a profile."""

    name: str = "thingy52"
    services: tuple[str, ...] = (SERVICE_UUID,)
    advertised: tuple[str, ...] = (ADVERTISED_UUID,)
    sources: tuple[str, ...] = (CONFIGURATION_UUID, RAW_UUID)
    carries: tuple[str, ...] = tuple(SCALES)

    def start(self, wanted: Wanted) -> Steps:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        rate = round(wanted.rate_hz(self.carries, DEFAULT_HZ))
        yield Write(CONFIGURATION_UUID, configuration(max(SLOWEST_HZ, min(FASTEST_HZ, rate))))
        yield Subscribe(RAW_UUID)

    def decoder(self) -> ThingyDecoder:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        return ThingyDecoder()
