"""The one Bluetooth device that all scanners and clients of a transport share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from bleak.exc import BleakBluetoothNotAvailableError, BleakBluetoothNotAvailableReason, BleakError
from bumble import core, hci
from bumble.device import Advertisement, Connection, Device

Listener = Callable[[Advertisement], None]

# How long a wearable that was just heard may take to answer a connect before the controller is given to another.
CREATE_TIMEOUT_S = 2.0
# How long a link may take to be taken down.
DISCONNECT_TIMEOUT_S = 5.0


class Radio:
    """One bumble device on one transport, shared by the scanner and the clients."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._lost = asyncio.get_running_loop().create_future()
        self._listeners: list[Listener] = []
        self._scanning = False
        self._scan_lock = asyncio.Lock()
        self._connect_lock = asyncio.Lock()
        device.on(Device.EVENT_FLUSH, self._on_flush)
        device.on(Device.EVENT_ADVERTISEMENT, self._on_advertisement)

    def _on_flush(self) -> None:
        if not self._lost.done():
            self._lost.set_result(None)

    def _on_advertisement(self, advertisement: Advertisement) -> None:
        for listener in tuple(self._listeners):
            listener(advertisement)

    def check(self) -> None:
        """Raise BleakBluetoothNotAvailableError if the transport is gone."""
        if self._lost.done():
            raise BleakBluetoothNotAvailableError(
                "the connection to the Bluetooth controller is lost", BleakBluetoothNotAvailableReason.NO_BLUETOOTH
            )

    async def start_scan(self, listener: Listener) -> None:
        """Call ``listener`` with every advertisement from now on; the controller scans while there is a listener."""
        self.check()
        self._listeners.append(listener)
        try:
            await self._settle_scan()
        except BaseException:
            await self.stop_scan(listener)
            raise

    async def stop_scan(self, listener: Listener) -> None:
        """Undo :meth:`start_scan`; no error if it was not called."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            await self._settle_scan()

    async def _settle_scan(self) -> None:
        """Start or stop scanning as the listeners need it; this goes on if the caller is cancelled."""

        async def settle() -> None:
            async with self._scan_lock:
                scan = bool(self._listeners)
                if scan != self._scanning and not self._lost.done():
                    await (self.device.start_scanning() if scan else self.device.stop_scanning())
                    self._scanning = scan

        try:
            await asyncio.shield(asyncio.ensure_future(settle()))
        except core.BaseBumbleError as error:
            raise BleakError(f"the Bluetooth controller refused to scan: {error}") from error

    async def connect(self, address: str) -> Connection:
        """A link to ``address``; waits until it is heard, for as long as the caller lets it (cancellation is clean).

        Raises:
            BleakError: The controller refused, or is gone.
        """
        while True:
            peer = await self._hear(address)
            async with self._connect_lock:
                attempt = asyncio.ensure_future(self.device.connect_le(peer))
                try:
                    await asyncio.wait({attempt}, timeout=CREATE_TIMEOUT_S)
                except asyncio.CancelledError:
                    await self._abandon(attempt)
                    raise
                if not attempt.done():
                    await self._abandon(attempt)
                    continue
            self.check()
            if attempt.cancelled():
                raise BleakError(f"connecting to {address} was cut short by the controller")
            if isinstance(error := attempt.exception(), core.BaseBumbleError):
                raise BleakError(f"the controller refused to connect to {address}: {error}") from error
            return attempt.result()

    async def _hear(self, address: str) -> hci.Address:
        connectable: asyncio.Future[hci.Address] = asyncio.get_running_loop().create_future()

        def heard(advertisement: Advertisement) -> None:
            if (
                advertisement.is_connectable
                and not connectable.done()
                and address_text(advertisement.address) == address
            ):
                connectable.set_result(advertisement.address)

        await self.start_scan(heard)
        try:
            await asyncio.wait({connectable, self._lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self.stop_scan(heard)
        self.check()
        return connectable.result()

    async def _abandon(self, attempt: asyncio.Future[Connection]) -> None:
        """Cancel a pending connect in the controller; a link that came up all the same is taken down."""
        if not attempt.done() and not self._lost.done():
            with suppress(hci.HCI_Error):  # refused if the link came up in between
                await self.device.send_sync_command(hci.HCI_LE_Create_Connection_Cancel_Command())
            await asyncio.wait({attempt}, timeout=CREATE_TIMEOUT_S)
        if not attempt.done():
            attempt.cancel()
        elif not attempt.cancelled() and attempt.exception() is None:
            await self.device.disconnect(attempt.result(), hci.HCI_REMOTE_USER_TERMINATED_CONNECTION_ERROR)

    async def close(self) -> None:
        """End scanning and every link."""
        if self._lost.done():
            return
        with suppress(core.BaseBumbleError, asyncio.TimeoutError):  # a controller that no longer answers ends them too
            if self._scanning:
                await asyncio.wait_for(self.device.stop_scanning(), DISCONNECT_TIMEOUT_S)
            for connection in tuple(self.device.connections.values()):
                reason = hci.HCI_REMOTE_USER_TERMINATED_CONNECTION_ERROR
                await asyncio.wait_for(self.device.disconnect(connection, reason), DISCONNECT_TIMEOUT_S)
        await self.device.power_off()


def address_text(address: hci.Address) -> str:
    """An address as bleak writes it."""
    return str(address.to_string(with_type_qualifier=False)).upper()
