"""The virtual twins of wearables: GATT services that speak the same bytes as the real ones.

A twin knows nothing of the air. It says which services a wearable has, does what is written to it, and tells which
notifications fall due when its streams are played. One twin for each profile of :mod:`armlet_runtime.wearables`; which
one carries given streams is decided by :func:`make_twin`.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from bumble.core import UUID
from bumble.device import Device
from bumble.gatt import Characteristic, CharacteristicValue, Service
from numpy.typing import NDArray

from armlet_runtime.errors import UsageError
from armlet_runtime.signals import GAP_PERIODS, Stream
from armlet_runtime.wearables import (
    SIG_BASE,
    UNITS,
    arduino,
    heart_rate,
    imu,
    movesense,
    muse,
    oximeter,
    polar,
    thermometer,
    thingy52,
    uart,
)

from ..radio import ATT_MTU

SCALES = {
    "acc": 4.0 / 32768,
    "gyro": math.radians(1000) / 32768,
    "mag": 4912.0 / 32768,
}
"""Unit per LSB of the IMU: +-4 g, +-1000 degrees/s (17.45 rad/s), +-4912 uT, ranges that common 16-bit IMUs have."""

POLAR_FACTORS = {polar.ACC: 8000 / 32768, polar.GYRO: 2000 / 32768, polar.MAG: 50 / 32768}
"""Of a Verity Sense: +-8 g in thousandths, +-2000 degrees/s, +-50 gauss in 16 bits."""

POLAR_FRAME_S = 0.25
"""Of samples in one frame."""

MUSE = {group.modalities[0].name: group.modalities[0] for group in (muse.EEG, muse.PPG, muse.ACC, muse.GYRO)}
"""What a Muse headband sends."""

UART_BYTES = 20
"""Of a notification of Espruino's UART: lines straddle them."""

MOVESENSE_BYTES = 155
"""Of a notification of a Movesense sensor, which agrees to an ATT MTU of 158: what is longer is sent in two."""

_CHEST = bytes([1])  # as a Body Sensor Location (0x2A38)
_NOTIFY, _INDICATE = Characteristic.Properties.NOTIFY, Characteristic.Properties.INDICATE
_READ, _WRITE = Characteristic.Properties.READ, Characteristic.Properties.WRITE
_WRITE_QUIETLY = Characteristic.Properties.WRITE_WITHOUT_RESPONSE


@dataclass(frozen=True)
class DeviceClock:
    """A wearable's clock: ``epoch_us`` when the play begins, then fast by ``drift_ppm`` (slow if negative)."""

    epoch_us: int
    drift_ppm: float

    def at(self, elapsed_ns: int) -> int:
        """Its reading in microseconds, not wrapped."""
        return self.epoch_us + round(elapsed_ns * (1 + self.drift_ppm * 1e-6) / 1000)


class Due(NamedTuple):
    """One notification: when it falls due on the recording's clock, its bytes, and the characteristic that sends it."""

    at_ns: int
    value: bytes
    source: str


class Twin:
    """What a wearable speaks.

    Attributes:
        advertised: UUID of the service that it advertises.
        service: Its own service.
        notifying: Its characteristics that send samples, by UUID.
        device: The device that it lives on; set when it is put on.
    """

    advertised: str
    device: Device

    def __init__(self, service_uuid: str, characteristics: Iterable[Characteristic], sends: Sequence[str]) -> None:
        self.advertised = service_uuid
        all_of_them = list(characteristics)
        self.service = Service(bumble_uuid(service_uuid), all_of_them)
        by_uuid = {one.uuid: one for one in all_of_them}
        self.notifying = {source: by_uuid[bumble_uuid(source)] for source in sends}

    def running(self, source: str) -> bool:
        """Whether the host has started what this characteristic sends; being subscribed to is enough for most."""
        return True

    def is_due(self, due: Due) -> bool:
        """Whether a notification is sent as things stand."""
        return self.running(due.source)

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """All notifications for ``[begin_ns, end_ns)`` of the recording's clock, in order."""
        raise NotImplementedError

    def disconnected(self) -> None:
        """The host is gone."""


