"""Bluetooth: keeps the links to the wearables up, and stamps what they send.

Written against bleak's public face only, with the back end passed in, so that the same code runs on BlueZ and on a
virtual air. Each wearable has a supervisor of its own, which goes through the states of :class:`Link`: heard in the
scan, connected (one attempt at a time on each adapter), started by the steps of its profiles; when the link is lost or
no data come, disconnected for good and taken up again as soon as it is heard. How long a supervisor waits after a
failure depends on what failed, and no wearable waits for another but for the seconds of one connection attempt.

``disconnect()`` before each new connection is not tidiness: on BlueZ the notifications would double after every link
loss otherwise (https://github.com/hbldh/bleak/issues/2002).
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol

from bleak import BleakClient, BleakScanner
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.client import BaseBleakClient
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData, BaseBleakScanner
from bleak.exc import (
    BleakBluetoothNotAvailableError,
    BleakCharacteristicNotFoundError,
    BleakError,
    BleakGATTProtocolError,
)
from bleak_retry_connector import clear_cache, establish_connection

from ..errors import PacketError, UsageError, WearableError
from ..signals import Packet
from ..wearables import (
    Ask,
    Profile,
    Read,
    Step,
    Steps,
    Subscribe,
    Wanted,
    Write,
    battery,
    device_information,
    profiles_of_advertisement,
    profiles_of_services,
)

GROUP = "armlet.bluetooth"

# One attempt to connect. A Raspberry Pi's own chip takes 1 to 3 s; what has not come up by then has gone, and others
# wait for their turn.
CONNECT_S = 10.0
# All steps of starting a wearable: a dozen commands at a round trip of 0.1 s each, and a slow one.
START_S = 15.0
# The answer to one command.
ANSWER_S = 3.0
# Telling a wearable to stop, before its link is ended.
STOP_S = 1.0
# BlueZ takes about 2 s to end a link.
DISCONNECT_S = 5.0
# How long a cancelled supervisor has to end its link, before it is cancelled again.
CANCEL_S = STOP_S + DISCONNECT_S + 1.0
# A wearable that sent and is silent for so long is gone, whatever the link says (after a crash of bluetoothd the link
# looks alive for ever); before its first packet a wearable may take longer.
SILENCE_S = 5.0
FIRST_DATA_S = 30.0
# A Bluetooth stack that was there and refuses to scan for so long does not come back in this process.
GIVE_UP_S = 60.0
# Packets that wait for the loop; 20 wearables at 25 packets a second for 16 s. Beyond that the newest are dropped.
QUEUE_PACKETS = 8192
# How often the battery is read of a wearable that does not notify it.
BATTERY_S = 60.0
# bleak's stand-in for a signal strength that BlueZ does not have: some property of a known wearable changed, such as
# that its link was lost, and it was not heard.
NOT_HEARD = -127
# A scan in which nobody at all is heard for so long is begun anew: bluetoothd can believe that it scans when it does
# not (https://github.com/bluez/bluez/issues/807).
DEAF_S = 5.0
# BlueZ may tell of a wearable's first advertisement together with the end of its link, and of the next ones only when
# its signal strength has changed by 8 dB or a new scan begins.
TOGETHER_S = 0.1
# Another address may stand for a known wearable only when its own has not been heard for so long: wearables with
# privacy change theirs, and a stranger of the same name is not to push one out.
TAKE_OVER_S = 30.0
# Of two adapters that hear a wearable, sightings older than this do not count.
SIGHTING_S = 5.0
# BlueZ sometimes gives a connection before it has the services; a wearable without a known one is asked so often.
UNKNOWN_TRIES = 3
# Wearables that are kept in mind; one that was never connected and was heard longest ago makes room for a new one.
MAX_LINKS = 32


@dataclass(frozen=True)
class Trouble:
    """A class of errors, and how long to wait after them: doubled each time, times 0.5 to 1 so that wearables do not
    fall into step.

    Attributes:
        name: What it is called in messages.
        first_s: After the first.
        longest_s: After many.
    """

    name: str
    first_s: float
    longest_s: float


AWAY = Trouble("away", 0.5, 15.0)
"""It did not answer: out of reach, off, or taken by another host."""
CUT = Trouble("cut", 0.25, 4.0)
"""The link came up and went down again at once, or BlueZ did not say that it is up."""
BUSY = Trouble("busy", 0.25, 2.0)
"""The host's Bluetooth was doing something else."""
STALE = Trouble("stale", 0.25, 4.0)
"""The host remembers services that the wearable no longer has; what it remembers is deleted."""
LOCKED = Trouble("locked", 0.25, 30.0)
"""The wearable answers only to hosts that are bonded to it; the next attempt pairs."""
REFUSED = Trouble("refused", 60.0, 60.0)
"""It is no wearable that armlet can use, or it refuses its commands."""

