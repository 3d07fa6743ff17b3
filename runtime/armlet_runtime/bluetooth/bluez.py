"""What bleak leaves undone with BlueZ: daemons that ended, adapters that went, links and services left over.

When ``bluetoothd`` crashes or is restarted, bleak calls no disconnected callback, ``is_connected`` stays true, no data
come any more, and what bleak remembers of the old daemon makes every later request fail in that process. The D-Bus
daemon does say so. bleak drops its whole state of BlueZ, and reports every link as lost, when its
connection to the D-Bus ends; so that connection is ended here. And a scan on an adapter that was pulled out or powered
off goes on without a word, and hears nothing when the adapter is back.

Nor does BlueZ end the links of a process that was killed (https://github.com/bluez/bluez/issues/89). A wearable with a
link does not advertise, so the next process would wait for it in vain; :func:`free` ends links that nobody listens to.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus

log = logging.getLogger(__name__)

# How often links that nobody listens to are looked for, and how long one must have been such: longer than another
# process takes from connecting to listening.
LOOK_S = 2.0
ORPHAN_S = 8.0

DAEMON = "org.bluez"
ADAPTER = "org.bluez.Adapter1"
DEVICE = "org.bluez.Device1"
CHARACTERISTIC = "org.bluez.GattCharacteristic1"
_BUS = "org.freedesktop.DBus"
# Of a characteristic: whether a process takes its notifications, in the one or the other of BlueZ's two ways.
_TAKEN = ("Notifying", "NotifyAcquired")
_RULES = (
    f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='{DAEMON}'",
    f"type='signal',sender='{DAEMON}',interface='{_BUS}.ObjectManager'",
    f"type='signal',sender='{DAEMON}',member='PropertiesChanged',arg0='{ADAPTER}'",
)


async def follow(changed: Callable[[], None]) -> None:
    """Call ``changed`` when ``bluetoothd`` has ended, and bleak been made to forget it, or an adapter has come, gone,
    or been powered on or off. Never returns.

    Raises:
        OSError: There is no system D-Bus.
    """
    from bleak.backends.bluezdbus import manager

    ended, news = asyncio.Event(), asyncio.Event()

    def heard(message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        body = message.body
        if message.member == "NameOwnerChanged" and body[0] == DAEMON and body[1]:
            ended.set()
            news.set()
        elif (message.member in ("InterfacesAdded", "InterfacesRemoved") and ADAPTER in body[1]) or (
            message.member == "PropertiesChanged" and body[0] == ADAPTER and "Powered" in body[1]
        ):
            news.set()

    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    try:
        bus.add_message_handler(heard)
        for rule in _RULES:
            await bus.call(Message(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", signature="s", body=[rule]))
        while True:
            await news.wait()
            news.clear()
            if ended.is_set():
                ended.clear()
                known = manager._global_instances.get(asyncio.get_running_loop())
                if known is not None and known._bus is not None:
                    known._bus.disconnect()
            changed()
    finally:
        bus.disconnect()


async def free(looking: Callable[[], bool], ours: Callable[[str, str], bool]) -> None:
    """End links that no process listens to, so that their wearables advertise again. Never returns.

    BlueZ does not report the owner of a link: another program's looks the same as long as it subscribes to nothing.

    Args:
        looking: Whether a wearable is missing; while none is, nothing is done.
        ours: Of a name and an address: whether it is a wearable that is missing, and nobody else's.

    Raises:
        OSError: There is no system D-Bus.
    """
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    since: dict[str, float] = {}
    try:
        while True:
            objects = await _objects(bus) if looking() else {}
            now = time.monotonic()
            since = {path: since.get(path, now) for path in _unheard(objects) if ours(*_who(objects[path][DEVICE]))}
            for path in [path for path, first in since.items() if now - first >= ORPHAN_S]:
                log.warning("%s: nobody has listened to its link for %g s; ending the link", path, ORPHAN_S)
                await bus.call(Message(DAEMON, path, DEVICE, "Disconnect"))
                del since[path]
            await asyncio.sleep(LOOK_S)
    finally:
        bus.disconnect()


async def forget_services(address: str) -> bool:
    """Have BlueZ forget the services that it remembers of a device; whether one that is bonded keeps them.

    BlueZ forgets them with the device only, and a bond with both. So a device that is bonded keeps all: a person made
    the bond, and may be needed to make the next.

    Raises:
        OSError: There is no system D-Bus.
    """
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    try:
        loose, bonded = _by_bond(await _objects(bus), address)
        for path in loose:
            adapter = path.rpartition("/")[0]
            await bus.call(Message(DAEMON, adapter, ADAPTER, "RemoveDevice", signature="o", body=[path]))
        return bool(bonded)
    finally:
        bus.disconnect()


async def _objects(bus: MessageBus) -> dict[str, dict[str, Any]]:
    """BlueZ's objects: path to interface to property; none while the daemon does not run."""
    reply = await bus.call(Message(DAEMON, "/", f"{_BUS}.ObjectManager", "GetManagedObjects"))
    return reply.body[0] if reply.message_type is MessageType.METHOD_RETURN else {}


def _by_bond(objects: dict[str, dict[str, Any]], address: str) -> tuple[list[str], list[str]]:
    """Paths of an address's devices, one an adapter: those that are not bonded, and those that are."""
    devices = {path: interfaces[DEVICE] for path, interfaces in objects.items() if DEVICE in interfaces}
    bonded = {path: device["Paired"].value for path, device in devices.items() if device["Address"].value == address}
    return [path for path in bonded if not bonded[path]], [path for path in bonded if bonded[path]]


def _unheard(objects: dict[str, dict[str, Any]]) -> list[str]:
    """Paths of the devices that have a link and whose notifications nobody takes."""
    heard = set()
    for path, interfaces in objects.items():
        characteristic = interfaces.get(CHARACTERISTIC, {})
        if any(key in characteristic and characteristic[key].value for key in _TAKEN):
            heard.add(path.partition("/service")[0])
    devices = {path: interfaces[DEVICE] for path, interfaces in objects.items() if DEVICE in interfaces}
    linked = [path for path, device in devices.items() if device["Connected"].value]
    return [path for path in linked if path not in heard]


def _who(device: dict[str, Any]) -> tuple[str, str]:
    """Name and address of a device."""
    return device["Alias"].value, device["Address"].value
