"""What bleak does not notice of BlueZ: that its daemon has ended, or an adapter has gone.

When ``bluetoothd`` crashes or is restarted, bleak calls no disconnected callback, ``is_connected`` stays true, no data
come any more, and what bleak remembers of the old daemon makes every later request fail in that process. The D-Bus
daemon does say so. bleak forgets all it knows of BlueZ, and tells every client that its link is gone, when its
connection to the D-Bus ends; so that connection is ended here. And a scan on an adapter that was pulled out or powered
off goes on without a word, and hears nothing when the adapter is back.

Nor does BlueZ end the links of a process that was killed (https://github.com/bluez/bluez/issues/89). A wearable with a
link does not advertise, so the next process would wait for it in vain; :func:`free` ends links that nobody listens to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus

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


async def free(looking: Callable[[], bool], wanted: Callable[[str, str, Collection[str]], bool]) -> None:
    """End the links of wanted wearables that no process listens to, so that they advertise again. Never returns.

    Args:
        looking: Whether a wearable is missing; while none is, nothing is done.
        wanted: Of a name, an address and the UUIDs of services: whether it is a wearable that is missing.

    Raises:
        OSError: There is no system D-Bus.
    """
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    since: dict[str, float] = {}
    try:
        while True:
            objects: dict[str, dict[str, Any]] = {}
            if looking():
                reply = await bus.call(Message(DAEMON, "/", f"{_BUS}.ObjectManager", "GetManagedObjects"))
                objects = reply.body[0] if reply.message_type is MessageType.METHOD_RETURN else {}
            now = time.monotonic()
            since = {path: since.get(path, now) for path in _unheard(objects) if wanted(*_who(objects[path][DEVICE]))}
            for path in [path for path, first in since.items() if now - first >= ORPHAN_S]:
                await bus.call(Message(DAEMON, path, DEVICE, "Disconnect"))
                del since[path]
            await asyncio.sleep(LOOK_S)
    finally:
        bus.disconnect()


def _unheard(objects: dict[str, dict[str, Any]]) -> list[str]:
    """Paths of the devices that have a link and whose notifications nobody takes."""
    heard = set()
    for path, faces in objects.items():
        characteristic = faces.get(CHARACTERISTIC, {})
        if any(key in characteristic and characteristic[key].value for key in _TAKEN):
            heard.add(path.partition("/service")[0])
    linked = [path for path, faces in objects.items() if DEVICE in faces and faces[DEVICE]["Connected"].value]
    return [path for path in linked if path not in heard]


def _who(device: dict[str, Any]) -> tuple[str, str, list[str]]:
    """Name, address and UUIDs of services of a device."""
    return device["Alias"].value, device["Address"].value, device["UUIDs"].value
