"""What bleak does not notice of BlueZ: that its daemon has ended.

When ``bluetoothd`` crashes or is restarted, bleak calls no disconnected callback, ``is_connected`` stays true, no data
come any more, and what bleak remembers of the old daemon makes every later request fail in that process. The D-Bus
daemon does say so. bleak forgets all it knows of BlueZ, and tells every client that its link is gone, when its
connection to the D-Bus ends; so that connection is ended here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus

DAEMON = "org.bluez"
_BUS = "org.freedesktop.DBus"
_RULE = f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='{DAEMON}'"


async def follow(ended: Callable[[], None]) -> None:
    """Call ``ended`` each time that ``bluetoothd`` has ended, after bleak has been made to forget it. Never returns.

    Raises:
        OSError: There is no system D-Bus.
    """
    from bleak.backends.bluezdbus import manager

    gone = asyncio.Event()

    def heard(message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.member == "NameOwnerChanged":
            name, old, _new = message.body
            if name == DAEMON and old:
                gone.set()

    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    try:
        bus.add_message_handler(heard)
        follow_it = Message(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", signature="s", body=[_RULE])
        await bus.call(follow_it)
        while True:
            await gone.wait()
            gone.clear()
            known = manager._global_instances.get(asyncio.get_running_loop())
            if known is not None and known._bus is not None:
                known._bus.disconnect()
            ended()
    finally:
        bus.disconnect()
