"""A back end of bleak on bumble: the same bleak code talks to virtual wearables, to a USB dongle or to a serial one.

:func:`open_bluetooth` opens one HCI transport and gives the scanner and client classes that bleak takes as
``backend=``. One bumble ``Device`` serves all of them, as a controller has one host.

A connect first waits until the wearable is heard and only then occupies the controller, which can create one link at a
time: a wearable that is away does not keep the others from connecting.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from bleak.args import SizedBuffer
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.client import BaseBleakClient, NotifyCallback
from bleak.backends.descriptor import BleakGATTDescriptor
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData, AdvertisementDataCallback, BaseBleakScanner
from bleak.backends.service import BleakGATTService, BleakGATTServiceCollection
from bleak.exc import BleakError, BleakGATTProtocolError
from bleak.uuids import normalize_uuid_str
from bumble import core, gatt, hci
from bumble.att import ATT_Error
from bumble.controller import Controller
from bumble.core import AdvertisingData
from bumble.device import Advertisement, Connection, Device
from bumble.transport import open_transport
from bumble.transport.common import AsyncPipeSink

from armlet_runtime.errors import WearableError

from .device import DISCONNECT_TIMEOUT_S, Radio, address_text

T = TypeVar("T")

# The largest ATT MTU that carries the longest attribute (512 bytes) in one notification; what BlueZ asks for too.
ATT_MTU = 517
# How long a controller may take to come up.
POWER_ON_TIMEOUT_S = 10.0

_UUID_LISTS = tuple(
    kind
    for bits in (16, 32, 128)
    for kind in (
        AdvertisingData.Type[f"COMPLETE_LIST_OF_{bits}_BIT_SERVICE_CLASS_UUIDS"],
        AdvertisingData.Type[f"INCOMPLETE_LIST_OF_{bits}_BIT_SERVICE_CLASS_UUIDS"],
    )
)
_SERVICE_DATA = tuple(AdvertisingData.Type[f"SERVICE_DATA_{bits}_BIT_UUID"] for bits in (16, 32, 128))
_NAMES = (AdvertisingData.Type.COMPLETE_LOCAL_NAME, AdvertisingData.Type.SHORTENED_LOCAL_NAME)
_PROPERTIES = {
    gatt.Characteristic.Properties.BROADCAST: "broadcast",
    gatt.Characteristic.Properties.READ: "read",
    gatt.Characteristic.Properties.WRITE_WITHOUT_RESPONSE: "write-without-response",
    gatt.Characteristic.Properties.WRITE: "write",
    gatt.Characteristic.Properties.NOTIFY: "notify",
    gatt.Characteristic.Properties.INDICATE: "indicate",
    gatt.Characteristic.Properties.AUTHENTICATED_SIGNED_WRITES: "authenticated-signed-writes",
    gatt.Characteristic.Properties.EXTENDED_PROPERTIES: "extended-properties",
}


@dataclass(frozen=True)
class Bluetooth:
    """What bleak takes as ``backend=``, such as ``BleakScanner(backend=bluetooth.scanner)``."""

    scanner: type[BaseBleakScanner]
    client: type[BaseBleakClient]
    radio: Radio
    options: Mapping[str, Any] = field(default_factory=dict)

    def interval_ms(self, address: str) -> float | None:
        """The connection interval of the link to an address; bumble asks for 15 to 30 ms. None without a link."""
        for connection in self.radio.device.connections.values():
            if address_text(connection.peer_address) == address.upper():
                return float(connection.parameters.connection_interval)
        return None


class BumbleScanner(BaseBleakScanner):
    """bleak's scanner on a :class:`Radio`."""

    radio: ClassVar[Radio]

    def __init__(
        self,
        detection_callback: AdvertisementDataCallback | None,
        service_uuids: list[str] | None,
        _scanning_mode: str,
        **_other_platforms: Any,
    ) -> None:
        super().__init__(detection_callback, service_uuids)

    async def start(self) -> None:
        """Start to scan."""
        self.seen_devices = {}
        await self.radio.start_scan(self._heard)

    async def stop(self) -> None:
        """Stop scanning for this scanner."""
        await self.radio.stop_scan(self._heard)

    def _heard(self, advertisement: Advertisement) -> None:
        data = advertisement.data
        address = address_text(advertisement.address)
        names = [name for kind in _NAMES for name in data.get_all(kind)]
        earlier = self.seen_devices.get(address)
        report = AdvertisementData(
            local_name=names[0] if names else earlier[1].local_name if earlier else None,
            manufacturer_data=dict(data.get_all(AdvertisingData.Type.MANUFACTURER_SPECIFIC_DATA)),
            service_data={_uuid(uuid): value for kind in _SERVICE_DATA for uuid, value in data.get_all(kind)},
            service_uuids=sorted({_uuid(uuid) for kind in _UUID_LISTS for some in data.get_all(kind) for uuid in some}),
            tx_power=data.get(AdvertisingData.Type.TX_POWER_LEVEL),
            rssi=advertisement.rssi,
            platform_data=(advertisement,),
        )
        device = self.create_or_update_device(address, address, report.local_name, advertisement.address, report)
        if self.is_allowed_uuid(report.service_uuids):
            self.call_detection_callbacks(device, report)


