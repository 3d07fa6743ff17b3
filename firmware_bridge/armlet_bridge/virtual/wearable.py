"""Virtual wearables: GATT peripherals on the virtual air that play a recording's streams in real time.

The services and packets are those of its twin (:mod:`armlet_bridge.virtual.twins`).

A virtual wearable behaves as a small real wearable: it has a clock with its own epoch and drift, it sends a packet when
the packet's last sample is taken, only to subscribers, and it has no memory: packets that fall due without a link are
lost, while clock and packet counter continue.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from bumble import hci
from bumble.core import AdvertisingData, BaseBumbleError
from bumble.device import Device
from bumble.gatt import Characteristic, Service
from bumble.transport.common import AsyncPipeSink

from armlet_runtime.errors import UsageError
from armlet_runtime.signals import Recording, Stream
from armlet_runtime.wearables import battery, device_information

from .air import AirController, AirLink
from .twins import DeviceClock, bumble_uuid, characteristic, make_twin, twin_for

ADVERTISING_INTERVAL_MS = 100
# Of a device name in a scan response of 31 bytes, two of which say what it is (Core specification, Vol 3, Part C, 11).
MAX_NAME_BYTES = 29
# From the last subscription to the first sample, so that the answer to the subscription arrives before it.
LEAD_IN_S = 0.1
# How often the wearables' readiness is checked.
READY_POLL_S = 0.01

_FLAGS_LE_ONLY = bytes([0x06])  # general discoverable, no BR/EDR

Log = Callable[[dict[str, Any]], None]


class VirtualWearable:
    """A wearable on the air.

    Attributes:
        name: Advertised name.
        streams: The streams that it plays.
        controller: Its radio; ``controller.out_of_range()`` cuts the link, ``controller.in_range()`` lets it return.
        subscribed: Set while a central is subscribed to its data.
        sent: Notifications given to the link.
        dropped: Notifications that fell due while nobody was subscribed.
    """

    def __init__(
        self,
        name: str,
        streams: Sequence[Stream],
        air: AirLink,
        samples_per_packet: int = 2,
        drift_ppm: float = 0.0,
        profile: str | None = None,
    ) -> None:
        self.name = name
        self.streams = tuple(streams)
        self.controller = AirController(name, air)
        self.subscribed = asyncio.Event()
        self.sent = 0
        self.dropped = 0
        self._on = False
        self._advertiser: asyncio.Future[None] | None = None
        self._twin = make_twin(streams, samples_per_packet, name, profile)
        # Address, clock and counter start anywhere, but at the same place in every run.
        seed = hashlib.sha256(name.encode()).digest()
        self._clock = DeviceClock(int.from_bytes(seed[6:10], "little"), drift_ppm)
        self._sequence = int.from_bytes(seed[10:12], "little")
        address = hci.Address(seed[:5] + bytes([seed[5] | 0xC0]), hci.Address.RANDOM_DEVICE_ADDRESS)
        self._device = Device.with_hci(name, address, self.controller, AsyncPipeSink(self.controller))
        self._twin.device = self._device
        self._device.add_services([self._twin.service, *_common_services(str(address))])
        for source in self._twin.notifying.values():
            source.on(Characteristic.EVENT_SUBSCRIPTION, lambda *_: self._update_subscribed())
        self._device.on(Device.EVENT_CONNECTION, self._on_connection)

    def _on_connection(self, connection: Any) -> None:
        connection.on(connection.EVENT_DISCONNECTION, self._on_disconnection)

    def _on_disconnection(self, _reason: int) -> None:
        self._twin.disconnected()
        # bumble forgets the link's subscriptions right after this event.
        asyncio.get_running_loop().call_soon(self._update_subscribed)
        if self._on:
            self._advertiser = asyncio.ensure_future(self._advertise())

    def _update_subscribed(self) -> None:
        if any(self._is_subscribed(notifying) for notifying in self._twin.notifying.values()):
            self.subscribed.set()
        else:
            self.subscribed.clear()

    def _is_subscribed(self, notifying: Characteristic) -> bool:
        subscriptions = self._device.gatt_server.subscribers.values()
        return any(cccds.get(notifying.handle, bytes(2))[0] & 3 for cccds in subscriptions)

    @property
    def ready(self) -> bool:
        """Whether a central is subscribed and has started what it is subscribed to."""
        return any(
            self._is_subscribed(notifying) and self._twin.running(source)
            for source, notifying in self._twin.notifying.items()
        )

    async def power_on(self) -> None:
        """Power on and advertise, also after each lost link."""
        await self._device.power_on()
        self._on = True
        await self._advertise()

    async def _advertise(self) -> None:
        uuid = bytes(bumble_uuid(self._twin.advertised))
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
        """Disconnect and leave the air."""
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

    async def hang_up(self) -> None:
        """Disconnect, so that the central knows at once, and advertise again."""
        for connection in tuple(self._device.connections.values()):
            with suppress(BaseBumbleError):  # the other end hung up first
                await self._device.disconnect(connection, hci.HCI_REMOTE_USER_TERMINATED_CONNECTION_ERROR)

    def restart(self, epoch_us: int, sequence: int) -> None:
        """Let clock and packet counter begin anew with the next play, as after a crash that the link survived."""
        self._clock = DeviceClock(epoch_us, self._clock.drift_ppm)
        self._sequence = sequence

    async def play(self, begin_ns: int, end_ns: int, start_ns: int) -> None:
        """Send the streams' samples of ``[begin_ns, end_ns)`` so that ``begin_ns`` is taken at ``start_ns``.

        Args:
            begin_ns: Begin, on the recording's clock.
            end_ns: End, on the recording's clock.
            start_ns: ``time.monotonic_ns()`` of the begin.
        """
        for due in self._twin.packets(begin_ns, end_ns, self._clock, self._sequence):
            await _sleep_until(start_ns + due.at_ns - begin_ns)
            source = self._twin.notifying[due.source]
            if self._is_subscribed(source) and self._twin.is_due(due):
                if source.properties & Characteristic.Properties.INDICATE:
                    await self._device.indicate_subscribers(source, due.value)
                else:
                    await self._device.notify_subscribers(source, due.value)
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
    """One wearable to make: its name, the modalities that it carries, and its profile if it is not to be chosen."""

    name: str
    modalities: tuple[str, ...]
    profile: str | None = None


@dataclass
class Play:
    """Virtual wearables that play a recording together.

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
        while not all(wearable.ready for wearable in self.wearables.values()):
            await asyncio.sleep(READY_POLL_S)
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
    return [
        WearableSpec(f"Armlet-{name.capitalize()}", (name,))
        for name, stream in recording.streams.items()
        if twin_for([stream])
    ]


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
            wearable = VirtualWearable(spec.name, streams, air, samples_per_packet, drift, spec.profile)
            stack.push_async_callback(wearable.power_off)
            await wearable.power_on()
            wearables[spec.name] = wearable
            played += streams
        if not all(len(stream.times_ns) for stream in played):
            raise UsageError(f"the recording '{recording.name}' has a stream without samples")
        origin_ns = min(int(stream.times_ns[0]) for stream in played)
        yield Play(wearables, origin_ns, max(int(stream.times_ns[-1]) for stream in played), log)


def _common_services(serial: str) -> list[Service]:
    """Battery and Device Information, as the SIG defines them."""
    read = Characteristic.Properties.READ
    values = {"maker": "armlet", "model": "virtual wearable", "serial": serial}
    texts = [characteristic(device_information.TEXTS[key], read, text.encode()) for key, text in values.items()]
    level = characteristic(battery.LEVEL_UUID, read, battery.encode(100))
    return [
        Service(bumble_uuid(battery.SERVICE_UUID), [level]),
        Service(bumble_uuid(device_information.SERVICE_UUID), texts),
    ]


async def _sleep_until(monotonic_ns: int) -> None:
    await asyncio.sleep(max(0, monotonic_ns - time.monotonic_ns()) / 1e9)
