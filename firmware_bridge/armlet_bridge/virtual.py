"""Virtual wearables: GATT peripherals on the virtual air that play a recording's streams in real time.

A virtual wearable behaves as a small real one does: it has a clock of its own with its own epoch and drift, it sends a
packet when the packet's last sample is taken, only to who subscribed, and it has no memory: what falls due without a
link is gone, while clock and packet counter go on.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from bumble import hci
from bumble.core import UUID, AdvertisingData, BaseBumbleError
from bumble.device import Device
from bumble.gatt import Characteristic, Service
from bumble.transport.common import AsyncPipeSink

from armlet_runtime.errors import UsageError
from armlet_runtime.recording import Recording, Stream
from armlet_runtime.wearables import heart_rate, imu
from armlet_runtime.windows import GAP_PERIODS

from .air import AirController, AirLink
from .bumble_backend import ATT_MTU

SCALES = {
    "acc": 4.0 / 32768,
    "gyro": math.radians(1000) / 32768,
    "mag": 4912.0 / 32768,
}
"""Unit per LSB: +-4 g, +-1000 degrees/s (17.45 rad/s), +-4912 uT, ranges that common 16-bit IMUs have."""

ADVERTISING_INTERVAL_MS = 100
# Of a device name in a scan response of 31 bytes, two of which say what it is (Core specification, Vol 3, Part C, 11).
MAX_NAME_BYTES = 29
# From all subscribed to the first sample: the last subscriber's answer is on its way.
LEAD_IN_S = 0.1

_BATTERY_SERVICE, _BATTERY_LEVEL = "180f", "2a19"
_DEVICE_SERVICE, _MAKER, _MODEL, _SERIAL = "180a", "2a29", "2a24", "2a25"
_CHEST = bytes([1])  # as a Body Sensor Location (0x2A38)
_SIG_BASE = "-0000-1000-8000-00805f9b34fb"
_FLAGS_LE_ONLY = bytes([0x06])  # general discoverable, no BR/EDR

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class DeviceClock:
    """A wearable's clock: ``epoch_us`` when the play begins, then fast by ``drift_ppm`` (slow if negative)."""

    epoch_us: int
    drift_ppm: float

    def at(self, elapsed_ns: int) -> int:
        """Its reading in microseconds, not wrapped."""
        return self.epoch_us + round(elapsed_ns * (1 + self.drift_ppm * 1e-6) / 1000)


class Profile(Protocol):
    """What a wearable speaks: its GATT service and the notifications that carry its streams."""

    service_uuid: str
    service: Service
    data: Characteristic

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[tuple[int, bytes]]:
        """All notifications for ``[begin_ns, end_ns)`` of the recording's clock, each with the time it falls due."""


class ImuProfile:
    """armlet's IMU service (:mod:`armlet_runtime.wearables.imu`)."""

    service_uuid = imu.SERVICE_UUID

    def __init__(self, streams: Sequence[Stream], samples_per_packet: int) -> None:
        names = " and ".join(stream.modality.name for stream in streams)
        first = streams[0]
        if any(not np.array_equal(first.times_ns, stream.times_ns) for stream in streams):
            raise UsageError(f"{names} are not sampled at the same times: give each a wearable of its own")
        if samples_per_packet < 1:
            raise UsageError(f"an IMU packet holds one sample at least, not {samples_per_packet}")
        self._samples_per_packet = samples_per_packet
        self._info = imu.ImuInfo(
            first.modality.rate_hz, {stream.modality.name: SCALES[stream.modality.name] for stream in streams}
        )
        still = {name: np.zeros((samples_per_packet, 3), np.float32) for name in self._info.scales}
        length = len(imu.encode_data(self._info, 0, 0, still))
        if length > ATT_MTU - 3:
            raise UsageError(
                f"{samples_per_packet} samples of {names} make a packet of {length} bytes; {ATT_MTU - 3} is the most"
            )
        # A sample with a NaN was not taken.
        taken = np.logical_and.reduce([np.isfinite(stream.values).all(axis=1) for stream in streams])
        self._times_ns = first.times_ns[taken]
        self._values = {stream.modality.name: stream.values[taken] for stream in streams}
        self.data = _characteristic(imu.DATA_UUID, Characteristic.Properties.NOTIFY)
        info = _characteristic(imu.INFO_UUID, Characteristic.Properties.READ, imu.encode_info(self._info))
        self.service = Service(_uuid(imu.SERVICE_UUID), [info, self.data])

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[tuple[int, bytes]]:
        """See :class:`Profile`. A packet ends early at a gap, because its samples are one period apart."""
        first, last = np.searchsorted(self._times_ns, (begin_ns, end_ns))
        times_ns = self._times_ns[first:last]
        gaps = np.diff(times_ns) > GAP_PERIODS * 1e9 / self._info.rate_hz
        bounds = [0, *(np.flatnonzero(gaps) + 1).tolist(), len(times_ns)]
        for start, stop in pairwise(bounds):
            for i in range(start, stop, self._samples_per_packet):
                j = min(i + self._samples_per_packet, stop)
                samples = {name: values[first + i : first + j] for name, values in self._values.items()}
                clock_us = clock.at(int(times_ns[i]) - begin_ns)
                yield int(times_ns[j - 1]), imu.encode_data(self._info, sequence, clock_us, samples)
                sequence += 1


