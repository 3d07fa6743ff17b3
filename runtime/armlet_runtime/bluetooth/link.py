"""One wearable's link: its public state, and the supervisor that keeps it up.

A supervisor connects when its wearable is heard, starts the wearable by the steps of its profiles, and stays until the
link is lost or no data come; then it disconnects for good and begins again. How long it waits after a failure depends
on what failed.

``disconnect()`` before each new connection is not tidiness: on BlueZ the notifications would double after every link
loss otherwise (https://github.com/hbldh/bleak/issues/2002).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from bleak import BleakClient
from bleak.exc import BleakError

from ..errors import PacketError, WearableError
from ..signals import Packet
from ..wearables import Profile, Wanted, battery, device_information, profiles_of_services
from .adapters import Adapter, Sighting, choose_adapter
from .link_errors import LOCKED, REFUSED, STALE, UNEXPECTED, Trouble, sentence_of, trouble_of
from .profile_steps import ProfileSteps

log = logging.getLogger(__name__)

# One attempt to connect, services included. A Raspberry Pi's own chip takes 1 to 3 s for the link, and a wearable with
# 40 attributes at 0.1 s a request 4 s for its services. What has not come up by then has mostly gone, and others wait
# for their turn; but a slow one must not fail for ever, so the attempt after one that ran out of time has longer.
CONNECT_S = 10.0
SLOW_CONNECT_S = 25.0
# All steps of starting a wearable: a dozen commands at a round trip of 0.1 s each, and a slow one.
START_S = 15.0
# Telling a wearable to stop, before its link is ended.
STOP_S = 1.0
# BlueZ takes about 2 s to end a link.
DISCONNECT_S = 5.0
# A wearable that sent and is silent for so long is gone, whatever the link says (after a crash of bluetoothd the link
# looks alive for ever); before its first packet a wearable may take longer.
SILENCE_S = 5.0
FIRST_DATA_S = 30.0
# How often the battery is read of a wearable that does not notify it.
BATTERY_S = 60.0
# A wearable that is missing for so long is worth a line in the log.
NEWS_S = 30.0
# BlueZ may report a wearable's first advertisement together with the end of its link, and the next ones only when its
# signal strength has changed by 8 dB or a new scan begins.
TOGETHER_S = 0.1
# Another address counts as a known wearable's only when its own has not been heard for so long: wearables with
# privacy change theirs, and a stranger of the same name is not to push one out.
TAKE_OVER_S = 30.0
# BlueZ sometimes gives a connection before it has the services; a wearable without a known one is asked so often.
UNKNOWN_TRIES = 3

ATT_HEAD = 3
"""Bytes of an ATT MTU that hold no value (Core specification, Vol 3, Part F, 3.4.5.3)."""


@dataclass
class Link:
    """One wearable's link, as others see it.

    Attributes:
        name: The wearable's name in the session.
        state: ``missing`` (not heard, or its link was lost), ``found`` (heard, waits for its turn), ``connecting``,
            ``starting`` (linked; the commands that start it are sent), ``streaming``, ``waiting`` (an attempt failed;
            another follows) or ``refused`` (armlet cannot use it in its present state; tried again once a minute).
        problem: Why the last attempt failed or the link was lost; empty if nothing went wrong.
        address: Bluetooth address; empty if it has not been heard.
        rssi: Signal strength of its last advertisement in dBm.
        profiles: Names of the profiles that were started.
        mtu: ATT MTU agreed upon; the largest possible is requested.
        interval_ms: Connection interval; None if the back end cannot tell.
        battery: Charge in percent; None if it does not say.
        about: Texts of its Device Information service: maker, model and the like.
        learned: Whether these texts were read.
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

    @property
    def linked(self) -> bool:
        """Whether it has, or is being given, a link."""
        return self.state in ("connecting", "starting", "streaming")