ATT_HEAD = 3
"""Bytes of an ATT MTU that hold no value (Core specification, Vol 3, Part F, 3.4.5.3)."""

# ATT errors (Core specification, Vol 3, Part F, 3.4.1.1).
_INVALID_HANDLE = 0x01
_PASSES = (0x0E, 0x11)  # unlikely error, insufficient resources: both come and go
_NEEDS_BOND = (0x05, 0x08, 0x0C, 0x0F)  # authentication, authorization, key size, encryption
# What BlueZ says, as https://github.com/hbldh/bleak/issues and its own source have it.
_SAYS_BUSY = ("InProgress", "in progress", "abort-by-local", "connection abort", "Busy", "NotReady")
_SAYS_STALE = ("UnknownObject", "Service Discovery", "not found in", "does not exist")
_SAYS_LOCKED = ("NotAuthorized", "NotPermitted: Not paired", "AuthenticationFailed", "Insufficient")
_SAYS_CUT = ("failed to discover services", "was lost", "Not connected", "not connected", "NotConnected")


def trouble_of(error: BaseException) -> Trouble:
    """The class of an error that connecting or starting a wearable ended in."""
    text = str(error)
    if isinstance(error, PacketError):
        return REFUSED
    if isinstance(error, BleakGATTProtocolError):
        code = int(error.code)
        known = {_INVALID_HANDLE: STALE, **dict.fromkeys(_NEEDS_BOND, LOCKED), **dict.fromkeys(_PASSES, CUT)}
        return known.get(code, REFUSED)
    if isinstance(error, BleakCharacteristicNotFoundError) or any(one in text for one in _SAYS_STALE):
        return STALE
    for trouble, says in ((BUSY, _SAYS_BUSY), (LOCKED, _SAYS_LOCKED), (CUT, _SAYS_CUT)):
        if any(one in text for one in says):
            return trouble
    return AWAY


class Bluetooth(Protocol):
    """One adapter: what bleak takes as ``backend=``; None for bleak's own of this system."""

    @property
    def scanner(self) -> type[BaseBleakScanner] | None:
        """The scanner's class."""

    @property
    def client(self) -> type[BaseBleakClient] | None:
        """The client's class."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What else bleak's scanner and client are to be given."""

    def interval_ms(self, address: str) -> float | None:
        """The connection interval of the link to an address; None if it cannot be told."""


@dataclass(frozen=True)
class SystemBluetooth:
    """Bluetooth of this system. BlueZ neither tells the connection interval nor lets a program ask for one."""

    scanner: type[BaseBleakScanner] | None = None
    client: type[BaseBleakClient] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def interval_ms(self, address: str) -> float | None:
        """Not known."""
        return None


@asynccontextmanager
async def open_bluetooth(names: str) -> AsyncIterator[tuple[Bluetooth, ...]]:
    """Open the adapters that ``--bluetooth`` names, joined by ``+``.

    ``system`` is this system's default adapter, ``system:hci1`` another of BlueZ's, and ``NAME:TRANSPORT`` one of
    another back end, such as ``bumble:usb:0``.

    Raises:
        UsageError: There is no such back end.
        WearableError: The transport does not open.
    """
    async with AsyncExitStack() as stack:
        yield tuple([await stack.enter_async_context(_open_adapter(name)) for name in names.split("+")])


@asynccontextmanager
async def _open_adapter(name: str) -> AsyncIterator[Bluetooth]:
    kind, _, transport = name.partition(":")
    if kind == "system":
        yield SystemBluetooth(options={"bluez": {"adapter": transport}} if transport else {})
        return
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


