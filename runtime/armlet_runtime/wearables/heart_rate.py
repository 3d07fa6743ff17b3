"""The Heart Rate service of the Bluetooth SIG: chest straps, and watches that broadcast their heart rate.

Source: Heart Rate Service 1.0 and the GATT Specification Supplement, characteristic 0x2A37. All numbers are
little-endian. ``measurement`` (notify), about once a second::

    u8       flags   bit 0: the rate is a u16; bit 1: skin contact; bit 2: skin contact is measured at all;
                     bit 3: energy follows; bit 4: RR intervals follow; bits 5 to 7 reserved
    u8/u16   rate    beats a minute
    u16      energy  kJ since the last reset, if bit 3
    n x u16  RR      time between beats in 1/1024 s, oldest first, if bit 4

The service has neither a clock nor a counter: a measurement's time is its arrival, whose jitter of tens of milliseconds
is small against the second between two.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from ..errors import PacketError
from ..modalities import Modality
from .profile import UNITS, Batch, Group, ProfileBase, Steps, Subscribe, Wanted, sig

SERVICE_UUID = sig(0x180D)
MEASUREMENT_UUID = sig(0x2A37)
LOCATION_UUID = sig(0x2A38)

MODALITY = Modality("hr", ("bpm",), UNITS["hr"], 1.0)
RR_MODALITY = Modality("rr", ("interval",), UNITS["rr"], 1.0)
ENERGY_MODALITY = Modality("energy", ("spent",), UNITS["energy"], 1.0)
RR_UNIT_S = 1 / 1024

_WIDE, _CONTACT, _CONTACT_KNOWN, _ENERGY, _RR = 0x01, 0x02, 0x04, 0x08, 0x10


@dataclass(frozen=True)
class HeartRate:
    """One measurement.

    Attributes:
        bpm: Beats a minute.
        rr_s: Times between beats in seconds, oldest first; empty if the packet carried none.
        contact: Whether the sensor touches skin; ``None`` if it cannot tell.
        energy_kj: Energy spent since the last reset; ``None`` if not given.
    """

    bpm: int
    rr_s: tuple[float, ...] = ()
    contact: bool | None = None
    energy_kj: int | None = None


def encode(measurement: HeartRate) -> bytes:
    """The bytes of one notification.

    Raises:
        PacketError: A value does not fit its field.
    """
    flags = 0 if measurement.bpm < 256 else _WIDE
    if measurement.contact is not None:
        flags |= _CONTACT_KNOWN | (_CONTACT if measurement.contact else 0)
    body = b""
    try:
        body += struct.pack("<H" if flags & _WIDE else "<B", measurement.bpm)
        if measurement.energy_kj is not None:
            flags |= _ENERGY
            body += struct.pack("<H", measurement.energy_kj)
        if measurement.rr_s:
            flags |= _RR
            units = [round(interval / RR_UNIT_S) for interval in measurement.rr_s]
            body += struct.pack(f"<{len(units)}H", *units)
    except struct.error as error:
        raise PacketError(f"the heart rate measurement {measurement} does not fit a packet: {error}") from error
    return bytes([flags]) + body


def decode(data: bytes) -> HeartRate:
    """Read one notification. Reserved flags are ignored, as the service asks.

    Raises:
        PacketError: The bytes are shorter than their flags say, or longer.
    """
    if not data:
        raise PacketError("heart rate packet is empty")
    flags = data[0]
    fixed = struct.Struct("<x" + ("H" if flags & _WIDE else "B") + ("H" if flags & _ENERGY else ""))
    if len(data) < fixed.size:
        raise PacketError(f"heart rate packet with flags 0x{flags:02x} is {len(data)} bytes long, needs {fixed.size}")
    rest = data[fixed.size :]
    if len(rest) % 2 or (rest and not flags & _RR):
        raise PacketError(f"heart rate packet with flags 0x{flags:02x} has {len(rest)} bytes that they do not explain")
    bpm, *energy = fixed.unpack_from(data)
    units = struct.unpack(f"<{len(rest) // 2}H", rest)
    return HeartRate(
        bpm,
        tuple(unit * RR_UNIT_S for unit in units),
        bool(flags & _CONTACT) if flags & _CONTACT_KNOWN else None,
        energy[0] if energy else None,
    )


HR_GROUP = Group("heart_rate", (MODALITY,))
RR_GROUP = Group("heart_rate.rr", (RR_MODALITY,))
ENERGY_GROUP = Group("heart_rate.energy", (ENERGY_MODALITY,))


class HeartRateDecoder:
    """Heart rate, beat-to-beat intervals and the energy spent as modalities.

    A measurement without skin contact, or of 0 beats a minute, is no sample. The beats of a packet lie their intervals
    apart; the newest is taken to be of now. The energy is a sum that the sensor keeps, whatever it touches.
    """

    groups: tuple[Group, ...] = (HR_GROUP, RR_GROUP, ENERGY_GROUP)

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """See :class:`armlet_runtime.wearables.profile.Decoder`."""
        measurement = decode(data)
        valid = measurement.bpm > 0 and measurement.contact is not False
        batches = [Batch(HR_GROUP, {MODALITY.name: np.full((int(valid), 1), measurement.bpm, np.float32)})]
        # An interval of 0 is invalid: two beats cannot coincide.
        intervals = np.array([interval for interval in measurement.rr_s if interval > 0] if valid else [], np.float64)
        if len(intervals):
            after = intervals[::-1].cumsum()[::-1] - intervals
            batches.append(
                Batch(
                    RR_GROUP,
                    {RR_MODALITY.name: intervals.astype(np.float32)[:, None]},
                    before_ns=np.rint(after * 1e9).astype(np.int64),
                )
            )
        if measurement.energy_kj is not None:
            spent = np.full((1, 1), measurement.energy_kj, np.float32)
            batches.append(Batch(ENERGY_GROUP, {ENERGY_MODALITY.name: spent}))
        return batches


class HeartRateProfile(ProfileBase):
    """The Heart Rate service as a profile."""

    name: str = "heart_rate"
    services: tuple[str, ...] = (SERVICE_UUID,)
    sources: tuple[str, ...] = (MEASUREMENT_UUID,)
    carries: tuple[str, ...] = (MODALITY.name, RR_MODALITY.name, ENERGY_MODALITY.name)
    silence_s: float = 20.0  # a second is usual, but bands that lie badly may send nothing

    def start(self, wanted: Wanted) -> Steps:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        yield Subscribe(MEASUREMENT_UUID)

    def decoder(self) -> HeartRateDecoder:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        return HeartRateDecoder()