class HeartRateProfile:
    """The SIG's Heart Rate service (:mod:`armlet_runtime.wearables.heart_rate`), worn on the chest."""

    service_uuid = heart_rate.SERVICE_UUID

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.data = _characteristic(heart_rate.MEASUREMENT_UUID, Characteristic.Properties.NOTIFY)
        location = _characteristic(heart_rate.LOCATION_UUID, Characteristic.Properties.READ, _CHEST)
        self.service = Service(_uuid(heart_rate.SERVICE_UUID), [self.data, location])

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[tuple[int, bytes]]:
        """See :class:`Profile`; this service has neither clock nor counter. A NaN is sent as lost skin contact."""
        first, last = np.searchsorted(self._stream.times_ns, (begin_ns, end_ns))
        for i in range(first, last):
            bpm = float(self._stream.values[i, 0])
            contact = math.isfinite(bpm)
            measurement = heart_rate.HeartRate(round(bpm) if contact else 0, contact=contact)
            yield int(self._stream.times_ns[i]), heart_rate.encode(measurement)


def make_profile(streams: Sequence[Stream], samples_per_packet: int) -> Profile:
    """The profile that carries these streams.

    Raises:
        UsageError: No profile does.
    """
    names = [stream.modality.name for stream in streams]
    if names == [heart_rate.MODALITY.name]:
        return HeartRateProfile(streams[0])
    if set(names) <= SCALES.keys():
        return ImuProfile(streams, samples_per_packet)
    raise UsageError(
        f"no virtual wearable carries {' and '.join(names)}: an IMU carries {', '.join(SCALES)} (together or alone), "
        f"a heart rate strap carries {heart_rate.MODALITY.name}"
    )


class VirtualWearable:
    """One wearable on the air.

    Attributes:
        name: Advertised name.
        streams: What it plays.
        controller: Its radio; ``controller.out_of_range()`` cuts the link, ``controller.in_range()`` lets it return.
        subscribed: Set while a central is subscribed to its data.
        sent: Notifications given to the link.
        dropped: Notifications that fell due while nobody was subscribed.
    """

    def __init__(
        self, name: str, streams: Sequence[Stream], air: AirLink, samples_per_packet: int = 2, drift_ppm: float = 0.0
    ) -> None:
        self.name = name
        self.streams = tuple(streams)
        self.controller = AirController(name, air)
        self.subscribed = asyncio.Event()
        self.sent = 0
        self.dropped = 0
        self._on = False
        self._advertiser: asyncio.Future[None] | None = None
        self._profile = make_profile(streams, samples_per_packet)
        # Address, clock and counter start anywhere, but at the same place in every run.
        seed = hashlib.sha256(name.encode()).digest()
        self._clock = DeviceClock(int.from_bytes(seed[6:10], "little"), drift_ppm)
        self._sequence = int.from_bytes(seed[10:12], "little")
        address = hci.Address(seed[:5] + bytes([seed[5] | 0xC0]), hci.Address.RANDOM_DEVICE_ADDRESS)
        self._device = Device.with_hci(name, address, self.controller, AsyncPipeSink(self.controller))
        self._device.add_services([self._profile.service, *_common_services(str(address))])
        self._profile.data.on(Characteristic.EVENT_SUBSCRIPTION, lambda *_: self._update_subscribed())
        self._device.on(Device.EVENT_CONNECTION, self._on_connection)

    def _on_connection(self, connection: Any) -> None:
        connection.on(connection.EVENT_DISCONNECTION, self._on_disconnection)

    def _on_disconnection(self, _reason: int) -> None:
        # bumble forgets the link's subscriptions right after this event.
        asyncio.get_running_loop().call_soon(self._update_subscribed)
        if self._on:
            self._advertiser = asyncio.ensure_future(self._advertise())

    def _update_subscribed(self) -> None:
        handle = self._profile.data.handle
        subscriptions = self._device.gatt_server.subscribers.values()
        if any(cccds.get(handle, bytes(2))[0] & 1 for cccds in subscriptions):
            self.subscribed.set()
        else:
            self.subscribed.clear()

    async def power_on(self) -> None:
        """Come up and advertise, also again after each lost link."""
        await self._device.power_on()
        self._on = True
        await self._advertise()

    async def _advertise(self) -> None:
        uuid = bytes(_uuid(self._profile.service_uuid))
        kind = (
            AdvertisingData.Type.COMPLETE_LIST_OF_16_BIT_SERVICE_CLASS_UUIDS
            if len(uuid) == 2
            else AdvertisingData.Type.COMPLETE_LIST_OF_128_BIT_SERVICE_CLASS_UUIDS
        )
        parts = [(AdvertisingData.Type.FLAGS, _FLAGS_LE_ONLY), (kind, uuid)]
        name = [(AdvertisingData.Type.COMPLETE_LOCAL_NAME, self.name.encode())]
        await self._device.start_advertising(
            advertising_data=bytes(AdvertisingData(parts)),
            scan_response_data=bytes(AdvertisingData(name)),
            advertising_interval_min=ADVERTISING_INTERVAL_MS,
            advertising_interval_max=ADVERTISING_INTERVAL_MS,
        )

    async def power_off(self) -> None:
        """Say goodbye and leave the air."""
        self._on = False
        if self._advertiser is not None:
            await self._advertiser
        for connection in tuple(self._device.connections.values()):
            with suppress(BaseBumbleError):  # the other end hung up first
                await self._device.disconnect(
                    connection, hci.HCI_REMOTE_DEVICE_TERMINATED_CONNECTION_DUE_TO_POWER_OFF_ERROR
                )
        await self._device.power_off()
        self.controller.power_off()

    async def play(self, begin_ns: int, end_ns: int, start_ns: int) -> None:
        """Send the streams' samples of ``[begin_ns, end_ns)`` so that ``begin_ns`` is taken at ``start_ns``.

        Args:
            begin_ns: Begin, on the recording's clock.
            end_ns: End, on the recording's clock.
            start_ns: ``time.monotonic_ns()`` of the begin.
        """
        for due_ns, value in self._profile.packets(begin_ns, end_ns, self._clock, self._sequence):
            await _sleep_until(start_ns + due_ns - begin_ns)
            if self.subscribed.is_set():
                await self._device.notify_subscribers(self._profile.data, value)
                self.sent += 1
            else:
                self.dropped += 1


