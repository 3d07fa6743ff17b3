"""Arduino Nano 33 BLE and BLE Sense with the sketch of Arduino's own "BLE Sense dashboard".

Sources: the sketch BLESense_TEST_DASHBOARD and its web page (arduino.github.io/ArduinoAI/BLESense-test-dashboard), and
"Nano 33 BLE Service", BLE_specification.md of vliegwerk/arduino-nano-33-ble, which has the same layout under UUIDs that
begin otherwise. Little-endian, one sample a notification::

    3001  3 x f32  acceleration in g
    3002  3 x f32  gyroscope in degrees/s
    3003  3 x f32  magnetic field in uT

The sketch sends each sample when the sensor has it; the library Arduino_LSM9DS1 sets that to 119 Hz (magnetometer 20).
There is neither clock nor counter. For a new sketch, armlet's IMU service (``armlet_imu.h``) is the better
choice: it has both.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from ..errors import PacketError
from ..modalities import Modality
from .profile import SENSOR_DRIFT_PPM, UNITS, XYZ, Batch, Counters, Group, ProfileBase, Steps, Subscribe, Wanted

_BASES = ("6fbe1da7-{}-44de-92c4-bb6e04fb0212", "e905de3e-{}-44de-92c4-bb6e04fb0212")
SERVICE_UUIDS = tuple(base.format("0000") for base in _BASES)
_NUMBERS = {"acc": "3001", "gyro": "3002", "mag": "3003"}
SOURCES = {base.format(number): name for base in _BASES for name, number in _NUMBERS.items()}
"""Characteristic to modality."""

RATES_HZ = {"acc": 119.0, "gyro": 119.0, "mag": 20.0}
SCALES = {"acc": 1.0, "gyro": math.pi / 180, "mag": 1.0}
"""From the sketch's unit to that of the modality."""
LARGEST = 1e6

_COUNTERS = Counters(drift_ppm=SENSOR_DRIFT_PPM)
GROUPS = {
    name: Group(f"arduino.{name}", (Modality(name, XYZ, UNITS[name], rate),), _COUNTERS)
    for name, rate in RATES_HZ.items()
}


def encode(name: str, axes: list[float]) -> bytes:
    """The bytes of one sample."""
    return (np.array(axes, np.float64) / SCALES[name]).astype("<f4").tobytes()


class ArduinoDecoder:
    """Decodes one connection."""

    groups: tuple[Group, ...] = tuple(GROUPS.values())

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """See :class:`armlet_runtime.wearables.profile.Decoder`."""
        name = SOURCES[source]
        if len(data) != 12:
            raise PacketError(f"Arduino sample of {name} is {len(data)} bytes long, not 12")
        axes = np.array(struct.unpack("<3f", data))
        if not (np.abs(axes) < LARGEST).all():  # also refuses NaN
            raise PacketError(f"Arduino sample of {name} holds what is no measurement")
        return [Batch(GROUPS[name], {name: (axes * SCALES[name]).astype(np.float32)[None, :]})]


class ArduinoProfile(ProfileBase):
    """The sketch as a profile."""

    name: str = "arduino"
    services: tuple[str, ...] = SERVICE_UUIDS
    sources: tuple[str, ...] = tuple(SOURCES)
    carries: tuple[str, ...] = tuple(RATES_HZ)

    def start(self, wanted: Wanted) -> Steps:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        for source, name in SOURCES.items():
            if source in wanted.characteristics and wanted.wants(name):
                yield Subscribe(source)

    def decoder(self) -> ArduinoDecoder:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        return ArduinoDecoder()
