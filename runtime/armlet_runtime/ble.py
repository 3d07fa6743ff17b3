"""Bluetooth: keeps the links to the wearables up, and stamps what they send.

Written against bleak's public face only, with the back end passed in, so that the same code runs on BlueZ and on a
virtual air. For each wearable: heard in the scan, connected (one connection attempt at a time), read and subscribed
to; when the link is lost or no data come, disconnected for good and taken up again as soon as it is heard.

``disconnect()`` before each new connection is not tidiness: on BlueZ the notifications would double after every link
loss otherwise (https://github.com/hbldh/bleak/issues/2002).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol

from bleak import BleakClient, BleakScanner
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.client import BaseBleakClient
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData, BaseBleakScanner
from bleak.exc import BleakBluetoothNotAvailableError, BleakDBusError, BleakError
from bleak_retry_connector import establish_connection

from .errors import UsageError, WearableError
from .recording import Packet
from .wearables import Profile, profiles_of_services

GROUP = "armlet.bluetooth"

# One attempt to connect, read and subscribe. A Raspberry Pi's own chip takes 1 to 3 s; what has not come up by then has
# gone, and others wait for their turn.
CONNECT_S = 10.0
# BlueZ takes about 2 s to end a link.
DISCONNECT_S = 5.0
# A wearable that sent and is silent for so long is gone, whatever the link says (after a crash of bluetoothd the link
# looks alive for ever); before its first packet a wearable may take longer.
SILENCE_S = 5.0
FIRST_DATA_S = 30.0
# Waits after failed attempts, doubled each time, times 0.5 to 1 so that wearables do not fall into step.
BACK_OFF_S = 0.5
LONGEST_BACK_OFF_S = 15.0
# A Bluetooth stack that was there and refuses to scan for so long does not come back in this process.
GIVE_UP_S = 60.0
# Packets that wait for the loop; 20 wearables at 25 packets a second for 16 s. Beyond that the newest are dropped.
QUEUE_PACKETS = 8192


class Bluetooth(Protocol):
    """What bleak takes as ``backend=``; None for bleak's own of this system."""

    @property
    def scanner(self) -> type[BaseBleakScanner] | None:
        """The scanner's class."""

    @property
    def client(self) -> type[BaseBleakClient] | None:
        """The client's class."""


@dataclass(frozen=True)
class SystemBluetooth:
    """Bluetooth of this system."""

    scanner: type[BaseBleakScanner] | None = None
    client: type[BaseBleakClient] | None = None


@asynccontextmanager
async def open_bluetooth(name: str) -> AsyncIterator[Bluetooth]:
    """Open the Bluetooth that ``--bluetooth`` names: ``system``, or ``NAME:TRANSPORT`` such as ``bumble:usb:0``.

    Raises:
        UsageError: There is no such back end.
        WearableError: The transport does not open.
    """
    if name == "system":
        yield SystemBluetooth()
        return
    kind, _, transport = name.partition(":")
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if kind not in found or not transport:
        known = ", ".join(["system", *(f"{other}:TRANSPORT" for other in sorted(found))])
        raise UsageError(f"there is no Bluetooth '{name}'; known here: {known}")
    try:
        opener: Callable[[str], Any] = found[kind].load()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("armlet"):
            raise
        raise UsageError(
            f"Bluetooth '{kind}' needs the package '{error.name}', which is not installed: pip install 'armlet[bridge]'"
        ) from error
    async with opener(transport) as bluetooth:
        yield bluetooth


@dataclass
class Link:
    """One wearable's link.

    Attributes:
        name: The wearable's name in the session.
        state: ``found`` (heard, never connected), ``connecting``, ``streaming`` or ``missing`` (its link failed).
        problem: Why the last attempt failed or the link was lost; empty if nothing went wrong.
    """

    name: str
    state: str = "found"
    problem: str = ""
    device: BLEDevice | None = None
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    newest_ns: int = 0