@dataclass(frozen=True)
class LinkLoss:
    """A wearable is out of range from ``start_s`` to ``end_s``, in seconds since the play's begin."""

    wearable: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class WearableSpec:
    """One wearable to make: its name and the modalities that it carries."""

    name: str
    modalities: tuple[str, ...]


@dataclass
class Play:
    """Virtual wearables that play one recording together.

    Attributes:
        wearables: By name.
        origin_ns: First sample of the recording, on its clock; the play's ``start_s`` counts from here.
    """

    wearables: Mapping[str, VirtualWearable]
    origin_ns: int
    _last_ns: int
    _log: Log = field(default=lambda _: None)

    async def run(self, start_s: float = 0.0, duration_s: float | None = None, losses: Sequence[LinkLoss] = ()) -> None:
        """Wait until every wearable is subscribed to, then play to the recording's end (or for ``duration_s``).

        Waiting for all keeps the wearables in step whatever order a central connects in. The log gets ``start`` (with
        the recording's time that is played at that moment), ``link_lost``, ``link_back`` and ``end``.

        Args:
            start_s: Begin so many seconds into the recording.
            duration_s: Play so many seconds; to the end if None or longer.
            losses: When which wearable is out of range.

        Raises:
            UsageError: The recording ends before ``start_s``.
        """
        begin_ns = self.origin_ns + round(start_s * 1e9)
        end_ns = self._last_ns + 1
        if duration_s is not None:
            end_ns = min(end_ns, begin_ns + round(duration_s * 1e9))
        if begin_ns >= end_ns:
            length_s = (self._last_ns - self.origin_ns) / 1e9
            raise UsageError(f"nothing to play from {start_s:g} s on: the recording is {length_s:.1f} s long")
        while not all(wearable.subscribed.is_set() for wearable in self.wearables.values()):
            for wearable in self.wearables.values():
                await wearable.subscribed.wait()
        start_ns = time.monotonic_ns() + round(LEAD_IN_S * 1e9)
        self._log(
            {
                "monotonic_ns": start_ns,
                "event": "start",
                "wearable": None,
                "recording_ns": begin_ns,
                "recording_s": start_s,
                "duration_s": (end_ns - begin_ns) / 1e9,
            }
        )
        events = [asyncio.ensure_future(self._lose(loss, start_ns)) for loss in losses]
        try:
            plays = (wearable.play(begin_ns, end_ns, start_ns) for wearable in self.wearables.values())
            await asyncio.gather(*plays)
            await _sleep_until(start_ns + end_ns - begin_ns)
        finally:
            for event in events:
                event.cancel()
        counts = {name: {"sent": w.sent, "dropped": w.dropped} for name, w in self.wearables.items()}
        self._log({"monotonic_ns": time.monotonic_ns(), "event": "end", "wearable": None, "packets": counts})

    async def _lose(self, loss: LinkLoss, start_ns: int) -> None:
        controller = self.wearables[loss.wearable].controller
        for name, at_s, act in (
            ("link_lost", loss.start_s, controller.out_of_range),
            ("link_back", loss.end_s, controller.in_range),
        ):
            await _sleep_until(start_ns + round(at_s * 1e9))
            act()
            self._log({"monotonic_ns": time.monotonic_ns(), "event": name, "wearable": loss.wearable})


