"""Muse 2016, Muse 2 and Muse S headbands (InteraXon): EEG, PPG, acceleration, gyroscope.

Sources: muse-lsl (BSD-3, github.com/alexandrebarachant/muse-lsl: constants.py, muse.py), muse-js (MIT,
github.com/urish/muse-js), openble-muse (MIT); InteraXon publishes nothing. The Athena generation of the Muse S sends
other packets and is not read here.

Each signal has a characteristic of its own, whose notifications are 20 bytes: a u16 packet counter, then samples, all
big-endian::

    EEG, one characteristic an electrode   12 x u12   0.48828125 uV from 2048, 256 Hz
    PPG, one a wavelength                   6 x u24   raw, 64 Hz; not in the Muse of 2016
    acceleration, gyroscope             3 x 3 x s16   1/16384 g, 0.0074768 degrees/s, 52 Hz

Packets of the electrodes (or wavelengths) with the same counter belong together. There is no clock but the counters.
Commands go to the control characteristic as one byte of length, text, and a line feed: ``h`` halt, ``d`` go on,
``p21`` EEG and motion, ``p50`` these and PPG.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from ..errors import PacketError, RepeatedPacketError
from ..modalities import Modality
from .profile import UNITS, XYZ, Batch, Counters, Group, ProfileBase, Steps, Subscribe, Wanted, Write, sig

SERVICE_UUID = sig(0xFE8D)


def _uuid(number: int) -> str:
    return f"273e{number:04x}-4c4d-454d-96be-f03bac821358"


CONTROL_UUID = _uuid(0x0001)
EEG_UUIDS = {_uuid(0x0003): "TP9", _uuid(0x0004): "AF7", _uuid(0x0005): "AF8", _uuid(0x0006): "TP10"}
GYRO_UUID, ACC_UUID = _uuid(0x0009), _uuid(0x000A)
PPG_UUIDS = {_uuid(0x000F): "ambient", _uuid(0x0010): "infrared", _uuid(0x0011): "red"}

SEQUENCE_WRAP = 1 << 16
PACKET_BYTES = 20
EEG_UV, EEG_ZERO = 0.48828125, 2048
ACC_G = 1 / 16384
GYRO_RAD_S = math.radians(0.0074768)
DRIFT_PPM = 1000.0
"""Sampling follows the headband's own clock, not a sensor's; its accuracy is not documented."""
EEG_PER_PACKET, PPG_PER_PACKET, MOTION_PER_PACKET = 12, 6, 3

COUNTERS = Counters(sequence_wrap=SEQUENCE_WRAP, drift_ppm=DRIFT_PPM)
EEG = Group("muse.eeg", (Modality("eeg", tuple(EEG_UUIDS.values()), UNITS["eeg"], 256.0),), COUNTERS)
PPG = Group("muse.ppg", (Modality("ppg", tuple(PPG_UUIDS.values()), UNITS["ppg"], 64.0),), COUNTERS)
ACC = Group("muse.acc", (Modality("acc", XYZ, UNITS["acc"], 52.0),), COUNTERS)
GYRO = Group("muse.gyro", (Modality("gyro", XYZ, UNITS["gyro"], 52.0),), COUNTERS)

PENDING = 8
"""Counters for which packets of some electrodes wait for the others; older packets are incomplete for good."""


def command(text: str) -> bytes:
    """The bytes of a command."""
    body = f"{text}\n".encode()
    return bytes([len(body)]) + body


def encode(sequence: int, body: bytes) -> bytes:
    """The bytes of one notification."""
    return (sequence % SEQUENCE_WRAP).to_bytes(2, "big") + body


def encode_eeg(sequence: int, microvolts: NDArray[np.float32]) -> bytes:
    """One electrode's notification of 12 samples."""
    raw = np.clip(np.rint(microvolts / EEG_UV) + EEG_ZERO, 0, 4095).astype(int)
    body = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in raw.reshape(-1, 2))
    return encode(sequence, body)


def encode_ppg(sequence: int, counts: NDArray[np.float32]) -> bytes:
    """One wavelength's notification of 6 samples."""
    raw = np.clip(np.rint(counts), 0, 0xFFFFFF).astype(int)
    return encode(sequence, b"".join(int(value).to_bytes(3, "big") for value in raw))


def encode_motion(sequence: int, values: NDArray[np.float32], scale: float) -> bytes:
    """A notification of 3 samples of 3 axes; ``scale``: unit per LSB."""
    return encode(sequence, np.clip(np.rint(values / scale), -32768, 32767).astype(">i2").tobytes())