class LinkSupervisor:
    """Keeps one wearable's link up.

    Attributes:
        link: Its public state.
        adapter: Through which it has its link, or at which it waits for its turn; None otherwise.
        heard_at: When its advertisement was heard last, on the monotonic clock; 0 if never.
        ending: Set at the end of the session: no further connection is made.
    """

    def __init__(
        self,
        link: Link,
        rates_hz: Mapping[str, float | None],
        named: bool,
        links_of_others: Callable[[LinkSupervisor], Mapping[Adapter, int]],
        put: Callable[[Packet], None],
        changed: Callable[[], None],
    ) -> None:
        """Begin without a link.

        Args:
            link: Kept up to date.
            rates_hz: Modalities wanted, with their rates; empty for all.
            named: Whether a person named the wearable.
            links_of_others: How many of the session's other wearables have, or wait for, a link, by adapter.
            put: Takes what the wearable sends and what becomes of its link.
            changed: Called when the link's state changed.
        """
        self.link = link
        self.adapter: Adapter | None = None
        self.heard_at = 0.0
        self.ending = False
        self._rates_hz = rates_hz
        self._named = named
        self._links_of_others = links_of_others
        self._put_packet = put
        self._changed = changed
        self._heard = asyncio.Event()
        self._lost_at = 0.0
        self._unknown = 0
        self._pair = False
        self._connect_s = CONNECT_S
        self._sightings: dict[Adapter, Sighting] = {}

    def heard(self, adapter: Adapter, sighting: Sighting) -> None:
        """The wearable advertises."""
        self.link.rssi, self.heard_at = sighting.rssi, sighting.at
        self._sightings[adapter] = sighting
        if not self.link.linked and not self._heard.is_set():
            self._heard.set()
            log.info("'%s': heard, %s, %d dBm", self.link.name, self.link.address, sighting.rssi)
            if self.link.state == "missing":
                self._set("found")

    def take_over(self, address: str) -> bool:
        """Take over another address of the wearable, if its own has fallen silent; whether it was taken over."""
        link = self.link
        if link.address and (link.linked or time.monotonic() - self.heard_at < TAKE_OVER_S):
            return False
        if link.address:
            log.info("'%s': its address is now %s, before %s", link.name, address, link.address)
        link.address = address
        self._sightings.clear()
        if not link.attempts:
            link.problem = ""
        return True

    async def run(self) -> None:
        """Connect each time the wearable is heard, and stay until its link is lost."""
        link = self.link
        in_a_row = 0
        while not self.ending:
            await self._until_heard()
            trouble: Trouble | None = None
            try:
                await self._stream()
                in_a_row = 0
            except (BleakError, WearableError, OSError, EOFError, asyncio.TimeoutError) as error:
                trouble = trouble_of(error)
                link.problem = sentence_of(error)
                await self._mend(trouble)
            except Exception as error:  # it must not end the other links
                log.exception("'%s': unexpected error", link.name)
                trouble = UNEXPECTED
                link.problem = f"unexpected {type(error).__name__}: {error}"
            finally:
                self.adapter = None
                self._heard.clear()
                link.profiles = ()
                self._set("missing" if trouble is None else "refused" if trouble is REFUSED else "waiting")
            if trouble is None and self.heard_at > self._lost_at - TOGETHER_S:
                self._heard.set()
                self._set("found")
            if trouble is not None:
                in_a_row += 1
                link.failures[trouble.name] = link.failures.get(trouble.name, 0) + 1
                wait_s = trouble.wait_s(in_a_row)
                log.info(
                    "'%s': failed (%s, %d in a row): %s; next attempt when it is heard, in %.1f s at the earliest",
                    link.name, trouble.name, in_a_row, link.problem, wait_s,
                )  # fmt: skip
                await asyncio.sleep(wait_s)
                self._set("found" if self._heard.is_set() else "missing")

    async def _until_heard(self) -> None:
        name = self.link.name
        news = asyncio.get_running_loop().call_later(
            NEWS_S, log.info, "'%s': not heard for %g s; still looking", name, NEWS_S
        )
        try:
            await self._heard.wait()
        finally:
            news.cancel()

    async def _mend(self, trouble: Trouble) -> None:
        """Do what makes the next attempt likelier to succeed."""
        if trouble is LOCKED:
            log.info("'%s': wants a bond; the next attempt pairs", self.link.name)
            self._pair = True
        elif trouble is STALE and self.adapter is not None and self.adapter.bluetooth.client is None:
            await self._forget_services()

    async def _forget_services(self) -> None:
        """Have BlueZ ask the wearable for its services anew."""
        if sys.platform != "linux":
            return
        from .bluez import forget_services

        with suppress(OSError, EOFError, asyncio.TimeoutError):
            if await asyncio.wait_for(forget_services(self.link.address), DISCONNECT_S):
                log.warning(
                    "'%s': BlueZ keeps the services that it remembers, because the wearable is bonded; if it does not "
                    "come up: bluetoothctl remove %s, and pair it again",
                    self.link.name,
                    self.link.address,
                )

    async def _stream(self) -> None:
        """One connection, from the attempt to its end."""
        link = self.link
        lost = asyncio.Event()
        linked = False
        steps: ProfileSteps | None = None

        def end() -> None:
            nonlocal linked
            if linked:
                linked = False
                self._lost_at = time.monotonic()
                self._put("disconnected")
                log.info("'%s': the link has ended", link.name)
            lost.set()
            if steps is not None:
                steps.lost()

        client, adapter = await self._connect(end)
        learning: asyncio.Task[None] | None = None
        wanted = Wanted(self._rates_hz)
        profiles: list[Profile] = []
        steps = ProfileSteps(client, link.name, self._put)
        try:
            linked = True
            self._put("connected")
            self._set("starting")
            characteristics = list(client.services.characteristics.values())
            log.info("'%s': connected; %d characteristics", link.name, len(characteristics))
            uuids = frozenset(characteristic.uuid for characteristic in characteristics)
            wanted = Wanted(self._rates_hz, uuids, client.name or link.name, self._named)
            if self._pair:
                await asyncio.wait_for(client.pair(), START_S)
            profiles = await asyncio.wait_for(self._start(client, steps, wanted), START_S)
            link.problem = ""
            link.connections += 1
            link.profiles = tuple(profile.name for profile in profiles)
            link.mtu = (
                max(characteristic.max_write_without_response_size for characteristic in characteristics) + ATT_HEAD
            )
            link.interval_ms = adapter.bluetooth.interval_ms(link.address)
            self._set("streaming")
            log.info(
                "'%s': started %s; MTU %d bytes, connection interval %s", link.name, ", ".join(link.profiles), link.mtu,
                "unknown" if link.interval_ms is None else f"{link.interval_ms:g} ms",
            )  # fmt: skip
            learning = asyncio.ensure_future(self._learn(client))
            await self._watch(steps, lost, max([SILENCE_S, *(profile.silence_s for profile in profiles)]))
        finally:
            if learning is not None:
                learning.cancel()
            if not lost.is_set():
                with suppress(BleakError, WearableError, OSError, EOFError, asyncio.TimeoutError):
                    await asyncio.wait_for(steps.stop(profiles, wanted), STOP_S)
            await self._disconnect(client, end)

    async def _connect(self, lost: Callable[[], None]) -> tuple[BleakClient, Adapter]:
        """Make one attempt when it is the wearable's turn; ``lost`` is called when the link ends."""
        while True:
            adapter = self.adapter = choose_adapter(self._sightings, self._links_of_others(self))
            async with adapter.connecting:
                sighting = self._sightings.get(adapter)
                if sighting is None:  # meanwhile its address changed, and only another adapter has heard the new one
                    continue
                self._set("connecting")
                self.link.attempts += 1
                log.info(
                    "'%s': attempt %d, to %s at %d dBm, for %g s at the most", self.link.name, self.link.attempts,
                    sighting.device.address, sighting.rssi, self._connect_s,
                )  # fmt: skip
                bluetooth = adapter.bluetooth
                client = BleakClient(sighting.device, lambda _: lost(), backend=bluetooth.client, **bluetooth.options)
                limit_s, self._connect_s = self._connect_s, CONNECT_S
                try:
                    await asyncio.wait_for(client.connect(timeout=limit_s), limit_s)
                except asyncio.TimeoutError:
                    self._connect_s = SLOW_CONNECT_S
                    raise asyncio.TimeoutError(f"it did not come up in {limit_s:g} s") from None
                return client, adapter

    async def _start(self, client: BleakClient, steps: ProfileSteps, wanted: Wanted) -> list[Profile]:
        """Start those of the wearable's profiles that carry what is wanted; all if none does."""
        services = [service.uuid for service in client.services]
        known = profiles_of_services(services)
        log.debug("'%s': services %s", self.link.name, ", ".join(services))
        if not known:
            self._unknown += 1
            if self._unknown < UNKNOWN_TRIES:
                raise BleakError(f"Service Discovery of '{self.link.name}' brought none that armlet knows")
            raise PacketError(f"'{self.link.name}' has no service that armlet knows")
        self._unknown = 0
        return await steps.start([profile for profile in known if wanted.wants(*profile.carries)] or known, wanted)

    async def _learn(self, client: BleakClient) -> None:
        """Read Device Information and the battery's level; a wearable may lack either, or refuse."""
        link = self.link
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

    async def _watch(self, steps: ProfileSteps, lost: asyncio.Event, silence_s: float) -> None:
        """Return when the link is lost, or the wearable has fallen silent."""
        started_ns = time.monotonic_ns()
        while not lost.is_set():
            limit_s = silence_s if steps.newest_ns else max(FIRST_DATA_S, silence_s)
            left_s = limit_s - (time.monotonic_ns() - (steps.newest_ns or started_ns)) / 1e9
            if left_s <= 0:
                self.link.problem = f"the link was up, but no data came for {limit_s:g} s"
                log.info("'%s': no data for %g s; ending the link", self.link.name, limit_s)
                return
            try:
                await asyncio.wait_for(lost.wait(), min(left_s, silence_s))
            except asyncio.TimeoutError:
                continue
        self.link.problem = "the link was lost"
        quiet_s = (time.monotonic_ns() - (steps.newest_ns or started_ns)) / 1e9
        log.info("'%s': the link was lost, %.1f s after the newest data", self.link.name, quiet_s)

    async def _disconnect(self, client: BleakClient, end: Callable[[], None]) -> None:
        """Take the link down whatever state it is in."""
        try:
            await asyncio.wait_for(client.disconnect(), DISCONNECT_S)
        except (BleakError, OSError, EOFError, asyncio.TimeoutError) as error:
            self.link.problem = f"it did not disconnect: {sentence_of(error)}"
            log.warning("'%s': %s", self.link.name, self.link.problem)
        end()

    def _set(self, state: str) -> None:
        self.link.state = state
        self._changed()

    def _put(self, kind: str, source: str = "", data: bytes = b"", now_ns: int | None = None) -> None:
        self._put_packet(Packet(time.monotonic_ns() if now_ns is None else now_ns, self.link.name, kind, source, data))