def bumble_uuid(uuid: str) -> UUID:
    """bumble's UUID, 16 bits long where the SIG assigned one: advertisements have room for few bytes."""
    short = uuid[4:8] if uuid.endswith(SIG_BASE) else uuid
    return UUID.from_16_bits(int(short, 16)) if len(short) == 4 else UUID(uuid)


def characteristic(
    uuid: str,
    properties: Characteristic.Properties,
    value: bytes = b"",
    write: Callable[[bytes], None] | None = None,
) -> Characteristic:
    """A characteristic with a fixed value; ``write``: what is done with what the host writes."""
    permissions = Characteristic.Permissions(0)
    if properties & _READ:
        permissions |= Characteristic.READABLE
    if write is None:
        return Characteristic(bumble_uuid(uuid), properties, permissions, value)
    take = write
    permissions |= Characteristic.WRITEABLE
    handler = CharacteristicValue(read=lambda _: value, write=lambda _, data: take(bytes(data)))
    return Characteristic(bumble_uuid(uuid), properties, permissions, handler)


def taken(streams: Sequence[Stream]) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
    """Times and values of streams that are sampled together, without the samples that were not taken (NaN).

    Raises:
        UsageError: They are not sampled at the same times.
    """
    first = streams[0]
    if any(not np.array_equal(first.times_ns, stream.times_ns) for stream in streams):
        names = " and ".join(stream.modality.name for stream in streams)
        raise UsageError(f"{names} are not sampled at the same times: give each a wearable of its own")
    whole = np.logical_and.reduce([np.isfinite(stream.values).all(axis=1) for stream in streams])
    return first.times_ns[whole], [stream.values[whole] for stream in streams]


def chunks(times_ns: NDArray[np.int64], begin_ns: int, end_ns: int, rate_hz: float, most: int) -> Iterator[slice]:
    """Samples of ``[begin_ns, end_ns)`` in packets of at most so many; a packet ends early at a gap."""
    first, last = np.searchsorted(times_ns, (begin_ns, end_ns))
    gaps = np.diff(times_ns[first:last]) > GAP_PERIODS * 1e9 / rate_hz
    bounds = [int(first), *(np.flatnonzero(gaps) + 1 + first).tolist(), int(last)]
    for start, stop in pairwise(bounds):
        for i in range(start, stop, most):
            yield slice(i, min(i + most, stop))


def whole_chunks(times_ns: NDArray[np.int64], begin_ns: int, end_ns: int, rate_hz: float, size: int) -> Iterator[slice]:
    """As :func:`chunks`, but only packets that are full."""
    return (chunk for chunk in chunks(times_ns, begin_ns, end_ns, rate_hz, size) if chunk.stop - chunk.start == size)


