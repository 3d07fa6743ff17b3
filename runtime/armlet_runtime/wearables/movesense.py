"""Movesense sensors (HR+, HR2, Flash, MD) by their GATT sensor data protocol: motion and ECG.

Sources: "GATT SensorData Protocol specification", movesense.com/docs/esw/gatt_sensordata_protocol (GD-77, version 1 of
the protocol); Movesense API, movesense.com/docs/esw/api_reference (resources, units, rates); the vendor's Python client
of the gatt_sensordata_app in bitbucket.org/movesense/movesense-device-lib (layout of the data). Little-endian::

    command       u8 code (1 subscribe, 2 unsubscribe), u8 reference (chosen by the host), path as text
    answer        01, reference, u16 status as of HTTP
    data          02, reference, u32 ms of the first sample, samples
    rest of data  03, reference, what did not fit into the packet before

Motion: ``/Meas/Acc/R``, ``/Meas/IMU6/R``, ``/Meas/IMU9/R``: f32 x, y, z of all samples of the accelerometer (m/s2),
then of the gyroscope (degrees/s), then of the magnetometer (uT). ``/Meas/ECG/R``: s32, 0.381 uV each. Motion comes
thirteen times a second at most, so R / 13 samples a packet; above 52 Hz that is more than fits one.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import PacketError
from ..modalities import Modality
from .profile import UNITS, XYZ, Ask, Batch, Counters, Group, ProfileBase, Steps, Subscribe, Wanted, Write

SERVICE_UUID = "34802252-7185-4d5d-b431-630e7050e8f0"
WRITE_UUID = "34800001-7185-4d5d-b431-630e7050e8f0"
NOTIFY_UUID = "34800002-7185-4d5d-b431-630e7050e8f0"

SUBSCRIBE, UNSUBSCRIBE = 1, 2
ANSWER, DATA, REST = 1, 2, 3
MOTION_REF, ECG_REF = 1, 2
HTTP_OK = range(200, 300)

MOTION_RATES_HZ = (13.0, 26.0, 52.0, 104.0)
ECG_RATES_HZ = (125.0, 128.0, 200.0, 250.0, 256.0, 500.0, 512.0)
DEFAULT_MOTION_HZ, DEFAULT_ECG_HZ = 52.0, 125.0
MOTION_PACKETS_HZ = 13.0
ECG_PER_PACKET = 16

STANDARD_GRAVITY = 9.80665
ECG_MV = 0.381e-3
SCALES = {"acc": 1 / STANDARD_GRAVITY, "gyro": math.pi / 180, "mag": 1.0}
"""From the sensor's unit to that of the modality."""
PATHS = {"Acc": ("acc",), "IMU6": ("acc", "gyro"), "IMU9": ("acc", "gyro", "mag")}

COUNTERS = Counters(clock_wrap_ns=(1 << 32) * 1_000_000)
HEAD = struct.Struct("<BBI")


@dataclass
class _Stream:
    group: Group
    head: bytes = b""  # of a packet whose rest is to come


def encode_motion(reference: int, clock_ms: int, values: dict[str, NDArray[np.float32]]) -> bytes:
    """One packet of motion, whole; ``values``: in the modalities' units, in the order of the path."""
    body = b"".join((array / SCALES[name]).astype("<f4").tobytes() for name, array in values.items())
    return HEAD.pack(DATA, reference, clock_ms % (1 << 32)) + body


def encode_ecg(reference: int, clock_ms: int, millivolts: NDArray[np.float32]) -> bytes:
    """One packet of ECG."""
    raw = np.clip(np.rint(millivolts / ECG_MV), -(2**31), 2**31 - 1).astype("<i4").tobytes()
    return HEAD.pack(DATA, reference, clock_ms % (1 << 32)) + bytes(raw)