def default_wearables(recording: Recording) -> list[WearableSpec]:
    """One wearable for each modality that a profile carries, named ``Armlet-Acc`` and the like."""
    playable = [*SCALES, heart_rate.MODALITY.name]
    return [WearableSpec(f"Armlet-{name.capitalize()}", (name,)) for name in recording.streams if name in playable]


@asynccontextmanager
async def put_on(
    recording: Recording,
    air: AirLink,
    specs: Sequence[WearableSpec] = (),
    samples_per_packet: int = 2,
    drift_ppm: float = 0.0,
    log: Log = lambda _: None,
) -> AsyncIterator[Play]:
    """Put virtual wearables on the air.

    Args:
        recording: Whose streams they play.
        air: Where.
        specs: Which; :func:`default_wearables` if empty.
        samples_per_packet: For IMUs.
        drift_ppm: Drift of the wearables' clocks; the first is fast by it, the next slow, and so on.
        log: Gets the play's events.

    Raises:
        UsageError: The recording has no stream for a modality, no profile carries it, or two share a name.
    """
    specs = list(specs) or default_wearables(recording)
    have = ", ".join(recording.streams) or "no streams"
    if not specs:
        raise UsageError(f"the recording '{recording.name}' holds {have}, which no virtual wearable can play")
    if len({spec.name for spec in specs}) < len(specs):
        raise UsageError("two virtual wearables have the same name")
    for spec in specs:
        if len(spec.name.encode()) > MAX_NAME_BYTES:
            raise UsageError(
                f"the name '{spec.name}' is longer than the {MAX_NAME_BYTES} bytes that a scan response holds"
            )
    if not math.isfinite(drift_ppm):
        raise UsageError(f"a clock cannot drift by {drift_ppm:g} ppm")
    played: list[Stream] = []
    wearables: dict[str, VirtualWearable] = {}
    async with AsyncExitStack() as stack:
        for i, spec in enumerate(specs):
            if missing := [name for name in spec.modalities if name not in recording.streams]:
                raise UsageError(f"the recording '{recording.name}' holds {have}, not {', '.join(missing)}")
            streams = [recording.streams[name] for name in spec.modalities]
            drift = drift_ppm if i % 2 == 0 else -drift_ppm
            wearable = VirtualWearable(spec.name, streams, air, samples_per_packet, drift)
            stack.push_async_callback(wearable.power_off)
            await wearable.power_on()
            wearables[spec.name] = wearable
            played += streams
        if not all(len(stream.times_ns) for stream in played):
            raise UsageError(f"the recording '{recording.name}' has a stream without samples")
        origin_ns = min(int(stream.times_ns[0]) for stream in played)
        yield Play(wearables, origin_ns, max(int(stream.times_ns[-1]) for stream in played), log)


def _uuid(uuid: str) -> UUID:
    """bumble's UUID, 16 bits long where the SIG assigned one: advertisements have room for few bytes."""
    short = uuid[4:8] if uuid.endswith(_SIG_BASE) else uuid
    return UUID.from_16_bits(int(short, 16)) if len(short) == 4 else UUID(uuid)


def _characteristic(uuid: str, properties: Characteristic.Properties, value: bytes = b"") -> Characteristic:
    readable = properties & Characteristic.Properties.READ
    permissions = Characteristic.READABLE if readable else Characteristic.Permissions(0)
    return Characteristic(_uuid(uuid), properties, permissions, value)


def _common_services(serial: str) -> list[Service]:
    """Battery and Device Information, as the SIG defines them."""
    read = Characteristic.Properties.READ
    texts = {_MAKER: "armlet", _MODEL: "virtual wearable", _SERIAL: serial}
    return [
        Service(_uuid(_BATTERY_SERVICE), [_characteristic(_BATTERY_LEVEL, read, bytes([100]))]),
        Service(_uuid(_DEVICE_SERVICE), [_characteristic(uuid, read, text.encode()) for uuid, text in texts.items()]),
    ]


async def _sleep_until(monotonic_ns: int) -> None:
    await asyncio.sleep(max(0, monotonic_ns - time.monotonic_ns()) / 1e9)