class Session:
    """The links of one run.

    Attributes:
        dropped: Packets that found the queue full.
        links: By wearable name.
    """

    def __init__(
        self,
        bluetooth: Bluetooth,
        names: Sequence[str] = (),
        modalities: Sequence[str] = (),
        complete: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin with no link.

        Args:
            bluetooth: See :func:`open_bluetooth`.
            names: Advertised names of the wearables wanted. Empty: every one with a service that may carry one of
                ``modalities``.
            modalities: Empty for all that are known.
            complete: Without names: whether no further wearable need be looked for.
        """
        self.dropped = 0
        self.links: dict[str, Link] = {}
        self._bluetooth = bluetooth
        self._names = tuple(names)
        self._modalities = frozenset(modalities)
        self._complete = complete
        self._connecting = asyncio.Lock()
        self._changed = asyncio.Event()
        self._packets: deque[Packet] = deque()
        self._arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Keep the links up until cancelled; then end them all.

        Raises:
            WearableError: There is no usable Bluetooth here.
        """
        for name in self._names:
            self.links[name] = Link(name, "missing", "not heard yet")
            self._start(self._serve(self.links[name]))
        self._start(self._scan())
        try:
            await self._failed
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def take(self) -> list[Packet]:
        """What the wearables sent and what became of their links since the last call, in order of arrival."""
        packets = list(self._packets)
        self._packets.clear()
        self._arrived.clear()
        return packets

    async def wait(self, timeout_s: float) -> None:
        """Return when there is something to take, at the latest after ``timeout_s``."""
        try:
            await asyncio.wait_for(self._arrived.wait(), timeout_s)
        except asyncio.TimeoutError:
            return

    def _start(self, work: Any) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) and not self._failed.done():
                self._failed.set_exception(error)

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(ended)

    # --- scanning -----------------------------------------------------------------------------------------------------

    def _scan_wanted(self) -> bool:
        """Whether a wearable is missing, and the radio is not busy with connecting one."""
        states = {link.name: link.state for link in self.links.values()}
        if "connecting" in states.values():
            return False
        if any(state != "streaming" for state in states.values()):
            return True
        return not self._names and not self._complete()

    async def _scan(self) -> None:
        refused_since: float | None = None
        worked = False
        while True:
            if not self._scan_wanted():
                await self._wait_for_change()
                continue
            try:
                async with BleakScanner(self._heard, backend=self._bluetooth.scanner):
                    worked, refused_since = True, None
                    while self._scan_wanted():
                        await self._wait_for_change()
            except (BleakError, OSError, EOFError) as error:
                refused_since = refused_since if refused_since is not None else time.monotonic()
                if not worked or time.monotonic() - refused_since > GIVE_UP_S:
                    raise WearableError(
                        f"Bluetooth cannot be used here ({_say(error)}): check that an adapter is there and powered, "
                        f"or name another with --bluetooth"
                    ) from error
                await asyncio.sleep(1.0)

    async def _wait_for_change(self) -> None:
        # At least once a second: whether the session is complete is not announced.
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), 1.0)
        except asyncio.TimeoutError:
            return

    def _heard(self, device: BLEDevice, advertisement: AdvertisementData) -> None:
        name = advertisement.local_name or device.name
        # BlueZ gives a wearable whose name it has not heard yet its address for a name.
        if not name or name.replace("-", ":").upper() == device.address.upper():
            return
        if not (name in self._names if self._names else self._useful(advertisement)):
            return
        link = self.links.get(name)
        if link is not None and link.state == "streaming" and link.device and link.device.address != device.address:
            name = f"{name} {device.address}"  # a second wearable of that name
            link = self.links.get(name)
        if link is None:
            link = self.links[name] = Link(name)
            self._start(self._serve(link))
        link.device = device
        link.heard.set()

    def _useful(self, advertisement: AdvertisementData) -> bool:
        profiles = profiles_of_services(advertisement.service_uuids)
        return any(not self._modalities or self._modalities.intersection(profile.carries) for profile in profiles)

    # --- one wearable -------------------------------------------------------------------------------------------------

    async def _serve(self, link: Link) -> None:
        """Connect each time the wearable is heard, and stay until its link is lost."""
        failures = 0
        while True:
            await link.heard.wait()
            try:
                await self._stream(link)
                failures = 0
            except (BleakError, OSError, EOFError, asyncio.TimeoutError) as error:
                failures += 1
                link.problem = _say(error)
            finally:
                link.heard.clear()
                self._set(link, "missing")
            if failures:
                longest = min(BACK_OFF_S * 2 ** (failures - 1), LONGEST_BACK_OFF_S)
                await asyncio.sleep(longest * random.uniform(0.5, 1.0))

    async def _stream(self, link: Link) -> None:
        """One connection, from the attempt to its end."""
        lost = asyncio.Event()
        linked = False

        def end() -> None:
            nonlocal linked
            if linked:
                linked = False
                self._put(link, "disconnected")
            lost.set()

        async with self._connecting:
            self._set(link, "connecting")
            assert link.device is not None
            client = await asyncio.wait_for(
                establish_connection(
                    BleakClient,
                    link.device,
                    link.name,
                    disconnected_callback=lambda _: end(),
                    max_attempts=1,
                    use_services_cache=False,
                    backend=self._bluetooth.client,
                ),
                CONNECT_S,
            )
            try:
                linked = True
                link.newest_ns = 0
                self._put(link, "connected")
                await asyncio.wait_for(self._subscribe(link, client), CONNECT_S)
            except BaseException:
                await self._disconnect(link, client, end)
                raise
        try:
            link.problem = ""
            self._set(link, "streaming")
            await self._watch(link, lost)
        finally:
            await self._disconnect(link, client, end)

    async def _subscribe(self, link: Link, client: BleakClient) -> None:
        profiles = profiles_of_services([service.uuid for service in client.services])
        if not profiles:
            raise BleakError(f"'{link.name}' has no service that armlet knows")
        for profile in profiles:
            if profile.info_uuid is not None:
                self._put(link, "info", profile.info_uuid, bytes(await client.read_gatt_char(profile.info_uuid)))
            await self._notify(link, client, profile)

    async def _notify(self, link: Link, client: BleakClient, profile: Profile) -> None:
        def arrived(_: BleakGATTCharacteristic, data: bytearray) -> None:
            now_ns = time.monotonic_ns()
            link.newest_ns = now_ns
            self._put(link, "data", profile.data_uuid, bytes(data), now_ns)

        try:
            # AcquireNotify: data do not go through the D-Bus daemon. Only BlueZ reads the option.
            await client.start_notify(profile.data_uuid, arrived, bluez={"use_start_notify": False})
        except BleakDBusError:  # some devices and versions of BlueZ offer StartNotify only
            await client.start_notify(profile.data_uuid, arrived, bluez={"use_start_notify": True})

    async def _watch(self, link: Link, lost: asyncio.Event) -> None:
        """Return when the link is lost, or the wearable has fallen silent."""
        subscribed_ns = time.monotonic_ns()
        while not lost.is_set():
            if link.newest_ns:
                left_s = SILENCE_S - (time.monotonic_ns() - link.newest_ns) / 1e9
            else:
                left_s = FIRST_DATA_S - (time.monotonic_ns() - subscribed_ns) / 1e9
            if left_s <= 0:
                link.problem = (
                    f"the link was up, but no data came for {SILENCE_S if link.newest_ns else FIRST_DATA_S:g} s"
                )
                return
            try:
                await asyncio.wait_for(lost.wait(), min(left_s, SILENCE_S))
            except asyncio.TimeoutError:
                continue
        link.problem = "the link was lost"

    async def _disconnect(self, link: Link, client: BleakClient, end: Callable[[], None]) -> None:
        """Take the link down whatever state it is in."""
        try:
            await asyncio.wait_for(client.disconnect(), DISCONNECT_S)
        except (BleakError, OSError, EOFError, asyncio.TimeoutError) as error:
            link.problem = f"it did not disconnect: {_say(error)}"
        end()

    def _set(self, link: Link, state: str) -> None:
        link.state = state
        self._changed.set()

    def _put(self, link: Link, kind: str, source: str = "", data: bytes = b"", now_ns: int | None = None) -> None:
        packet = Packet(time.monotonic_ns() if now_ns is None else now_ns, link.name, kind, source, data)
        if len(self._packets) >= QUEUE_PACKETS:
            self.dropped += 1
            return
        self._packets.append(packet)
        self._arrived.set()


def _say(error: BaseException) -> str:
    """What an error says; its kind if it says nothing."""
    if isinstance(error, FileNotFoundError):  # of the D-Bus socket
        return "the system's D-Bus, over which BlueZ is reached, does not run"
    if isinstance(error, BleakBluetoothNotAvailableError):  # as text it is the pair of its message and its reason
        return str(error.args[0])
    if isinstance(error, asyncio.TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__