class MovesenseDecoder:
    """Decodes one connection. It learns the meaning of a reference from the subscription."""

    def __init__(self) -> None:
        self.groups: tuple[Group, ...] = ()
        self._streams: dict[int, _Stream] = {}

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """See :class:`armlet_runtime.wearables.profile.Decoder`."""
        if len(data) < 2:
            raise PacketError(f"Movesense packet is {len(data)} bytes long, shorter than its header of 2")
        code, reference = data[0], data[1]
        if kind == "written":
            if code == SUBSCRIBE:
                self._streams[reference] = _Stream(_group(data[2:]))
                self.groups = tuple(stream.group for stream in self._streams.values())
            return []
        if code == ANSWER:
            return []
        stream = self._streams.get(reference)
        if stream is None or code not in (DATA, REST):
            raise PacketError(
                f"Movesense packet with code {code} for reference {reference}, which was not subscribed to"
            )
        if code == DATA:
            stream.head = b""  # if its rest did not come, that packet is lost
            return self._read(stream, data)
        if not stream.head:
            raise PacketError("the rest of a Movesense packet came without its beginning")
        whole, stream.head = stream.head + data[2:], b""
        return self._read(stream, whole, is_whole=True)

    def _read(self, stream: _Stream, data: bytes, is_whole: bool = False) -> list[Batch]:
        group = stream.group
        is_ecg = group.modalities[0].name == "ecg"
        size = 4 if is_ecg else 12 * len(group.modalities)
        body = data[HEAD.size :]
        least = 1 if is_ecg else round(group.modalities[0].rate_hz / MOTION_PACKETS_HZ)
        if len(data) >= HEAD.size and len(body) < least * size and not is_whole:
            stream.head = data
            return []
        if len(body) < size or len(body) % size:
            raise PacketError(f"Movesense packet of {group.name} is {len(data)} bytes long: no whole number of samples")
        clock_ns = HEAD.unpack_from(data)[2] * 1_000_000
        if is_ecg:
            values = {"ecg": (np.frombuffer(body, "<i4")[:, None] * ECG_MV).astype(np.float32)}
            return [Batch(group, values, clock_ns=clock_ns)]
        numbers = struct.unpack(f"<{len(body) // 4}f", body)
        blocks = np.array(numbers).reshape(len(group.modalities), -1, 3)
        if not (np.abs(blocks) < 1e30).all():  # also refuses NaN
            raise PacketError(f"Movesense packet of {group.name} holds what is no number")
        return [
            Batch(
                group,
                {
                    modality.name: (block * SCALES[modality.name]).astype(np.float32)
                    for modality, block in zip(group.modalities, blocks, strict=True)
                },
                clock_ns=clock_ns,
            )
        ]


class MovesenseProfile(ProfileBase):
    """The sensor data protocol as a profile."""

    name: str = "movesense"
    services: tuple[str, ...] = (SERVICE_UUID,)
    names: tuple[str, ...] = ("Movesense",)
    sources: tuple[str, ...] = (WRITE_UUID, NOTIFY_UUID)
    carries: tuple[str, ...] = ("acc", "gyro", "mag", "ecg")

    def start(self, wanted: Wanted) -> Steps:
        """See :class:`armlet_runtime.wearables.profile.Profile`. The smallest set of motion that has what is wanted."""
        yield Subscribe(NOTIFY_UUID)
        asked = []
        motion = [name for name in PATHS["IMU9"] if wanted.wants(name)]
        if motion:
            path = next(path for path, modalities in PATHS.items() if set(motion) <= set(modalities))
            rate = wanted.rate_hz(tuple(motion), DEFAULT_MOTION_HZ)
            asked.append((MOTION_REF, f"/Meas/{path}/{_nearest(MOTION_RATES_HZ, rate)}"))
        if wanted.wants("ecg"):
            rate = wanted.rate_hz(("ecg",), DEFAULT_ECG_HZ)
            asked.append((ECG_REF, f"/Meas/ECG/{_nearest(ECG_RATES_HZ, rate)}"))
        refused = []
        for reference, path in asked:
            answer = yield Ask(
                WRITE_UUID, bytes([SUBSCRIBE, reference]) + path.encode(), NOTIFY_UUID, bytes([ANSWER, reference])
            )
            status = int.from_bytes(answer[2:4], "little")
            if status not in HTTP_OK:
                refused.append(f"{path}: status {status}")
        if len(refused) == len(asked):
            raise PacketError(
                f"the Movesense sensor starts nothing that is wanted ({'; '.join(refused) or 'nothing is'})"
            )

    def stop(self, wanted: Wanted) -> Steps:
        """Unsubscribe: it would go on measuring."""
        for reference in (MOTION_REF, ECG_REF):
            yield Write(WRITE_UUID, bytes([UNSUBSCRIBE, reference]))

    def decoder(self) -> MovesenseDecoder:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        return MovesenseDecoder()


def _nearest(rates: tuple[float, ...], wanted: float) -> int:
    nearest = min(rates, key=lambda rate: abs(rate - wanted))
    return round(nearest)


def _group(path: bytes) -> Group:
    """The modality of a subscription."""
    parts = path.decode(errors="replace").strip("/").split("/")
    if len(parts) == 3 and parts[0] == "Meas" and parts[2].isascii() and parts[2].isdecimal():
        what, rate = parts[1], float(parts[2][:6])
        if what == "ECG" and rate in ECG_RATES_HZ:
            return Group("movesense.ecg", (Modality("ecg", ("ecg",), UNITS["ecg"], rate),), COUNTERS)
        if what in PATHS and rate in MOTION_RATES_HZ:
            modalities = tuple(Modality(name, XYZ, UNITS[name], rate) for name in PATHS[what])
            return Group("movesense.motion", modalities, COUNTERS)
    raise PacketError(f"Movesense resource '{path.decode(errors='replace')}' is unknown to armlet")
