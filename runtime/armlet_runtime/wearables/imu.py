"""Armlet's own IMU service: the packet layouts that firmware, virtual wearables and the runtime share.

All numbers are little-endian. The service has two characteristics.

``info`` (read), what the data means::

    u8   layout      1
    u8   modalities  n
    f32  rate_hz     samples a second, the same for all modalities of this wearable
    n x  u8 code     1 acc (g), 2 gyro (rad/s), 3 mag (uT)
         f32 scale   unit per LSB

``data`` (notify), samples::

    u8   layout      1
    u8   count       samples in this packet, 1 to 120
    u16  sequence    packet counter, wraps at 65536, starts anywhere, restarts when the wearable does
    u32  clock_us    device clock of the packet's first sample, wraps at 2^32 us (71.6 minutes)
    count x n x 3 x s16   x, y, z of each modality in the order of ``info``

The service's UUID takes 18 of the 31 bytes of an advertisement; the wearable's name belongs into its scan response.

Samples inside a packet are ``1 / rate_hz`` apart. The default ATT MTU (23) has room for two samples of one modality or
one of two; hosts ask for a larger MTU when they connect.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import PacketError
from ..modalities import Modality
from .profile import UNITS, XYZ, Batch, Counters, Group, ProfileBase, Read, Steps, Subscribe, Wanted

SERVICE_UUID = "a7c10000-5f3b-4e0e-9d57-61726d6c6574"  # the last six bytes spell "armlet"
INFO_UUID = "a7c10001-5f3b-4e0e-9d57-61726d6c6574"
DATA_UUID = "a7c10002-5f3b-4e0e-9d57-61726d6c6574"

LAYOUT = 1
MAX_COUNT = 120
SEQUENCE_WRAP = 1 << 16
CLOCK_WRAP_US = 1 << 32
COUNTERS = Counters(SEQUENCE_WRAP, CLOCK_WRAP_US * 1000)

_KINDS = {1: "acc", 2: "gyro", 3: "mag"}
_CODES = {name: code for code, name in _KINDS.items()}
_INFO_HEAD = struct.Struct("<BBf")
_INFO_ITEM = struct.Struct("<Bf")
_DATA_HEAD = struct.Struct("<BBHI")


@dataclass(frozen=True)
class ImuInfo:
    """The content of an ``info`` characteristic: rate (Hz), and per modality its name and scale (unit per LSB)."""

    rate_hz: float
    scales: dict[str, float]

    def modalities(self) -> list[Modality]:
        """The modalities of the wearable, in packet order."""
        return [Modality(name, XYZ, UNITS[name], self.rate_hz) for name in self.scales]


@dataclass(frozen=True)
class ImuPacket:
    """One decoded ``data`` notification; ``samples`` holds per modality (count, 3) float32 in its unit."""

    sequence: int
    clock_us: int
    samples: dict[str, NDArray[np.float32]]


def encode_info(info: ImuInfo) -> bytes:
    """The bytes of an ``info`` characteristic.

    Raises:
        PacketError: A modality has no code in the layout.
    """
    unknown = [name for name in info.scales if name not in _CODES]
    if unknown:
        raise PacketError(f"the IMU service carries {', '.join(_CODES)}, not {', '.join(unknown)}")
    items = b"".join(_INFO_ITEM.pack(_CODES[name], scale) for name, scale in info.scales.items())
    return _INFO_HEAD.pack(LAYOUT, len(info.scales), info.rate_hz) + items


def decode_info(data: bytes) -> ImuInfo:
    """Read an ``info`` characteristic.

    Raises:
        PacketError: The bytes are of another layout, too short, too long, or name nothing that is known.
    """
    if len(data) < _INFO_HEAD.size:
        raise PacketError(f"IMU info is {len(data)} bytes long, shorter than its header of {_INFO_HEAD.size}")
    layout, count, rate = _INFO_HEAD.unpack_from(data)
    if layout != LAYOUT:
        raise PacketError(f"IMU info is of layout {layout}; this armlet knows layout {LAYOUT}")
    expected = _INFO_HEAD.size + count * _INFO_ITEM.size
    if count == 0 or len(data) != expected:
        raise PacketError(f"IMU info for {count} modalities must be {expected} bytes long, not {len(data)}")
    if not 0.1 <= rate <= 10_000:  # also refuses NaN
        raise PacketError(f"IMU info gives a rate of {rate} Hz, outside 0.1 to 10000")
    scales: dict[str, float] = {}
    for i in range(count):
        code, scale = _INFO_ITEM.unpack_from(data, _INFO_HEAD.size + i * _INFO_ITEM.size)
        if code not in _KINDS or _KINDS[code] in scales:
            raise PacketError(f"IMU info names modality code {code}, which is unknown or given twice")
        if not 0 < scale < 1e6:
            raise PacketError(f"IMU info gives {_KINDS[code]} a scale of {scale}, which is not a positive number")
        scales[_KINDS[code]] = scale
    return ImuInfo(rate, scales)


def encode_data(info: ImuInfo, sequence: int, clock_us: int, samples: dict[str, NDArray[np.float32]]) -> bytes:
    """The bytes of one notification. Values beyond the 16-bit range are clipped, as a sensor does.

    Args:
        info: The wearable's description.
        sequence: Packet counter; taken modulo 65536.
        clock_us: Device clock of the first sample in microseconds; taken modulo 2^32.
        samples: Per modality of ``info`` an array (count, 3).

    Raises:
        PacketError: No samples, or too many for one packet.
    """
    count = len(next(iter(samples.values())))
    if not 1 <= count <= MAX_COUNT:
        raise PacketError(f"an IMU packet holds 1 to {MAX_COUNT} samples, not {count}")
    raw = np.stack([np.rint(samples[name] / scale) for name, scale in info.scales.items()], axis=1)
    body: bytes = np.clip(raw, -32768, 32767).astype("<i2").tobytes()
    return _DATA_HEAD.pack(LAYOUT, count, sequence % SEQUENCE_WRAP, clock_us % CLOCK_WRAP_US) + body


def decode_data(info: ImuInfo, data: bytes) -> ImuPacket:
    """Read one notification.

    Raises:
        PacketError: The bytes are of another layout, truncated, or longer than their count says.
    """
    if len(data) < _DATA_HEAD.size:
        raise PacketError(f"IMU packet is {len(data)} bytes long, shorter than its header of {_DATA_HEAD.size}")
    layout, count, sequence, clock_us = _DATA_HEAD.unpack_from(data)
    if layout != LAYOUT:
        raise PacketError(f"IMU packet is of layout {layout}; this armlet knows layout {LAYOUT}")
    expected = _DATA_HEAD.size + count * len(info.scales) * len(XYZ) * 2
    if not 1 <= count <= MAX_COUNT or len(data) != expected:
        raise PacketError(f"IMU packet with {count} samples must be {expected} bytes long, not {len(data)}")
    raw = np.frombuffer(data, "<i2", offset=_DATA_HEAD.size).reshape(count, len(info.scales), len(XYZ))
    samples = {
        name: raw[:, i].astype(np.float32) * np.float32(scale) for i, (name, scale) in enumerate(info.scales.items())
    }
    return ImuPacket(sequence, clock_us, samples)


class ImuDecoder:
    """Decodes one connection to the IMU service."""

    def __init__(self) -> None:
        self.groups: tuple[Group, ...] = ()
        self._info: ImuInfo | None = None

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """See :class:`armlet_runtime.wearables.profile.Decoder`."""
        if source == INFO_UUID:
            self._info = decode_info(data)
            self.groups = (Group(ImuProfile.name, tuple(self._info.modalities()), COUNTERS),)
            return []
        if self._info is None:
            raise PacketError("an IMU packet came before the IMU info that describes it")
        packet = decode_data(self._info, data)
        return [Batch(self.groups[0], packet.samples, packet.sequence, packet.clock_us * 1000)]


class ImuProfile(ProfileBase):
    """The IMU service as a profile."""

    name: str = "imu"
    services: tuple[str, ...] = (SERVICE_UUID,)
    sources: tuple[str, ...] = (INFO_UUID, DATA_UUID)
    carries: tuple[str, ...] = tuple(_CODES)

    def start(self, wanted: Wanted) -> Steps:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        yield Read(INFO_UUID)
        yield Subscribe(DATA_UUID)

    def decoder(self) -> ImuDecoder:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        return ImuDecoder()