class ImuTwin(Twin):
    """armlet's IMU service (:mod:`armlet_runtime.wearables.imu`)."""

    def __init__(self, streams: Sequence[Stream], samples_per_packet: int) -> None:
        names = " and ".join(stream.modality.name for stream in streams)
        self._times_ns, values = taken(streams)
        if samples_per_packet < 1:
            raise UsageError(f"an IMU packet holds one sample at least, not {samples_per_packet}")
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
        info = characteristic(imu.INFO_UUID, _READ, imu.encode_info(self._info))
        super().__init__(imu.SERVICE_UUID, [info, characteristic(imu.DATA_UUID, _NOTIFY)], [imu.DATA_UUID])

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`."""
        for chunk in chunks(self._times_ns, begin_ns, end_ns, self._info.rate_hz, self._samples_per_packet):
            samples = {name: values[chunk] for name, values in self._values.items()}
            clock_us = clock.at(int(self._times_ns[chunk.start]) - begin_ns)
            data = imu.encode_data(self._info, sequence, clock_us, samples)
            yield Due(int(self._times_ns[chunk.stop - 1]), data, imu.DATA_UUID)
            sequence += 1


class HeartRateTwin(Twin):
    """The SIG's Heart Rate service (:mod:`armlet_runtime.wearables.heart_rate`), worn on the chest."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._rate = streams["hr"]
        self._intervals = streams.get("rr")
        self._energy = streams.get("energy")
        location = characteristic(heart_rate.LOCATION_UUID, _READ, _CHEST)
        measurement = characteristic(heart_rate.MEASUREMENT_UUID, _NOTIFY)
        super().__init__(heart_rate.SERVICE_UUID, [measurement, location], [heart_rate.MEASUREMENT_UUID])

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`; this service has neither clock nor counter. A NaN is sent as lost skin contact."""
        first, last = np.searchsorted(self._rate.times_ns, (begin_ns, end_ns))
        before_ns = begin_ns - 1
        for i in range(first, last):
            at_ns = int(self._rate.times_ns[i])
            bpm = float(self._rate.values[i, 0])
            contact = math.isfinite(bpm)
            measurement = heart_rate.HeartRate(
                round(bpm) if contact else 0,
                self._beats(before_ns, at_ns) if contact else (),
                contact,
                self._energy_kj(before_ns, at_ns),
            )
            yield Due(at_ns, heart_rate.encode(measurement), heart_rate.MEASUREMENT_UUID)
            before_ns = at_ns

    def _beats(self, after_ns: int, until_ns: int) -> tuple[float, ...]:
        if self._intervals is None:
            return ()
        first, last = np.searchsorted(self._intervals.times_ns, (after_ns + 1, until_ns + 1))
        return tuple(self._intervals.values[first:last, 0].tolist())

    def _energy_kj(self, after_ns: int, until_ns: int) -> int | None:
        if self._energy is None:
            return None
        first, last = np.searchsorted(self._energy.times_ns, (after_ns + 1, until_ns + 1))
        return round(float(self._energy.values[last - 1, 0])) if last > first else None


class OximeterTwin(Twin):
    """The SIG's Pulse Oximeter service (:mod:`armlet_runtime.wearables.oximeter`), continuous."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        pair = [streams["spo2"], streams["hr"]]
        if not np.array_equal(pair[0].times_ns, pair[1].times_ns):
            raise UsageError("spo2 and hr are not sampled at the same times: give each a wearable of its own")
        self._streams = pair
        continuous = characteristic(oximeter.CONTINUOUS_UUID, _NOTIFY)
        super().__init__(oximeter.SERVICE_UUID, [continuous], [oximeter.CONTINUOUS_UUID])

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`; a NaN is sent as one."""
        times_ns = self._streams[0].times_ns
        for i in range(*np.searchsorted(times_ns, (begin_ns, end_ns)).tolist()):
            spo2, bpm = (float(stream.values[i, 0]) for stream in self._streams)
            yield Due(int(times_ns[i]), oximeter.encode(spo2, bpm), oximeter.CONTINUOUS_UUID)


class ThermometerTwin(Twin):
    """The SIG's Health Thermometer service (:mod:`armlet_runtime.wearables.thermometer`); it indicates."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        final = characteristic(thermometer.FINAL_UUID, _INDICATE)
        super().__init__(thermometer.SERVICE_UUID, [final], [thermometer.FINAL_UUID])

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`; a NaN is sent as one."""
        times_ns = self._stream.times_ns
        for i in range(*np.searchsorted(times_ns, (begin_ns, end_ns)).tolist()):
            yield Due(int(times_ns[i]), thermometer.encode(float(self._stream.values[i, 0])), thermometer.FINAL_UUID)


class PolarTwin(Twin):
    """Polar's measurement service (:mod:`armlet_runtime.wearables.polar`).

    With ECG it is an H10 and sends raw frames; else it is a Verity Sense and compresses.
    """

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        kinds = {kind.modality: number for number, kind in polar.KINDS.items()}
        self._streams = {kinds[name]: stream for name, stream in streams.items()}
        self._taken = {number: taken([stream]) for number, stream in self._streams.items()}
        self._compresses = "ecg" not in streams
        self._started: set[int] = set()
        features = bytes([polar.FEATURES, sum(1 << number for number in self._streams), 0])
        self._control = characteristic(polar.CONTROL_UUID, _READ | _WRITE | _INDICATE, features, self._told)
        super().__init__(
            polar.SERVICE_UUID, [self._control, characteristic(polar.DATA_UUID, _NOTIFY)], [polar.DATA_UUID]
        )
        self.advertised = polar.COMPANY_UUID

    def _settings(self, number: int) -> dict[int, tuple[float, ...]]:
        if number == polar.PPI:
            return {}
        rate = self._streams[number].modality.rate_hz
        bits = {polar.ECG: 14.0, polar.PPG: 22.0}.get(number, 16.0)
        return {polar.RATE: (rate,), polar.RESOLUTION: (bits,)}

    def _told(self, data: bytes) -> None:
        command, number = (data[0], data[1]) if len(data) > 1 else (0, 0)
        settings: dict[int, tuple[float, ...]] = {}
        error = polar.DONE
        if number not in self._streams:
            error = 2
        elif command == polar.GET:
            settings = self._settings(number)
        elif command == polar.START:
            if number in self._started:
                error = polar.ALREADY
            elif polar.decode_settings(data[2:]) != self._settings(number):
                error = 5
            else:
                self._started.add(number)
                if self._compresses and number in POLAR_FACTORS:
                    settings = {polar.FACTOR: (POLAR_FACTORS[number],)}
        elif command == polar.STOP:
            self._started.discard(number)
        else:
            error = 1
        answer = polar.encode_answer(polar.Answer(command, number, error, settings))
        _keep(asyncio.ensure_future(self.device.indicate_subscribers(self._control, answer)))

    def is_due(self, due: Due) -> bool:
        """See :class:`Twin`: what was not started is not sent."""
        return due.value[0] in self._started

    def running(self, source: str) -> bool:
        """See :class:`Twin`."""
        return bool(self._started)

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`; a frame's clock is that of its last sample."""
        return heapq.merge(*(self._frames(number, begin_ns, end_ns, clock) for number in self._streams))

    def _frames(self, number: int, begin_ns: int, end_ns: int, clock: DeviceClock) -> Iterator[Due]:
        times_ns, (values,) = self._taken[number]
        rate_hz = self._streams[number].modality.rate_hz
        layout_byte, scale = self._layout(number)
        for chunk in chunks(times_ns, begin_ns, end_ns, rate_hz, max(1, round(rate_hz * POLAR_FRAME_S))):
            at_ns = int(times_ns[chunk.stop - 1])
            head = polar.HEAD.pack(number, clock.at(at_ns - begin_ns) * 1000, layout_byte)
            yield Due(at_ns, head + self._body(number, layout_byte, values[chunk], scale), polar.DATA_UUID)

    def _layout(self, number: int) -> tuple[int, float]:
        """Layout byte, and unit per LSB."""
        layout_byte = {polar.ECG: 0, polar.PPI: 0, polar.ACC: 1}.get(number, polar.COMPRESSED)
        if self._compresses and number == polar.ACC:
            layout_byte |= polar.COMPRESSED
        if number == polar.PPI:
            return layout_byte, 1e-3
        factor = POLAR_FACTORS.get(number, 1.0) if layout_byte & polar.COMPRESSED else 1.0
        return layout_byte, polar.LAYOUTS[number, layout_byte].scale * factor

    @staticmethod
    def _body(number: int, layout_byte: int, values: NDArray[np.float32], scale: float) -> bytes:
        raw = np.rint(values.astype(np.float64) / scale).astype(np.int64)
        if number == polar.PPI:
            return b"".join(bytes([0]) + int(ms).to_bytes(2, "little") + bytes([10, 0, 6]) for ms in raw[:, 0])
        bits = polar.LAYOUTS[number, layout_byte].bits
        raw = np.clip(raw, -(1 << bits - 1), (1 << bits - 1) - 1)
        if layout_byte & polar.COMPRESSED:
            return polar.compress(raw, bits)
        return b"".join(int(one).to_bytes(bits // 8, "little", signed=True) for one in raw.reshape(-1))

    def disconnected(self) -> None:
        """See :class:`Twin`."""
        self._started.clear()


_MUSE_SIZES = {"eeg": muse.EEG_PER_PACKET, "ppg": muse.PPG_PER_PACKET}


class MuseTwin(Twin):
    """A Muse headband (:mod:`armlet_runtime.wearables.muse`)."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._streams = {name: (stream, *taken([stream])) for name, stream in streams.items()}
        self._on = False
        self._sources = {
            name: sources
            for name, sources in {
                "eeg": tuple(muse.EEG_UUIDS),
                "ppg": tuple(muse.PPG_UUIDS),
                "acc": (muse.ACC_UUID,),
                "gyro": (muse.GYRO_UUID,),
            }.items()
            if name in streams
        }
        control = characteristic(muse.CONTROL_UUID, _WRITE | _WRITE_QUIETLY | _NOTIFY, write=self._told)
        # A headband has all of its characteristics but those of the PPG, whatever is played on it.
        all_sources = [*muse.EEG_UUIDS, muse.ACC_UUID, muse.GYRO_UUID, *(muse.PPG_UUIDS if "ppg" in streams else ())]
        sends = [source for sources in self._sources.values() for source in sources]
        super().__init__(muse.SERVICE_UUID, [control, *(characteristic(one, _NOTIFY) for one in all_sources)], sends)

    def _told(self, data: bytes) -> None:
        self._on = {muse.command("d"): True, muse.command("h"): False}.get(data, self._on)

    def running(self, source: str) -> bool:
        """See :class:`Twin`."""
        return self._on

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`."""
        return heapq.merge(*(self._signal(name, begin_ns, end_ns, sequence) for name in self._sources))

    def _signal(self, name: str, begin_ns: int, end_ns: int, sequence: int) -> Iterator[Due]:
        stream, times_ns, (values,) = self._streams[name]
        size = _MUSE_SIZES.get(name, muse.MOTION_PER_PACKET)
        for chunk in whole_chunks(times_ns, begin_ns, end_ns, stream.modality.rate_hz, size):
            # The counter is that of the samples since the play's begin, so that it goes on over gaps.
            number = sequence + round((int(times_ns[chunk.start]) - begin_ns) / 1e9 * stream.modality.rate_hz / size)
            at_ns, window = int(times_ns[chunk.stop - 1]), values[chunk]
            for i, source in enumerate(self._sources[name]):
                if name == "eeg":
                    value = muse.encode_eeg(number, window[:, i])
                elif name == "ppg":
                    value = muse.encode_ppg(number, window[:, i])
                else:
                    value = muse.encode_motion(number, window, muse.ACC_G if name == "acc" else muse.GYRO_RAD_S)
                yield Due(at_ns, value, source)

    def disconnected(self) -> None:
        """See :class:`Twin`."""
        self._on = False


class MovesenseTwin(Twin):
    """A Movesense sensor (:mod:`armlet_runtime.wearables.movesense`)."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        motion = [streams[name] for name in movesense.SCALES if name in streams]
        self._motion = (motion[0].modality.rate_hz, *taken(motion)) if motion else None
        self._names = [stream.modality.name for stream in motion]
        self._ecg = (streams["ecg"].modality.rate_hz, *taken([streams["ecg"]])) if "ecg" in streams else None
        self._subscribed: dict[int, str] = {}
        write = characteristic(movesense.WRITE_UUID, _WRITE, write=self._told)
        self._notify = characteristic(movesense.NOTIFY_UUID, _NOTIFY)
        super().__init__(movesense.SERVICE_UUID, [write, self._notify], [movesense.NOTIFY_UUID])

    def _told(self, data: bytes) -> None:
        code, reference, path = data[0], data[1], data[2:].decode()
        if code == movesense.UNSUBSCRIBE:
            self._subscribed.pop(reference, None)
            return
        parts = path.strip("/").split("/")
        source = self._ecg if parts[1] == "ECG" else self._motion
        has = parts[1] == "ECG" or set(movesense.PATHS.get(parts[1], ())) <= set(self._names)
        status = 200 if source is not None and has and float(parts[2]) == source[0] else 404
        if status == 200:
            self._subscribed[reference] = parts[1]
        answer = bytes([movesense.ANSWER, reference]) + status.to_bytes(2, "little")
        _keep(asyncio.ensure_future(self.device.notify_subscribers(self._notify, answer)))

    def running(self, source: str) -> bool:
        """See :class:`Twin`."""
        return bool(self._subscribed)

    def is_due(self, due: Due) -> bool:
        """See :class:`Twin`."""
        return due.value[1] in self._subscribed

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`."""
        return heapq.merge(self._motion_packets(begin_ns, end_ns, clock), self._ecg_packets(begin_ns, end_ns, clock))

    def _motion_packets(self, begin_ns: int, end_ns: int, clock: DeviceClock) -> Iterator[Due]:
        if self._motion is None:
            return
        rate_hz, times_ns, values = self._motion
        size = round(rate_hz / movesense.MOTION_PACKETS_HZ)
        for chunk in whole_chunks(times_ns, begin_ns, end_ns, rate_hz, size):
            names = movesense.PATHS.get(self._subscribed.get(movesense.MOTION_REF, ""), ("acc",))
            samples = {name: array[chunk] for name, array in zip(self._names, values, strict=True) if name in names}
            clock_ms = clock.at(int(times_ns[chunk.start]) - begin_ns) // 1000
            data = movesense.encode_motion(movesense.MOTION_REF, clock_ms, samples)
            at_ns = int(times_ns[chunk.stop - 1])
            yield Due(at_ns, data[:MOVESENSE_BYTES], movesense.NOTIFY_UUID)
            if len(data) > MOVESENSE_BYTES:
                rest = bytes([movesense.REST, movesense.MOTION_REF]) + data[MOVESENSE_BYTES:]
                yield Due(at_ns + 1, rest, movesense.NOTIFY_UUID)

    def _ecg_packets(self, begin_ns: int, end_ns: int, clock: DeviceClock) -> Iterator[Due]:
        if self._ecg is None:
            return
        rate_hz, times_ns, (values,) = self._ecg
        for chunk in whole_chunks(times_ns, begin_ns, end_ns, rate_hz, movesense.ECG_PER_PACKET):
            clock_ms = clock.at(int(times_ns[chunk.start]) - begin_ns) // 1000
            data = movesense.encode_ecg(movesense.ECG_REF, clock_ms, values[chunk, 0])
            yield Due(int(times_ns[chunk.stop - 1]), data, movesense.NOTIFY_UUID)

    def disconnected(self) -> None:
        """See :class:`Twin`."""
        self._subscribed.clear()


class ThingyTwin(Twin):
    """A Thingy:52 (:mod:`armlet_runtime.wearables.thingy52`)."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._rate_hz = streams["acc"].modality.rate_hz
        self._times_ns, values = taken([streams[name] for name in thingy52.SCALES])
        self._values = dict(zip(thingy52.SCALES, values, strict=True))
        self._set_hz = 0
        config = characteristic(
            thingy52.CONFIGURATION_UUID, _READ | _WRITE, thingy52.configuration(round(self._rate_hz)), self._told
        )
        raw = characteristic(thingy52.RAW_UUID, _NOTIFY)
        super().__init__(thingy52.SERVICE_UUID, [config, raw], [thingy52.RAW_UUID])
        self.advertised = thingy52.ADVERTISED_UUID

    def _told(self, data: bytes) -> None:
        self._set_hz = thingy52.CONFIGURATION.unpack(data)[3]

    def running(self, source: str) -> bool:
        """See :class:`Twin`; it can only be played at the recording's rate."""
        return self._set_hz == round(self._rate_hz)

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`."""
        for i in range(*np.searchsorted(self._times_ns, (begin_ns, end_ns)).tolist()):
            sample = {name: values[i].tolist() for name, values in self._values.items()}
            yield Due(int(self._times_ns[i]), thingy52.encode(sample), thingy52.RAW_UUID)


class ArduinoTwin(Twin):
    """An Arduino with the dashboard's sketch (:mod:`armlet_runtime.wearables.arduino`)."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._taken = {name: taken([stream]) for name, stream in streams.items()}
        service = arduino.SERVICE_UUIDS[0]
        self._sources = {name: source for source, name in reversed(arduino.SOURCES.items()) if name in streams}
        sources = list(self._sources.values())
        super().__init__(service, [characteristic(one, _NOTIFY) for one in sources], sources)

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`."""
        return heapq.merge(*(self._samples(name, begin_ns, end_ns) for name in self._taken))

    def _samples(self, name: str, begin_ns: int, end_ns: int) -> Iterator[Due]:
        times_ns, (values,) = self._taken[name]
        for i in range(*np.searchsorted(times_ns, (begin_ns, end_ns)).tolist()):
            yield Due(int(times_ns[i]), arduino.encode(name, values[i].tolist()), self._sources[name])


class UartTwin(Twin):
    """Something that prints lines (:mod:`armlet_runtime.wearables.uart`); a Bangle.js waits for its program."""

    def __init__(self, streams: Mapping[str, Stream], name: str) -> None:
        self._taken = {one: taken([stream]) for one, stream in streams.items()}
        self._rates_hz = {one: stream.modality.rate_hz for one, stream in streams.items()}
        self._is_bangle = name.startswith(uart.BANGLE_NAME)
        self._code = b""
        write = characteristic(uart.WRITE_UUID, _WRITE | _WRITE_QUIETLY, write=self._told)
        super().__init__(uart.SERVICE_UUID, [write, characteristic(uart.NOTIFY_UUID, _NOTIFY)], [uart.NOTIFY_UUID])

    def _told(self, data: bytes) -> None:
        self._code += data

    def running(self, source: str) -> bool:
        """See :class:`Twin`; a program has come whole when its line has ended."""
        return not self._is_bangle or (b"Bangle.on(" in self._code and self._code.endswith(b"\n"))

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`."""
        lines = heapq.merge(*(self._lines(name, begin_ns, end_ns, clock) for name in self._taken))
        for at_ns, line, source in lines:
            for start in range(0, len(line), UART_BYTES):
                yield Due(at_ns + start, line[start : start + UART_BYTES], source)

    def _lines(self, name: str, begin_ns: int, end_ns: int, clock: DeviceClock) -> Iterator[Due]:
        times_ns, (values,) = self._taken[name]
        for i in range(*np.searchsorted(times_ns, (begin_ns, end_ns)).tolist()):
            clock_ms = clock.at(int(times_ns[i]) - begin_ns) // 1000
            line = uart.encode(clock_ms, self._rates_hz[name], {name: [round(x, 6) for x in values[i].tolist()]})
            yield Due(int(times_ns[i]), line, uart.NOTIFY_UUID)

    def disconnected(self) -> None:
        """See :class:`Twin`."""
        self._code = b""


class _Kind(NamedTuple):
    """How a profile's twin is made, and from what.

    Attributes:
        make: From the streams by modality, the samples in a packet, and the wearable's name.
        must: Modalities that it must play.
        can: Modalities that it can play, to the channels of each; None for any number.
        rates_hz: The only rates of those that have only one.
    """

    make: Callable[[Mapping[str, Stream], int, str], Twin]
    must: frozenset[str]
    can: Mapping[str, int | None]
    rates_hz: Mapping[str, float] = MappingProxyType({})


_AXES = dict.fromkeys(SCALES, 3)
_KINDS: Mapping[str, _Kind] = {
    "imu": _Kind(lambda streams, size, name: ImuTwin(list(streams.values()), size), frozenset(), _AXES),
    "heart_rate": _Kind(
        lambda streams, size, name: HeartRateTwin(streams), frozenset({"hr"}), {"hr": 1, "rr": 1, "energy": 1}
    ),
    "oximeter": _Kind(
        lambda streams, size, name: OximeterTwin(streams), frozenset({"spo2", "hr"}), {"spo2": 1, "hr": 1}
    ),
    "thermometer": _Kind(
        lambda streams, size, name: ThermometerTwin(streams["temp"]), frozenset({"temp"}), {"temp": 1}
    ),
    "polar": _Kind(
        lambda streams, size, name: PolarTwin(streams),
        frozenset(),
        {kind.modality: len(kind.channels) for kind in polar.KINDS.values()},
    ),
    "muse": _Kind(
        lambda streams, size, name: MuseTwin(streams),
        frozenset(),
        {name: len(modality.channels) for name, modality in MUSE.items()},
        {name: modality.rate_hz for name, modality in MUSE.items()},
    ),
    "movesense": _Kind(lambda streams, size, name: MovesenseTwin(streams), frozenset(), {**_AXES, "ecg": 1}),
    "thingy52": _Kind(lambda streams, size, name: ThingyTwin(streams), frozenset(_AXES), _AXES),
    "arduino": _Kind(lambda streams, size, name: ArduinoTwin(streams), frozenset(), _AXES, arduino.RATES_HZ),
    "uart": _Kind(lambda streams, size, name: UartTwin(streams, name), frozenset(), dict.fromkeys(UNITS)),
}
"""By profile, in order of preference."""


def twin_for(streams: Sequence[Stream]) -> str | None:
    """The profile whose twin plays these streams if none is named; None if none does."""
    return next((name for name, kind in _KINDS.items() if not _misfit(name, kind, streams)), None)


def make_twin(streams: Sequence[Stream], samples_per_packet: int, name: str, profile: str | None = None) -> Twin:
    """The twin of a profile that plays these streams; that of the first that can if none is named.

    Raises:
        UsageError: There is no such profile, or it does not carry these streams as they are.
    """
    chosen = profile or twin_for(streams)
    if chosen is None:
        said = " and ".join(stream.modality.name for stream in streams)
        raise UsageError(f"no virtual wearable carries {said}: give each a wearable of its own")
    kind = _KINDS.get(chosen)
    if kind is None:
        raise UsageError(f"there is no virtual '{chosen}'; there are {', '.join(_KINDS)}")
    if misfit := _misfit(chosen, kind, streams):
        raise UsageError(misfit)
    return kind.make({stream.modality.name: stream for stream in streams}, samples_per_packet, name)


def _misfit(profile: str, kind: _Kind, streams: Sequence[Stream]) -> str:
    """Why a profile's twin cannot play these streams; empty if it can."""
    modalities = [stream.modality.name for stream in streams]
    if not kind.must <= set(modalities) <= kind.can.keys():
        needs = f", and needs {' and '.join(sorted(kind.must))}" if kind.must else ""
        return f"a virtual {profile} carries {', '.join(sorted(kind.can))}{needs}, not {' and '.join(modalities)}"
    for modality in (stream.modality for stream in streams):
        name, has, sends = modality.name, len(modality.channels), kind.can[modality.name]
        if sends not in (None, has):
            return f"a virtual {profile} sends {sends} channels of {name}; the recording has {has}"
        rate_hz = kind.rates_hz.get(name, modality.rate_hz)
        if abs(modality.rate_hz / rate_hz - 1) > 1e-3:
            return (
                f"a virtual {profile} sends {name} at {rate_hz:g} Hz; the recording has it at {modality.rate_hz:g} Hz"
            )
    return ""


_answers: set[asyncio.Future[Any]] = set()


def _keep(answer: asyncio.Future[Any]) -> None:
    """Hold on to an answer that is on its way; asyncio itself does not. One that the link's end cuts short is lost."""
    _answers.add(answer)

    def done(task: asyncio.Future[Any]) -> None:
        _answers.discard(task)
        if not task.cancelled():
            task.exception()

    answer.add_done_callback(done)
