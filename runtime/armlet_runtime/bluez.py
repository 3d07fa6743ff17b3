"""What bleak does not notice of BlueZ: that its daemon has ended, or an adapter has gone.

When ``bluetoothd`` crashes or is restarted, bleak calls no disconnected callback, ``is_connected`` stays true, no data
come any more, and what bleak remembers of the old daemon makes every later request fail in that process. The D-Bus
daemon does say so. bleak forgets all it knows of BlueZ, and tells every client that its link is gone, when its
connection to the D-Bus ends; so that connection is ended here. And a scan on an adapter that was pulled out or powered
off goes on without a word, and hears nothing when the adapter is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus

DAEMON = "org.bluez"
ADAPTER = "org.bluez.Adapter1"
_BUS = "org.freedesktop.DBus"
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