@dataclass(eq=False)
class _Adapter:
    bluetooth: Bluetooth
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)
    worked: bool = False
    refused_since: float | None = None
    heard_at: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class _Sighting:
    device: BLEDevice
    rssi: int
    at: float


@dataclass
class Link:
    """One wearable's link.

    Attributes:
        name: The wearable's name in the session.
        state: ``missing`` (not heard, or its link was lost), ``found`` (heard, waits for its turn), ``connecting``,
            ``starting`` (linked, is told to send), ``streaming``, ``waiting`` (an attempt failed; another follows) or
            ``refused`` (armlet cannot use it as it is; tried again once a minute).
        problem: Why the last attempt failed or the link was lost; empty if nothing went wrong.
        address: Bluetooth address; empty if it has not been heard.
        rssi: Signal strength of its last advertisement in dBm.
        profiles: Names of the profiles that were started.
        mtu: ATT MTU agreed upon; as large a one is asked for as there is.
        interval_ms: Connection interval; None if the back end cannot tell.
        battery: Charge in percent; None if it does not say.
        about: What it says of itself: maker, model and the like.
        learned: Whether it was asked for all that it says of itself.
        attempts: Connection attempts.
        connections: Of them, those that came to streaming.
        failures: Class of trouble to how often it came.
    """

    name: str
    state: str = "missing"
    problem: str = ""
    address: str = ""
    rssi: int | None = None
    profiles: tuple[str, ...] = ()
    mtu: int | None = None
    interval_ms: float | None = None
    battery: int | None = None
    about: dict[str, str] = field(default_factory=dict)
    learned: bool = False
    attempts: int = 0
    connections: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    newest_ns: int = 0
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    heard_at: float = 0.0
    lost_at: float = 0.0
    unknown: int = 0
    pair: bool = False
    sightings: dict[_Adapter, _Sighting] = field(default_factory=dict)
    adapter: _Adapter | None = None
    asked: tuple[str, bytes, asyncio.Future[bytes]] | None = None

    @property
    def linked(self) -> bool:
        """Whether it has, or is being given, a link."""
        return self.state in ("connecting", "starting", "streaming")