class BumbleClient(BaseBleakClient):
    """bleak's client on a :class:`Radio`."""

    radio: ClassVar[Radio]

    def __init__(
        self, address_or_ble_device: BLEDevice | str, *, services: set[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(address_or_ble_device, **kwargs)
        self._name = address_or_ble_device.name if isinstance(address_or_ble_device, BLEDevice) else None
        self._wanted = services
        self._connection: Connection | None = None
        self._link_lost: asyncio.Future[None] | None = None
        self._callbacks: dict[int, Callable[[bytes], None]] = {}

    @property
    def name(self) -> str:
        """The advertised name, or the address with dashes."""
        return self._name or self.address.replace(":", "-")

    @property
    def mtu_size(self) -> int:
        """The ATT MTU agreed upon; 23 while not connected."""
        return int(self._connection.att_mtu) if self._connection else 23

    @property
    def is_connected(self) -> bool:
        """Whether the link lives and its services are known."""
        return self._connection is not None and self.services is not None

    async def connect(self, pair: bool, **kwargs: Any) -> None:
        """Connect, agree on the MTU and discover the services, all within ``timeout`` seconds."""
        if self._connection is not None:
            raise BleakError("the client is already connected")
        try:
            await asyncio.wait_for(self._connect(), kwargs.get("timeout", self._timeout))
            if pair:
                await self.pair()
        except BaseException:
            await self.disconnect()
            raise

    async def _connect(self) -> None:
        connection = await self.radio.connect(self.address.upper())
        if self.radio.device.connections.get(connection.handle) is not connection:
            raise BleakError(f"the link to {self.address} was lost at once")
        self._connection = connection
        self._link_lost = asyncio.get_running_loop().create_future()
        connection.once(Connection.EVENT_DISCONNECTION, self._on_disconnection)
        await self._request(connection.gatt_client.request_mtu(ATT_MTU))
        self.services = await self._request(self._discover(connection))

    async def _discover(self, connection: Connection) -> BleakGATTServiceCollection:
        services = BleakGATTServiceCollection()
        for service in await connection.gatt_client.discover_services():
            if self._wanted and _uuid(service.uuid) not in self._wanted:
                continue
            ours = BleakGATTService(service, service.handle, _uuid(service.uuid))
            services.add_service(ours)
            for characteristic in await service.discover_characteristics():
                flags = [name for flag, name in _PROPERTIES.items() if characteristic.properties & flag]
                theirs = BleakGATTCharacteristic(
                    characteristic,
                    characteristic.handle,
                    _uuid(characteristic.uuid),
                    flags,  # type: ignore[arg-type]  # bleak lists the names as literals
                    lambda: connection.att_mtu - 3,
                    ours,
                )
                services.add_characteristic(theirs)
                for descriptor in await characteristic.discover_descriptors():
                    services.add_descriptor(
                        BleakGATTDescriptor(descriptor, descriptor.handle, _uuid(descriptor.type), theirs)
                    )
        return services

    async def disconnect(self) -> None:
        """Take the link down; without a link this does nothing."""
        connection, lost = self._connection, self._link_lost
        if connection is None or lost is None:
            return
        reason = hci.HCI_REMOTE_USER_TERMINATED_CONNECTION_ERROR
        with suppress(core.BaseBumbleError):  # the link was lost at the same moment, and the event below comes
            await self.radio.device.send_async_command(hci.HCI_Disconnect_Command(connection.handle, reason))
        await asyncio.wait({lost}, timeout=DISCONNECT_TIMEOUT_S)
        if not lost.done():
            raise BleakError(f"the controller did not end the link to {self.address}")

    def _on_disconnection(self, _reason: int) -> None:
        was_connected = self.is_connected
        self._connection = None
        self.services = None
        self._callbacks.clear()
        if self._link_lost is not None and not self._link_lost.done():
            self._link_lost.set_result(None)
        if was_connected and self._disconnected_callback is not None:
            self._disconnected_callback()

    async def pair(self, *_args: Any, **_kwargs: Any) -> None:
        """Pair without keys to compare ("just works") and encrypt the link; the bond lasts as long as the process."""
        if self._connection is None:
            raise BleakError(f"{self.name} is not connected")
        await self._request(self._connection.pair())

    async def unpair(self) -> None:
        """Nothing is kept that would have to be forgotten."""

    async def read_gatt_char(
        self, characteristic: BleakGATTCharacteristic, *, use_cached: bool = False, **_kwargs: Any
    ) -> bytearray:
        """Read a characteristic; always from the device."""
        return bytearray(await self._request(self._gatt().read_value(characteristic.handle)))

    async def read_gatt_descriptor(
        self, descriptor: BleakGATTDescriptor, *, use_cached: bool = False, **_kwargs: Any
    ) -> bytearray:
        """Read a descriptor; always from the device."""
        return bytearray(await self._request(self._gatt().read_value(descriptor.handle)))

    async def write_gatt_char(self, characteristic: BleakGATTCharacteristic, data: SizedBuffer, response: bool) -> None:
        """Write a characteristic, with or without the device's acknowledgement."""
        await self._request(self._gatt().write_value(characteristic.handle, bytes(data), with_response=response))

    async def write_gatt_descriptor(self, descriptor: BleakGATTDescriptor, data: SizedBuffer) -> None:
        """Write a descriptor."""
        await self._request(self._gatt().write_value(descriptor.handle, bytes(data), with_response=True))

    async def start_notify(
        self, characteristic: BleakGATTCharacteristic, callback: NotifyCallback, **_kwargs: Any
    ) -> None:
        """Subscribe: to notifications where the characteristic has them, else to indications."""
        if characteristic.handle in self._callbacks:
            raise BleakError(f"characteristic {characteristic.uuid} is already subscribed to")

        def arrived(value: bytes) -> None:
            callback(bytearray(value))

        client = self._gatt()
        self._callbacks[characteristic.handle] = arrived
        try:
            await self._request(client.subscribe(characteristic.obj, arrived))
        except BaseException:
            # bumble enters the subscriber before it asks the device.
            self._callbacks.pop(characteristic.handle, None)
            for subscribers in (client.notification_subscribers, client.indication_subscribers):
                subscribers.get(characteristic.handle, set()).discard(arrived)
            raise

    async def stop_notify(self, characteristic: BleakGATTCharacteristic) -> None:
        """Unsubscribe."""
        arrived = self._callbacks.pop(characteristic.handle, None)
        if arrived is not None:
            await self._request(self._gatt().unsubscribe(characteristic.obj, arrived))

    def _gatt(self) -> Any:
        if self._connection is None:
            raise BleakError(f"{self.name} is not connected")
        return self._connection.gatt_client

    async def _request(self, procedure: Coroutine[Any, Any, T]) -> T:
        """Run a GATT procedure and raise its errors as bleak's.

        The procedure runs in a task of its own: bumble cancels it when the link is lost, which must not look like a
        cancellation of the caller. A caller that gives up leaves the task to end by itself, because ATT allows a single
        pending request, and a late answer would be taken for the answer to the next request.
        """
        assert self._link_lost is not None
        task = asyncio.ensure_future(procedure)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # so that asyncio does not warn
        both: set[asyncio.Future[Any]] = {task, self._link_lost}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if task.cancelled() or not task.done():
            task.cancel()
            raise BleakError(f"the link to {self.name} was lost during a request")
        error = task.exception()
        if isinstance(error, ATT_Error):
            raise BleakGATTProtocolError(error.error_code) from error
        if isinstance(error, core.BaseBumbleError):
            raise BleakError(f"a request to {self.name} failed: {error}") from error
        return task.result()


@asynccontextmanager
async def open_bluetooth(transport: str | Controller) -> AsyncIterator[Bluetooth]:
    """Open a Bluetooth controller for bleak.

    Args:
        transport: A bumble transport, such as ``tcp-client:127.0.0.1:9000``, ``unix-client:/run/air``, ``usb:0`` or
            ``serial:/dev/ttyUSB0,1000000``; or a virtual controller in this process.

    Raises:
        WearableError: The transport does not open, or nothing on it answers as a Bluetooth controller.
    """
    async with AsyncExitStack() as stack:
        source: Any = transport
        sink: Any = AsyncPipeSink(transport) if isinstance(transport, Controller) else None
        if isinstance(transport, str):
            try:
                source, sink = await stack.enter_async_context(await open_transport(transport))
            except Exception as error:  # libusb's errors and bumble's bare ones share no base but Exception
                client = transport.startswith(("tcp-client:", "unix-client:"))
                nobody = client and isinstance(error, ConnectionRefusedError | FileNotFoundError)
                reason = "nobody listens there" if nobody else str(error) or type(error).__name__
                raise WearableError(f"cannot open the Bluetooth transport '{transport}': {reason}") from error
        device = Device.with_hci("armlet", hci.Address.generate_static_address(), source, sink)
        try:
            await asyncio.wait_for(device.power_on(), POWER_ON_TIMEOUT_S)
        except (asyncio.TimeoutError, core.BaseBumbleError) as error:
            reason = str(error) or f"nothing came in {POWER_ON_TIMEOUT_S:g} s"
            raise WearableError(f"no Bluetooth controller answers on '{transport}': {reason}") from error
        radio = Radio(device)
        stack.push_async_callback(radio.close)
        yield Bluetooth(
            scanner=type("BumbleScanner", (BumbleScanner,), {"radio": radio}),
            client=type("BumbleClient", (BumbleClient,), {"radio": radio}),
            radio=radio,
        )


def _uuid(uuid: core.UUID) -> str:
    """A UUID as bleak writes it: 128 bits, lower case, dashes."""
    return normalize_uuid_str(uuid.to_hex_str("-"))
