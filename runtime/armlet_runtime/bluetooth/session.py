"""The links of one run: which wearables are wanted, who is heard, and what they sent.

Written against bleak's public face only, with the back end passed in, so that the same code runs on BlueZ and on a
virtual air. Each wearable has a supervisor of its own (:mod:`armlet_runtime.bluetooth.link`); no wearable waits for
another but for the seconds of one connection attempt.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData

from ..printable import printable
from ..signals import Packet
from ..wearables import Wanted, profiles_of_advertisement
from .adapters import Adapter, Bluetooth, Sighting, keep_scanning
from .link import DISCONNECT_S, STOP_S, TAKE_OVER_S, Link, LinkSupervisor

log = logging.getLogger(__name__)

# How long a cancelled supervisor has to end its link, before it is cancelled again; and how often it is cancelled.
CANCEL_S = STOP_S + DISCONNECT_S + 1.0
CANCELS = 3
# Packets that wait for the loop; 20 wearables at 25 packets a second for 16 s. Beyond that the newest data are dropped.
QUEUE_PACKETS = 8192
# Most supervisors; a wearable that was never connected and was heard longest ago makes room for a new wearable.
MAX_LINKS = 32


class Session:
    """The links of one run.

    Attributes:
        dropped: Packets of data for which the queue had no room.
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
            bluetooth: The adapters; see :func:`armlet_runtime.bluetooth.open_bluetooth`.
            names: Advertised names or addresses of the wearables wanted; no other is connected. Empty: every one that
                may carry one of ``modalities``. What a person gave goes through
                :func:`armlet_runtime.bluetooth.choose_wearables`, which lets it be empty only if that was asked for.
            modalities: Wanted of them, with their rates in Hz if they are to be asked for. Empty for all that are
                known.
            complete: Without names: whether no further wearable need be looked for.
        """
        self.dropped = 0
        self.links: dict[str, Link] = {}
        self._supervisors: dict[str, LinkSupervisor] = {}
        adapters = bluetooth if isinstance(bluetooth, Sequence) else (bluetooth,)
        self._adapters = [Adapter(bluetooth) for bluetooth in adapters]
        self._names = {name.upper() if _is_address(name) else name: name for name in names}
        self._rates_hz = dict(modalities) if isinstance(modalities, Mapping) else dict.fromkeys(modalities)
        self._complete = complete
        self._changed = asyncio.Event()
        self._packets: deque[Packet] = deque()
        self._arrived = asyncio.Event()
        self._dropping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Keep the links up until cancelled; then end them all.

        Raises:
            WearableError: There is no usable Bluetooth here.
        """
        log.info(
            "adapters: %d; looking for %s", len(self._adapters),
            ", ".join(self._names.values()) or f"wearables of {', '.join(self._rates_hz) or 'any modality'}",
        )  # fmt: skip
        for name in self._names.values():
            self._add(Link(name, problem="not heard yet"))
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
            for supervisor in self._supervisors.values():
                supervisor.ending = True
            for _ in range(CANCELS):
                for task in self._tasks:
                    task.cancel()
                if self._tasks:
                    await asyncio.wait(self._tasks, timeout=CANCEL_S)
            for task in self._tasks:
                log.error("%s does not end; its link may stay up", task.get_name())

    def take(self) -> list[Packet]:
        """The packets and the events of links since the last call, in order of arrival."""
        packets = list(self._packets)
        self._dropping = False
        self._packets.clear()
        self._arrived.clear()
        return packets

    async def wait(self, timeout_s: float) -> None:
        """Return when there is something to take, at the latest after ``timeout_s``."""
        try:
            await asyncio.wait_for(self._arrived.wait(), timeout_s)
        except asyncio.TimeoutError:
            return

    def _put(self, packet: Packet) -> None:
        # Only data: what becomes of a link, and what was read and written, decides how later data are understood.
        if packet.kind == "data" and len(self._packets) >= QUEUE_PACKETS:
            self.dropped += 1
            if not self._dropping:
                log.warning("%d packets wait and are not taken; data are dropped", len(self._packets))
            self._dropping = True
            return
        self._packets.append(packet)
        self._arrived.set()

    def _start(self, work: Coroutine[Any, Any, None], name: str | None = None) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) and not self._failed.done():
                self._failed.set_exception(error)

        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(ended)

    # --- scanning -----------------------------------------------------------------------------------------------------

    async def _scan(self, adapter: Adapter) -> None:
        await keep_scanning(
            adapter,
            self._adapters,
            lambda: self._scan_wanted(adapter),
            lambda device, advertisement: self._heard(adapter, device, advertisement),
            self._wait_for_change,
        )

    async def _follow_bluez(self) -> None:
        """Begin every scan anew when ``bluetoothd`` has ended or an adapter changed; bleak itself ends the links."""
        from .bluez import follow

        def changed() -> None:
            log.info("bluetoothd ended or an adapter changed; every scan begins anew")
            for adapter in self._adapters:
                adapter.heard_at = 0.0
            self._changed.set()

        with suppress(OSError, EOFError):  # without D-Bus, scanning reports the error
            await follow(changed)

    async def _free_wearables(self) -> None:
        """Have BlueZ end the links of missing wearables that a process which is no more has left behind."""
        from .bluez import free

        with suppress(OSError, EOFError):
            await free(lambda: any(map(self._scan_wanted, self._adapters)), self._is_ours)

    def _is_ours(self, name: str, address: str) -> bool:
        """Whether a device that has a link is a wearable of this session that misses its own.

        Without names it is ours only if this session had a link to it: a device that may be of use can be another
        program's.
        """
        link = next((link for link in self.links.values() if link.address == address), None)
        if link is not None:
            return not link.linked and bool(self._names or link.connections)
        return name in self._names or address in self._names

    def _scan_wanted(self, adapter: Adapter) -> bool:
        """Whether a wearable is missing, and the adapter is not connecting."""
        if adapter.connecting.locked():
            return False
        if any(
            supervisor.link.state != "streaming" and self._is_sought(supervisor)
            for supervisor in self._supervisors.values()
        ):
            return True
        return not self._names and not self._complete()

    def _is_sought(self, supervisor: LinkSupervisor) -> bool:
        """Whether a wearable is worth the radio's time: it was asked for, was connected, or was heard just now."""
        if self._names or supervisor.link.connections:
            return True
        return time.monotonic() - supervisor.heard_at < TAKE_OVER_S

    async def _wait_for_change(self) -> None:
        # At least once a second: whether the session is complete is not announced.
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), 1.0)
        except asyncio.TimeoutError:
            return

    # --- wearables ----------------------------------------------------------------------------------------------------

    def _heard(self, adapter: Adapter, device: BLEDevice, advertisement: AdvertisementData) -> None:
        name = printable(advertisement.local_name or device.name or "")
        # BlueZ gives a wearable whose name it has not heard yet its address for a name.
        if _is_address(name):
            name = ""
        supervisor = self._supervisor_of(name, device.address.upper(), advertisement)
        if supervisor is not None:
            supervisor.heard(adapter, Sighting(device, advertisement.rssi, time.monotonic()))

    def _supervisor_of(self, name: str, address: str, advertisement: AdvertisementData) -> LinkSupervisor | None:
        """The supervisor of an advertisement's wearable, a new one for a new wearable; None if it is not wanted."""
        known = next(
            (supervisor for supervisor in self._supervisors.values() if supervisor.link.address == address), None
        )
        if known is not None:
            return known
        if self._names:
            wanted = self._names.get(address) or self._names.get(name)
            return self._known_as(wanted, address) if wanted is not None else None
        if not name or not self._useful(name, advertisement.service_uuids):
            return None
        if name in self._supervisors:
            if (known := self._known_as(name, address)) is not None:
                return known
            name = f"{name} {address}"  # a second wearable of that name
        return self._add(Link(name, address=address)) if self._make_room() else None

    def _known_as(self, name: str, address: str) -> LinkSupervisor | None:
        """The supervisor of a name, if its wearable may have this address."""
        supervisor = self._supervisors[name]
        return supervisor if supervisor.take_over(address) else None

    def _add(self, link: Link) -> LinkSupervisor:
        supervisor = LinkSupervisor(
            link, self._rates_hz, bool(self._names), self._links_of_others, self._put, self._changed.set
        )
        self.links[link.name] = link
        self._supervisors[link.name] = supervisor
        self._start(supervisor.run(), _task_name(link))
        return supervisor

    def _make_room(self) -> bool:
        """Whether there is room for another link; if need be, a wearable that was never connected is forgotten."""
        if len(self._supervisors) < MAX_LINKS:
            return True
        idle = [
            supervisor
            for supervisor in self._supervisors.values()
            if not supervisor.link.linked and not supervisor.link.connections
        ]
        if not idle:
            return False
        oldest = min(idle, key=lambda supervisor: supervisor.heard_at).link
        log.info("'%s': forgotten, to make room for another wearable", oldest.name)
        self._supervisors.pop(oldest.name).ending = True
        del self.links[oldest.name]
        for task in self._tasks:
            if task.get_name() == _task_name(oldest):
                task.cancel()
        return True

    def _useful(self, name: str, services: Collection[str]) -> bool:
        profiles = profiles_of_advertisement(name, services)
        return any(Wanted(self._rates_hz).wants(*profile.carries) for profile in profiles)

    def _links_of_others(self, supervisor: LinkSupervisor) -> Counter[Adapter]:
        others = (other for other in self._supervisors.values() if other is not supervisor)
        return Counter(other.adapter for other in others if other.adapter is not None)


def _task_name(link: Link) -> str:
    return f"link {link.name}"


def _is_address(text: str) -> bool:
    """Whether a text is a Bluetooth address, with colons or dashes."""
    parts = text.replace("-", ":").split(":")
    return len(parts) == 6 and all(len(part) == 2 and part.strip("0123456789abcdefABCDEF") == "" for part in parts)