class Session:
    """The links of one run.

    Attributes:
        dropped: Packets that found the queue full.
        links: By wearable name.
    """

    def __init__(
        self,
        bluetooth: Bluetooth | Sequence[Bluetooth],
        names: Sequence[str] = (),
        modalities: Sequence[str] | Mapping[str, float | None] = (),
        complete: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin with no link.

        Args:
            bluetooth: The adapters; see :func:`open_bluetooth`.
            names: Advertised names or addresses of the wearables wanted; no other is connected. Empty: every one that
                may carry one of ``modalities``.
            modalities: Wanted of them, with their rates in Hz if they are to be asked for. Empty for all that are
                known.
            complete: Without names: whether no further wearable need be looked for.
        """
        self.dropped = 0
        self.links: dict[str, Link] = {}
        adapters = bluetooth if isinstance(bluetooth, Sequence) else (bluetooth,)
        self._adapters = [_Adapter(one) for one in adapters]
        self._names = {name.upper() if _is_address(name) else name: name for name in names}
        self._rates_hz = dict(modalities) if isinstance(modalities, Mapping) else dict.fromkeys(modalities)
        self._complete = complete
        self._changed = asyncio.Event()
        self._packets: deque[Packet] = deque()
        self._arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Keep the links up until cancelled; then end them all.

        Raises:
            WearableError: There is no usable Bluetooth here.
        """
        for name in self._names.values():
            self.links[name] = Link(name, problem="not heard yet")
            self._supervise(self.links[name])
        for adapter in self._adapters:
            self._start(self._scan(adapter))
        if sys.platform == "linux" and any(adapter.bluetooth.scanner is None for adapter in self._adapters):
            self._start(self._follow_bluez())
            self._start(self._free_wearables())
        try:
            await self._failed
        finally:
            # Python's wait_for loses a cancellation that comes together with what it waits for, such as the end of a
            # link when the adapter goes at the same time: the supervisor would go on for ever.
            self._ending = True
            while self._tasks:
                for task in self._tasks:
                    task.cancel()
                await asyncio.wait(self._tasks, timeout=CANCEL_S)

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

    def _start(self, work: Any, name: str | None = None) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) and not self._failed.done():
                self._failed.set_exception(error)

        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(ended)

    # --- scanning -----------------------------------------------------------------------------------------------------

    async def _follow_bluez(self) -> None:
        """Begin every scan anew when ``bluetoothd`` has ended or an adapter changed; the links are told by bleak."""
        from .bluez import follow

        def changed() -> None:
            for adapter in self._adapters:
                adapter.heard_at = 0.0
            self._changed.set()

        with suppress(OSError, EOFError):  # without a D-Bus scanning fails, and says so
            await follow(changed)

    async def _free_wearables(self) -> None:
        """Have BlueZ end the links of missing wearables that a process which is no more has left behind."""
        from .bluez import free

        def wanted(name: str, address: str, services: Collection[str]) -> bool:
            link = next((link for link in self.links.values() if link.address == address), None)
            if link is not None:
                return not link.linked
            return name in self._names or address in self._names or (not self._names and self._useful(name, services))

        with suppress(OSError, EOFError):
            await free(lambda: any(map(self._scan_wanted, self._adapters)), wanted)

    def _scan_wanted(self, adapter: _Adapter) -> bool:
        """Whether a wearable is missing, and the adapter is not busy with connecting one."""
        if adapter.connecting.locked():
            return False
        if any(link.state != "streaming" and self._is_sought(link) for link in self.links.values()):
            return True
        return not self._names and not self._complete()

    def _is_sought(self, link: Link) -> bool:
        """Whether a wearable is worth the radio's time: it was asked for, was connected, or was heard just now."""
        return bool(self._names or link.connections or time.monotonic() - link.heard_at < TAKE_OVER_S)

    async def _scan(self, adapter: _Adapter) -> None:
        bluetooth = adapter.bluetooth

        def heard(device: BLEDevice, advertisement: AdvertisementData) -> None:
            if advertisement.rssi == NOT_HEARD:
                return
            adapter.heard_at = time.monotonic()
            self._heard(adapter, device, advertisement)

        while True:
            if not self._scan_wanted(adapter):
                await self._wait_for_change()
                continue
            try:
                async with BleakScanner(heard, backend=bluetooth.scanner, **bluetooth.options):
                    adapter.worked, adapter.refused_since = True, None
                    adapter.heard_at = time.monotonic()
                    while self._scan_wanted(adapter) and time.monotonic() - adapter.heard_at < DEAF_S:
                        await self._wait_for_change()
            except (BleakError, OSError, EOFError) as error:
                if adapter.refused_since is None:
                    adapter.refused_since = time.monotonic()
                adapter.problem = sentence_of(error)
                if all(self._is_gone(one) for one in self._adapters):
                    raise WearableError(
                        f"Bluetooth cannot be used here ({adapter.problem}): check that an adapter is there and "
                        f"powered, or name another with --bluetooth"
                    ) from error
                await asyncio.sleep(1.0)

    @staticmethod
    def _is_gone(adapter: _Adapter) -> bool:
        since = adapter.refused_since
        return since is not None and (not adapter.worked or time.monotonic() - since > GIVE_UP_S)

    async def _wait_for_change(self) -> None:
        # At least once a second: whether the session is complete is not announced.
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), 1.0)
        except asyncio.TimeoutError:
            return

    def _heard(self, adapter: _Adapter, device: BLEDevice, advertisement: AdvertisementData) -> None:
        name = advertisement.local_name or device.name or ""
        # BlueZ gives a wearable whose name it has not heard yet its address for a name.
        if _is_address(name):
            name = ""
        link = self._link_of(name, device.address.upper(), advertisement)
        if link is None:
            return
        now = time.monotonic()
        link.rssi, link.heard_at = advertisement.rssi, now
        link.sightings[adapter] = _Sighting(device, advertisement.rssi, now)
        if not link.linked and not link.heard.is_set():
            link.heard.set()
            if link.state == "missing":
                self._set(link, "found")

    def _link_of(self, name: str, address: str, advertisement: AdvertisementData) -> Link | None:
        """The link that an advertisement is of; a new one for a new wearable; None for one that is not wanted."""
        link = next((link for link in self.links.values() if link.address == address), None)
        if link is not None:
            return link
        if self._names:
            wanted = self._names.get(address) or self._names.get(name)
            return self._known_as(self.links[wanted], address) if wanted is not None else None
        if not name or not self._useful(name, advertisement.service_uuids):
            return None
        if name in self.links:
            link = self._known_as(self.links[name], address)
            if link is not None:
                return link
            name = f"{name} {address}"  # a second wearable of that name
        if not self._make_room():
            return None
        link = self.links[name] = Link(name, address=address)
        self._supervise(link)
        return link

    def _known_as(self, link: Link, address: str) -> Link | None:
        """The link under another address, if its own has fallen silent."""
        if link.address and (link.linked or time.monotonic() - link.heard_at < TAKE_OVER_S):
            return None
        link.address = address
        link.sightings.clear()
        if not link.attempts:
            link.problem = ""
        return link

    def _make_room(self) -> bool:
        """Whether there is room for one more link; if need be, one that never came to anything is forgotten."""
        if len(self.links) < MAX_LINKS:
            return True
        idle = [link for link in self.links.values() if not link.linked and not link.connections]
        if not idle:
            return False
        oldest = min(idle, key=lambda link: link.heard_at)
        del self.links[oldest.name]
        for task in self._tasks:
            if task.get_name() == _task_name(oldest):
                task.cancel()
        return True

    def _useful(self, name: str, services: Collection[str]) -> bool:
        profiles = profiles_of_advertisement(name, services)
        return any(Wanted(self._rates_hz).wants(*profile.carries) for profile in profiles)

    # --- one wearable -------------------------------------------------------------------------------------------------

    def _supervise(self, link: Link) -> None:
        self._start(self._serve(link), _task_name(link))

    async def _serve(self, link: Link) -> None:
        """Connect each time the wearable is heard, and stay until its link is lost."""
        in_a_row = 0
        while not self._ending:
            await link.heard.wait()
            trouble: Trouble | None = None
            try:
                await self._stream(link)
                in_a_row = 0
            except (BleakError, WearableError, OSError, EOFError, asyncio.TimeoutError) as error:
                in_a_row += 1
                trouble = trouble_of(error)
                link.problem = sentence_of(error)
                link.failures[trouble.name] = link.failures.get(trouble.name, 0) + 1
                await self._mend(link, trouble)
            finally:
                link.heard.clear()
                link.profiles = ()
                self._set(link, "missing" if trouble is None else "refused" if trouble is REFUSED else "waiting")
            if trouble is None and link.heard_at > link.lost_at - TOGETHER_S:
                link.heard.set()
                self._set(link, "found")
            if trouble is not None:
                longest_s = min(trouble.first_s * 2 ** min(in_a_row - 1, 16), trouble.longest_s)
                await asyncio.sleep(longest_s * random.uniform(0.5, 1.0))
                self._set(link, "found" if link.heard.is_set() else "missing")

    async def _mend(self, link: Link, trouble: Trouble) -> None:
        """Do what makes the next attempt likelier to succeed."""
        if trouble is LOCKED:
            link.pair = True
        elif trouble is STALE and link.adapter is not None and link.adapter.bluetooth.client is None:
            with suppress(BleakError, OSError, EOFError, asyncio.TimeoutError):
                await asyncio.wait_for(clear_cache(link.address), DISCONNECT_S)

    def _best_adapter(self, link: Link) -> _Adapter:
        """Of the adapters that hear a wearable, the one with the fewest links; of those, the one that hears it best."""
        newest = max(sighting.at for sighting in link.sightings.values())
        load = dict.fromkeys(self._adapters, 0)
        for other in self.links.values():
            if other is not link and other.linked and other.adapter is not None:
                load[other.adapter] += 1
        fresh = {a: sighting for a, sighting in link.sightings.items() if newest - sighting.at <= SIGHTING_S}
        return min(fresh, key=lambda adapter: (load[adapter], -fresh[adapter].rssi))

    async def _stream(self, link: Link) -> None:
        """One connection, from the attempt to its end."""
        lost = asyncio.Event()
        linked = False

        def end() -> None:
            nonlocal linked
            if linked:
                linked = False
                link.lost_at = time.monotonic()
                self._put(link, "disconnected")
            lost.set()
            if link.asked is not None and not link.asked[2].done():
                link.asked[2].set_exception(BleakError(f"the link to '{link.name}' was lost during a command"))

        adapter = link.adapter = self._best_adapter(link)
        async with adapter.connecting:
            self._set(link, "connecting")
            link.attempts += 1
            client = await asyncio.wait_for(
                establish_connection(
                    BleakClient,
                    link.sightings[adapter].device,
                    link.name,
                    disconnected_callback=lambda _: end(),
                    max_attempts=1,
                    use_services_cache=False,
                    backend=adapter.bluetooth.client,
                    **adapter.bluetooth.options,
                ),
                CONNECT_S,
            )
        learning: asyncio.Task[None] | None = None
        wanted = Wanted(self._rates_hz)
        profiles: list[Profile] = []
        try:
            linked = True
            link.newest_ns = 0
            self._put(link, "connected")
            self._set(link, "starting")
            characteristics = list(client.services.characteristics.values())
            wanted = Wanted(self._rates_hz, frozenset(one.uuid for one in characteristics), client.name or link.name)
            if link.pair:
                await asyncio.wait_for(client.pair(), START_S)
            profiles = await asyncio.wait_for(self._start_profiles(link, client, wanted), START_S)
            link.problem = ""
            link.connections += 1
            link.profiles = tuple(profile.name for profile in profiles)
            link.mtu = max(one.max_write_without_response_size for one in characteristics) + ATT_HEAD
            link.interval_ms = adapter.bluetooth.interval_ms(link.address)
            self._set(link, "streaming")
            learning = asyncio.ensure_future(self._learn(link, client))
            await self._watch(link, lost, profiles)
        finally:
            if learning is not None:
                learning.cancel()
            if not lost.is_set():
                with suppress(BleakError, WearableError, OSError, EOFError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._stop_profiles(link, client, wanted, profiles), STOP_S)
            await self._disconnect(link, client, end)

    async def _start_profiles(self, link: Link, client: BleakClient, wanted: Wanted) -> list[Profile]:
        """Start what is wanted of a wearable; one profile that fails does not keep the others from starting."""
        known = profiles_of_services(service.uuid for service in client.services)
        if not known:
            link.unknown += 1
            if link.unknown < UNKNOWN_TRIES:
                raise BleakError(f"Service Discovery of '{link.name}' brought none that armlet knows")
            raise PacketError(f"'{link.name}' has no service that armlet knows")
        link.unknown = 0
        started: list[Profile] = []
        failure: Exception | None = None
        for profile in [one for one in known if wanted.wants(*one.carries)] or known:
            try:
                await self._carry_out(link, client, profile.start(wanted))
                started.append(profile)
            except (
                PacketError,
                BleakGATTProtocolError,
                BleakCharacteristicNotFoundError,
                asyncio.TimeoutError,
            ) as error:
                failure = error
        if not started and failure is not None:
            raise failure
        return started

    async def _stop_profiles(
        self, link: Link, client: BleakClient, wanted: Wanted, profiles: Sequence[Profile]
    ) -> None:
        for profile in profiles:
            await self._carry_out(link, client, profile.stop(wanted))

    async def _carry_out(self, link: Link, client: BleakClient, steps: Steps) -> None:
        answer = b""
        with suppress(StopIteration):
            step = next(steps)
            while True:
                answer = await self._do(link, client, step)
                step = steps.send(answer)

    async def _do(self, link: Link, client: BleakClient, step: Step) -> bytes:
        if isinstance(step, Read):
            data = bytes(await client.read_gatt_char(step.source))
            self._put(link, "info", step.source, data)
            return data
        if isinstance(step, Subscribe):
            await self._notify(link, client, step.source)
            return b""
        self._put(link, "written", step.source, step.data)
        if isinstance(step, Write):
            await client.write_gatt_char(step.source, step.data, response=step.response)
            return b""
        return await self._ask(link, client, step)

    async def _ask(self, link: Link, client: BleakClient, step: Ask) -> bytes:
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        link.asked = (step.answers, step.begins, answered)
        try:
            await client.write_gatt_char(step.source, step.data, response=True)
            return await asyncio.wait_for(answered, ANSWER_S)
        finally:
            link.asked = None
            if answered.done() and not answered.cancelled():
                answered.exception()  # so that asyncio does not warn of one that nobody saw

    async def _notify(self, link: Link, client: BleakClient, source: str) -> None:
        def arrived(_: BleakGATTCharacteristic, data: bytearray) -> None:
            now_ns = time.monotonic_ns()
            value = bytes(data)
            self._put(link, "data", source, value, now_ns)
            if link.asked is not None and link.asked[0] == source and value.startswith(link.asked[1]):
                if not link.asked[2].done():
                    link.asked[2].set_result(value)
            else:
                link.newest_ns = now_ns

        # Of BlueZ's two ways the one through the D-Bus daemon, StartNotify, which bleak takes by itself: AcquireNotify
        # crashes every bluetoothd before 5.86 that hears of the end of a client before that of its socket, as it does
        # after about one link loss in twenty (https://github.com/bluez/bluez/pull/1784).
        await client.start_notify(source, arrived)

    async def _learn(self, link: Link, client: BleakClient) -> None:
        """What the wearable says of itself, and how its battery does. It may have neither, or refuse to say."""
        errors = (BleakError, OSError, EOFError, asyncio.TimeoutError)
        for key, uuid in device_information.TEXTS.items():
            with suppress(*errors):
                if client.services.get_characteristic(uuid):
                    link.about[key] = device_information.decode(bytes(await client.read_gatt_char(uuid)))
        while True:
            with suppress(*errors, PacketError):
                if client.services.get_characteristic(battery.LEVEL_UUID):
                    link.battery = battery.decode(bytes(await client.read_gatt_char(battery.LEVEL_UUID)))
            link.learned = True
            await asyncio.sleep(BATTERY_S)

    async def _watch(self, link: Link, lost: asyncio.Event, profiles: Sequence[Profile]) -> None:
        """Return when the link is lost, or the wearable has fallen silent."""
        started_ns = time.monotonic_ns()
        silence_s = max([SILENCE_S, *(profile.silence_s for profile in profiles)])
        while not lost.is_set():
            limit_s = silence_s if link.newest_ns else max(FIRST_DATA_S, silence_s)
            left_s = limit_s - (time.monotonic_ns() - (link.newest_ns or started_ns)) / 1e9
            if left_s <= 0:
                link.problem = f"the link was up, but no data came for {limit_s:g} s"
                return
            try:
                await asyncio.wait_for(lost.wait(), min(left_s, silence_s))
            except asyncio.TimeoutError:
                continue
        link.problem = "the link was lost"

    async def _disconnect(self, link: Link, client: BleakClient, end: Callable[[], None]) -> None:
        """Take the link down whatever state it is in."""
        try:
            await asyncio.wait_for(client.disconnect(), DISCONNECT_S)
        except (BleakError, OSError, EOFError, asyncio.TimeoutError) as error:
            link.problem = f"it did not disconnect: {sentence_of(error)}"
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


def _task_name(link: Link) -> str:
    return f"link {link.name}"


def _is_address(text: str) -> bool:
    """Whether a text is a Bluetooth address, with colons or dashes."""
    parts = text.replace("-", ":").split(":")
    return len(parts) == 6 and all(len(part) == 2 and part.strip("0123456789abcdefABCDEF") == "" for part in parts)


def sentence_of(error: BaseException) -> str:
    """What an error says; its kind if it says nothing."""
    if isinstance(error, FileNotFoundError):  # of the D-Bus socket
        return "the system's D-Bus, over which BlueZ is reached, does not run"
    if isinstance(error, BleakBluetoothNotAvailableError):  # as text it is the pair of its message and its reason
        return str(error.args[0])
    if isinstance(error, asyncio.TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__