def decode_u12(body: bytes) -> NDArray[np.int64]:
    """12 numbers of 12 bits."""
    three = np.frombuffer(body, np.uint8).reshape(-1, 3).astype(np.int64)
    first, second = three[:, 0] << 4 | three[:, 1] >> 4, (three[:, 1] & 0x0F) << 8 | three[:, 2]
    return np.stack([first, second], axis=1).reshape(-1)


def decode_u24(body: bytes) -> NDArray[np.int64]:
    """6 numbers of 24 bits."""
    three = np.frombuffer(body, np.uint8).reshape(-1, 3).astype(np.int64)
    numbers: NDArray[np.int64] = three[:, 0] << 16 | three[:, 1] << 8 | three[:, 2]
    return numbers


class MuseDecoder:
    """Decodes one connection."""

    groups: tuple[Group, ...] = (EEG, PPG, ACC, GYRO)

    def __init__(self) -> None:
        self._parts: dict[str, dict[int, dict[str, NDArray[np.float32]]]] = {EEG.name: {}, PPG.name: {}}
        self._joined: dict[str, deque[int]] = {EEG.name: deque(maxlen=PENDING), PPG.name: deque(maxlen=PENDING)}

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """See :class:`armlet_runtime.wearables.profile.Decoder`."""
        if source == CONTROL_UUID or kind != "data":
            return []  # commands, and the headband's answers
        if len(data) != PACKET_BYTES:
            raise PacketError(f"Muse packet is {len(data)} bytes long, not {PACKET_BYTES}")
        sequence, body = int.from_bytes(data[:2], "big"), data[2:]
        if source in EEG_UUIDS:
            return self._join(EEG, tuple(EEG_UUIDS), source, sequence, (decode_u12(body) - EEG_ZERO) * EEG_UV)
        if source in PPG_UUIDS:
            return self._join(PPG, tuple(PPG_UUIDS), source, sequence, decode_u24(body).astype(np.float64))
        group, scale = (ACC, ACC_G) if source == ACC_UUID else (GYRO, GYRO_RAD_S)
        values = np.frombuffer(body, ">i2").reshape(-1, 3) * scale
        return [Batch(group, {group.modalities[0].name: values.astype(np.float32)}, sequence)]

    def _join(
        self, group: Group, sources: tuple[str, ...], source: str, sequence: int, values: NDArray[np.floating]
    ) -> list[Batch]:
        """Put the channels of one counter together; a batch when the last has come."""
        pending = self._parts[group.name]
        # By their distance: a counter that stayed incomplete would meet that of the same number after the next wrap.
        for waiting in [number for number in pending if _apart(number, sequence) > PENDING]:
            del pending[waiting]
        if sequence in self._joined[group.name] or source in pending.get(sequence, ()):
            raise RepeatedPacketError(f"Muse packet {sequence} came before")
        parts = pending.setdefault(sequence, {})
        parts[source] = values.astype(np.float32)
        if len(parts) < len(sources):
            return []
        del pending[sequence]
        self._joined[group.name].append(sequence)
        name = group.modalities[0].name
        return [Batch(group, {name: np.stack([parts[uuid] for uuid in sources], axis=1)}, sequence)]


def _apart(a: int, b: int) -> int:
    """How many packets lie between two counters, the shorter way around the wrap."""
    return min((a - b) % SEQUENCE_WRAP, (b - a) % SEQUENCE_WRAP)


class MuseProfile(ProfileBase):
    """The headbands as a profile."""

    name: str = "muse"
    services: tuple[str, ...] = (SERVICE_UUID,)
    sources: tuple[str, ...] = (CONTROL_UUID, *EEG_UUIDS, *PPG_UUIDS, ACC_UUID, GYRO_UUID)
    carries: tuple[str, ...] = ("eeg", "ppg", "acc", "gyro")

    def start(self, wanted: Wanted) -> Steps:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        has_ppg = PPG_UUIDS.keys() <= wanted.characteristics
        sources = [(uuid, "eeg") for uuid in EEG_UUIDS] + [(ACC_UUID, "acc"), (GYRO_UUID, "gyro")]
        sources += [(uuid, "ppg") for uuid in PPG_UUIDS] if has_ppg else []
        yield Subscribe(CONTROL_UUID)
        yield Write(CONTROL_UUID, command("h"), response=False)
        yield Write(CONTROL_UUID, command("p50" if has_ppg else "p21"), response=False)
        for source, modality in sources:
            if wanted.wants(modality):
                yield Subscribe(source)
        yield Write(CONTROL_UUID, command("d"), response=False)

    def stop(self, wanted: Wanted) -> Steps:
        """Halt: it would go on for minutes."""
        yield Write(CONTROL_UUID, command("h"), response=False)

    def decoder(self) -> MuseDecoder:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        return MuseDecoder()
