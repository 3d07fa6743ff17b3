"""Polar's measurement service (PMD): H10 (ECG, acceleration) and Verity Sense or OH1 (PPG, acceleration, gyroscope,
magnetometer, pulse-to-pulse intervals).

Sources: Polar's public SDK, github.com/polarofficial/polar-ble-sdk: "Polar Measurement Data Specification" in its
technical documentation, and the pages of the products (H10, Verity Sense) and of the time system in its documentation.
All numbers are little-endian.

Control point (read, write, indicate). A read gives 0x0F and two bytes of features. Commands and answers::

    01 TYPE                                what can be set?   F0 01 TYPE ERROR MORE {setting, n, n values}
    02 TYPE {setting, 1, value}            start              F0 02 TYPE ERROR MORE {setting, n, n values}
    03 TYPE                                stop               F0 03 TYPE ERROR ...

    TYPE     0 ECG, 1 PPG, 2 acceleration, 3 PPI, 5 gyroscope, 6 magnetometer; also the feature bits
    setting  0 rate in Hz (u16), 1 resolution in bits (u16), 2 range (u16), 3 range in thousandths (u32),
             4 channels (u8), 5 factor (f32; in the answer to a start: unit per LSB), 6 security (16 bytes)

Data (notify)::

    u8   TYPE
    u64  clock     ns since 2000 of the frame's LAST sample; starts anew when the sensor does
    u8   layout    bit 7: delta-compressed; bits 0 to 6: number of the layout
    ...  samples

A compressed frame begins with one whole sample, each channel in so many bytes as its bits need, and goes on in blocks:
``u8`` width in bits, ``u8`` samples, and for each sample and channel the difference to the sample before in that width,
two's complement, least significant bit first, each block filled up to a whole byte.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import PacketError
from ..modalities import Modality
from .profile import UNITS, XYZ, Ask, Batch, Counters, Group, ProfileBase, Read, Steps, Subscribe, Wanted

SERVICE_UUID = "fb005c80-02e7-f387-1cad-8acd2d8df0c8"
CONTROL_UUID = "fb005c81-02e7-f387-1cad-8acd2d8df0c8"
DATA_UUID = "fb005c82-02e7-f387-1cad-8acd2d8df0c8"
COMPANY_UUID = "0000feee-0000-1000-8000-00805f9b34fb"
"""Assigned to Polar Electro Oy by the SIG; in the advertisements."""

ECG, PPG, ACC, PPI, GYRO, MAG = 0, 1, 2, 3, 5, 6
RATE, RESOLUTION, RANGE, CHANNELS, FACTOR = 0, 1, 2, 4, 5
GET, START, STOP = 1, 2, 3
FEATURES, ANSWER = 0x0F, 0xF0
DONE, ALREADY = 0, 6
COMPRESSED = 0x80

COUNTERS = Counters(clock_wrap_ns=1 << 64, stamps_last=True)
HEAD = struct.Struct("<BQB")

LATEST_CLOCK_NS = 1 << 62
"""146 years after 2000: no clock is set so far, and with what is beyond, times would not fit 64 bits with a sign."""

MAX_SAMPLES = 2000
"""Most samples of a frame: sensors send two seconds at most, and differences of width 0 could claim any number."""

_FIELD_BYTES = {0: 2, 1: 2, 2: 2, 3: 4, 4: 1, 5: 4, 6: 16}
_ERRORS = {
    1: "the command is unknown to it",
    2: "it has no such measurement",
    3: "it is not supported",
    4: "the command is of a wrong length",
    5: "a setting is not allowed",
    6: "it runs already",
    7: "the resolution is not allowed",
    8: "the rate is not allowed",
    9: "the range is not allowed",
    10: "the MTU is too small",
    11: "the number of channels is not allowed",
    12: "it is in a state that does not allow it",
    13: "it is in its charger",
}


@dataclass(frozen=True)
class _Kind:
    """A measurement: its modality, and the rate asked for if the model wants none in particular."""

    modality: str
    channels: tuple[str, ...]
    rate_hz: float


KINDS = {
    ECG: _Kind("ecg", ("ecg",), 130.0),
    PPG: _Kind("ppg", ("led0", "led1", "led2", "ambient"), 55.0),
    ACC: _Kind("acc", XYZ, 50.0),
    PPI: _Kind("rr", ("interval",), 1.0),
    GYRO: _Kind("gyro", XYZ, 52.0),
    MAG: _Kind("mag", XYZ, 20.0),
}


@dataclass(frozen=True)
class _Layout:
    """How a layout's samples lie in a frame.

    Attributes:
        bits: Of a channel.
        channels: Of a sample.
        scale: Of an LSB, in the modality's unit; compressed, times the factor in the answer to the start.
    """

    bits: int
    channels: int
    scale: float


_GAUSS_UT = 100.0
LAYOUTS = {
    (ECG, 0): _Layout(24, 1, 1e-3),  # microvolt
    (PPG, 0): _Layout(24, 4, 1.0),
    (ACC, 0): _Layout(8, 3, 1e-3),  # thousandths of g
    (ACC, 1): _Layout(16, 3, 1e-3),
    (ACC, 2): _Layout(24, 3, 1e-3),
    (PPG, COMPRESSED): _Layout(24, 4, 1.0),
    (ACC, COMPRESSED): _Layout(16, 3, 1.0),
    (ACC, COMPRESSED | 1): _Layout(16, 3, 1e-3),
    (GYRO, COMPRESSED): _Layout(16, 3, math.pi / 180),  # degrees a second
    (MAG, COMPRESSED): _Layout(16, 3, _GAUSS_UT),
    (MAG, COMPRESSED | 1): _Layout(16, 4, _GAUSS_UT * 1e-3),  # and how well it is calibrated
}
"""By measurement and layout byte."""

_PPI = struct.Struct("<BHHB")  # pulse, interval in ms, its error in ms, flags
_PPI_MOVED = 0x01  # the sensor was moved: the interval is not to be used


@dataclass(frozen=True)
class Answer:
    """An answer of the control point; ``settings``: by number, the values offered or set."""

    command: int
    measurement: int
    error: int
    settings: dict[int, tuple[float, ...]] = field(default_factory=dict)


def encode_settings(settings: dict[int, tuple[float, ...]]) -> bytes:
    """The bytes of settings."""
    out = b""
    for number, values in settings.items():
        out += bytes([number, len(values)])
        for value in values:
            size = _FIELD_BYTES[number]
            out += struct.pack("<f", value) if number == FACTOR else int(value).to_bytes(size, "little")
    return out


def decode_settings(data: bytes) -> dict[int, tuple[float, ...]]:
    """Read settings.

    Raises:
        PacketError: One is unknown or cut off.
    """
    settings, rest = _known_settings(data)
    if rest:
        raise PacketError(f"Polar setting {rest[0]} is unknown")
    return settings


def _known_settings(data: bytes) -> tuple[dict[int, tuple[float, ...]], bytes]:
    """Settings up to the first that is unknown, and the bytes from there on: its length is not known.

    Raises:
        PacketError: A setting is cut off.
    """
    settings: dict[int, tuple[float, ...]] = {}
    at = 0
    while at < len(data):
        number, count = data[at], data[at + 1] if at + 1 < len(data) else 0
        size = _FIELD_BYTES.get(number)
        if size is None:
            return settings, data[at:]
        if not count or at + 2 + size * count > len(data):
            raise PacketError(f"Polar setting {number} is cut off")
        raw = [data[at + 2 + i * size : at + 2 + (i + 1) * size] for i in range(count)]
        if number == FACTOR:
            settings[number] = tuple(struct.unpack("<f", value)[0] for value in raw)
        else:
            settings[number] = tuple(float(int.from_bytes(value, "little")) for value in raw)
        at += 2 + size * count
    return settings, b""


def encode_answer(answer: Answer) -> bytes:
    """The bytes of an answer."""
    return bytes([ANSWER, answer.command, answer.measurement, answer.error, 0]) + encode_settings(answer.settings)


def decode_answer(data: bytes) -> Answer:
    """Read an answer of the control point.

    Settings offered may be of newer firmware than this: those from the first unknown setting on are left out, and the
    sensor refuses a start that lacks a setting. In the answer to a start each counts: one of them scales the samples.

    Raises:
        PacketError: It is no answer, or too short, or a setting is cut off or, in the answer to a start, unknown.
    """
    if len(data) < 4 or data[0] != ANSWER:
        raise PacketError(f"a Polar answer begins with f0 and is 4 bytes long at least, not {data.hex(' ') or 'empty'}")
    settings: dict[int, tuple[float, ...]] = {}
    if data[3] == DONE:
        settings = decode_settings(data[5:]) if data[1] == START else _known_settings(data[5:])[0]
    return Answer(data[1], data[2], data[3], settings)


def unpack(data: bytes, bits: int, channels: int) -> NDArray[np.int64]:
    """Samples (n, channels) of a frame that is not compressed.

    Raises:
        PacketError: The bytes are no whole number of samples.
    """
    size = bits // 8
    if len(data) % (size * channels):
        raise PacketError(f"{len(data)} bytes are no whole number of samples of {channels} x {bits} bits")
    raw = np.frombuffer(data, np.uint8).reshape(-1, size).astype(np.int64)
    return _signed((raw << np.arange(0, bits, 8)).sum(axis=1), bits).reshape(-1, channels)


def expand(data: bytes, bits: int, channels: int) -> NDArray[np.int64]:
    """Samples (n, channels) of a compressed frame.

    Raises:
        PacketError: A block is cut off or impossible, or there are more samples than a frame can hold.
    """
    at = bits // 8 * channels
    if len(data) < at:
        raise PacketError(f"a compressed Polar frame begins with {at} bytes, and has {len(data)}")
    parts = [unpack(data[:at], bits, channels)]
    total = 1
    while at < len(data):
        width, count = data[at], data[at + 1] if at + 1 < len(data) else 0
        size = (width * count * channels + 7) // 8
        total += count
        if not count or width > 32 or at + 2 + size > len(data) or total > MAX_SAMPLES:
            raise PacketError(f"block of {count} differences of {width} bits at byte {at} does not fit the Polar frame")
        if width:
            stream = np.unpackbits(np.frombuffer(data, np.uint8, size, at + 2), bitorder="little")
            fields = stream[: width * count * channels].reshape(-1, width).astype(np.int64)
            parts.append(_signed((fields << np.arange(width)).sum(axis=1), width).reshape(count, channels))
        else:
            parts.append(np.zeros((count, channels), np.int64))
        at += 2 + size
    samples: NDArray[np.int64] = np.concatenate(parts).cumsum(axis=0)
    return samples


def compress(samples: NDArray[np.int64], bits: int) -> bytes:
    """The compressed form of samples (n, channels), in blocks as long as they can be."""
    size = bits // 8
    out = b"".join((int(value) % (1 << bits)).to_bytes(size, "little") for value in samples[0])
    differences = np.diff(samples, axis=0)
    for start in range(0, len(differences), 255):
        block = differences[start : start + 255]
        width = max(int(block.max()).bit_length(), int(-block.min() - 1).bit_length() if block.min() < 0 else 0) + 1
        fields = (block.reshape(-1, 1) >> np.arange(width)) & 1
        out += bytes([width, len(block)]) + np.packbits(fields.astype(np.uint8), bitorder="little").tobytes()
    return out


def _signed(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    return values - ((values >> (bits - 1)) << bits)


@dataclass
class _Running:
    group: Group
    factor: float


class PolarDecoder:
    """Decodes one connection. It learns the running measurements from the start commands and their answers."""

    def __init__(self) -> None:
        self.groups: tuple[Group, ...] = ()
        self._asked_hz: dict[int, float] = {}
        self._running: dict[int, _Running] = {}

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """See :class:`armlet_runtime.wearables.profile.Decoder`."""
        if source == DATA_UUID:
            return self._frame(data)
        if kind == "written":
            self._commanded(data)
        elif kind == "data":
            self._answered(decode_answer(data))
        return []

    def _commanded(self, data: bytes) -> None:
        if len(data) >= 2 and data[0] == START and data[1] in KINDS:
            rates = decode_settings(data[2:]).get(RATE, (KINDS[data[1]].rate_hz,))
            if not 0.1 <= rates[0] <= 10_000:
                raise PacketError(f"a Polar measurement cannot run at {rates[0]:g} Hz: 0.1 to 10,000 Hz are possible")
            self._asked_hz[data[1]] = rates[0]

    def _answered(self, answer: Answer) -> None:
        known = answer.measurement in KINDS and answer.measurement in self._asked_hz
        if answer.command != START or answer.error not in (DONE, ALREADY) or not known:
            return
        factor = answer.settings.get(FACTOR, (1.0,))[0]
        if not 0 < factor < 1e6:
            raise PacketError(f"a Polar factor of {factor} is not a positive number")
        kind = KINDS[answer.measurement]
        modality = Modality(kind.modality, kind.channels, UNITS[kind.modality], self._asked_hz[answer.measurement])
        # Intervals between pulses come when they come.
        counters = None if answer.measurement == PPI else COUNTERS
        self._running[answer.measurement] = _Running(Group(f"polar.{kind.modality}", (modality,), counters), factor)
        self.groups = tuple(measurement.group for measurement in self._running.values())

    def _frame(self, data: bytes) -> list[Batch]:
        if len(data) < HEAD.size:
            raise PacketError(f"Polar frame is {len(data)} bytes long, shorter than its header of {HEAD.size}")
        measurement, clock_ns, layout_byte = HEAD.unpack_from(data)
        if clock_ns >= LATEST_CLOCK_NS:
            raise PacketError(f"Polar frame is stamped {clock_ns} ns, which is beyond the year 2146")
        running = self._running.get(measurement)
        if running is None:
            raise PacketError(f"Polar frame of measurement {measurement}, which was not started")
        body = data[HEAD.size :]
        if measurement == PPI:
            return self._intervals(running.group, body)
        layout = LAYOUTS.get((measurement, layout_byte))
        if layout is None or not body:
            raise PacketError(
                f"Polar frame of measurement {measurement} is empty or of unknown layout 0x{layout_byte:02x}"
            )
        if layout_byte & COMPRESSED:
            raw = expand(body, layout.bits, layout.channels)
            scale = layout.scale * running.factor
        else:
            raw, scale = unpack(body, layout.bits, layout.channels), layout.scale
        modality = running.group.modalities[0]
        values = (raw[:, : len(modality.channels)] * scale).astype(np.float32)
        return [Batch(running.group, {modality.name: values}, clock_ns=clock_ns)]

    @staticmethod
    def _intervals(group: Group, body: bytes) -> list[Batch]:
        if len(body) % _PPI.size:
            raise PacketError(f"{len(body)} bytes are no whole number of Polar pulse intervals")
        intervals = [ms / 1000 for _, ms, _, flags in _PPI.iter_unpack(body) if ms and not flags & _PPI_MOVED]
        if not intervals:
            return []
        lengths = np.array(intervals, np.float64)
        after = lengths[::-1].cumsum()[::-1] - lengths
        values = {group.modalities[0].name: lengths.astype(np.float32)[:, None]}
        return [Batch(group, values, before_ns=np.rint(after * 1e9).astype(np.int64))]


class PolarProfile(ProfileBase):
    """The measurement service as a profile."""

    name: str = "polar"
    services: tuple[str, ...] = (SERVICE_UUID,)
    advertised: tuple[str, ...] = (COMPANY_UUID,)
    names: tuple[str, ...] = ("Polar H10", "Polar Sense", "Polar OH1")
    sources: tuple[str, ...] = (CONTROL_UUID, DATA_UUID)
    carries: tuple[str, ...] = tuple(kind.modality for kind in KINDS.values())
    silence_s: float = 30.0  # the first intervals between pulses take 25 s

    def start(self, wanted: Wanted) -> Steps:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        features = yield Read(CONTROL_UUID)
        if len(features) < 2 or features[0] != FEATURES:
            raise PacketError(f"Polar features begin with 0f, not {features.hex(' ') or 'empty'}")
        yield Subscribe(CONTROL_UUID)
        yield Subscribe(DATA_UUID)
        problems = []
        started = False
        for measurement, kind in KINDS.items():
            if not features[1] >> measurement & 1 or not wanted.wants(kind.modality):
                continue
            settings: dict[int, tuple[float, ...]] = {}
            if measurement != PPI:
                offered = decode_answer((yield _command(GET, measurement)))
                settings = choose(offered.settings, wanted.rate_hz((kind.modality,), kind.rate_hz))
            answer = decode_answer((yield _command(START, measurement, encode_settings(settings))))
            if answer.error == ALREADY:  # left running by another host, who knows how
                yield _command(STOP, measurement)
                answer = decode_answer((yield _command(START, measurement, encode_settings(settings))))
            if answer.error == DONE:
                started = True
            else:
                problems.append(f"{kind.modality}: {_ERRORS.get(answer.error, f'error {answer.error}')}")
        if not started:
            raise PacketError(
                f"the Polar sensor starts nothing that is wanted ({'; '.join(problems) or 'it has none'})"
            )

    def stop(self, wanted: Wanted) -> Steps:
        """Stop all: it would go on, and keep its battery from resting."""
        for measurement, kind in KINDS.items():
            if wanted.wants(kind.modality):
                yield _command(STOP, measurement)

    def decoder(self) -> PolarDecoder:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        return PolarDecoder()


def choose(offered: dict[int, tuple[float, ...]], rate_hz: float) -> dict[int, tuple[float, ...]]:
    """Settings to choose of those offered: the rate nearest to ``rate_hz``, and the most of everything else."""
    return {
        number: (min(values, key=lambda value: abs(value - rate_hz)),) if number == RATE else (max(values),)
        for number, values in offered.items()
        if number in (RATE, RESOLUTION, RANGE, CHANNELS)
    }


def _command(command: int, measurement: int, settings: bytes = b"") -> Ask:
    begins = bytes([ANSWER, command, measurement])
    return Ask(CONTROL_UUID, bytes([command, measurement]) + settings, CONTROL_UUID, begins)
