"""bleak over the virtual air: faults of the radio, errors of the wearable, and transports between hosts and air."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bleak import BleakClient, BleakScanner
from bleak.backends.device import BLEDevice
from bleak.exc import BleakError, BleakGATTProtocolError
from bleak_retry_connector import establish_connection
from bumble import hci
from bumble.att import ATT_Error
from bumble.core import UUID, AdvertisingData
from bumble.device import Device
from bumble.gatt import Characteristic, CharacteristicValue, Service
from bumble.transport.common import AsyncPipeSink

from armlet_bridge.radio.bumble_backend import Bluetooth, open_bluetooth
from armlet_bridge.virtual.air import AirController, AirLink
from armlet_bridge.virtual.air_ports import serve
from armlet_runtime.errors import UsageError, WearableError

SERVICE, VALUE, BROKEN, NOTIFY, INDICATE, SLOW = (f"{n:04d}0000-1234-4321-9999-61726d6c6574" for n in range(6))
SUPERVISION_S = 0.72


@dataclass
class Thing:
    """A peripheral with a characteristic of each kind."""

    controller: AirController
    device: Device
    notify: Characteristic
    indicate: Characteristic
    reasons: list[int] = field(default_factory=list)


async def make_thing(air: AirLink, name: str = "Thing") -> Thing:
    properties, permissions = Characteristic.Properties, Characteristic.Permissions
    kept = bytearray(b"hello")

    def write(_connection: object, value: bytes) -> None:
        if value == b"refuse":
            raise ATT_Error(0x80)
        kept[:] = value

    def broken(_connection: object) -> bytes:
        raise ATT_Error(0x81)

    async def slow(_connection: object) -> bytes:
        await asyncio.sleep(30)
        return b"late"

    value = Characteristic(
        VALUE,
        properties.READ | properties.WRITE | properties.WRITE_WITHOUT_RESPONSE,
        permissions.READABLE | permissions.WRITEABLE,
        CharacteristicValue(read=lambda _: bytes(kept), write=write),
    )
    error = Characteristic(BROKEN, properties.READ, permissions.READABLE, CharacteristicValue(read=broken))
    late = Characteristic(SLOW, properties.READ, permissions.READABLE, CharacteristicValue(read=slow))
    notify = Characteristic(NOTIFY, properties.NOTIFY, permissions(0))
    indicate = Characteristic(INDICATE, properties.INDICATE, permissions(0))
    controller = AirController(name, air)
    device = Device.with_hci(name, hci.Address.generate_static_address(), controller, AsyncPipeSink(controller))
    device.add_service(Service(UUID(SERVICE), [value, error, late, notify, indicate]))
    await device.power_on()
    thing = Thing(controller, device, notify, indicate)

    async def advertise() -> None:
        data = bytes(AdvertisingData([(AdvertisingData.Type.COMPLETE_LOCAL_NAME, name.encode())]))
        await device.start_advertising(
            advertising_data=data, advertising_interval_min=50, advertising_interval_max=50, auto_restart=True
        )

    device.on("connection", lambda connection: connection.on("disconnection", thing.reasons.append))
    await advertise()
    return thing


@pytest.fixture
async def air() -> AirLink:
    return AirLink()


@pytest.fixture
async def thing(air: AirLink) -> Thing:
    return await make_thing(air)


@pytest.fixture
async def bluetooth(air: AirLink) -> AsyncIterator[Bluetooth]:
    async with open_bluetooth(AirController("host", air)) as opened:
        yield opened


async def find(bluetooth: Bluetooth, name: str = "Thing") -> BLEDevice:
    device = await BleakScanner.find_device_by_name(name, timeout=5, backend=bluetooth.scanner)
    assert device is not None
    return device


@asynccontextmanager
async def connected(bluetooth: Bluetooth, name: str = "Thing") -> AsyncIterator[tuple[BleakClient, asyncio.Event]]:
    lost = asyncio.Event()
    client = BleakClient(await find(bluetooth, name), lambda _: lost.set(), backend=bluetooth.client)
    await client.connect()
    try:
        yield client, lost
    finally:
        await client.disconnect()


async def eventually(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


async def test_reads_writes_and_att_errors(thing: Thing, bluetooth: Bluetooth) -> None:
    async with connected(bluetooth) as (client, _):
        assert client.mtu_size == 517
        assert await client.read_gatt_char(VALUE) == b"hello"
        await client.write_gatt_char(VALUE, b"again", response=True)
        assert await client.read_gatt_char(VALUE) == b"again"
        await client.write_gatt_char(VALUE, b"quick", response=False)
        assert await client.read_gatt_char(VALUE) == b"quick"
        for attempt, code in ((client.read_gatt_char(BROKEN), 0x81), (client.write_gatt_char(VALUE, b"refuse"), 0x80)):
            with pytest.raises(BleakGATTProtocolError) as caught:
                await attempt
            assert caught.value.code == code
        assert await client.read_gatt_char(VALUE) == b"quick", "an error must not end the link"


async def test_notifications_and_indications(thing: Thing, bluetooth: Bluetooth) -> None:
    async with connected(bluetooth) as (client, _):
        got: list[bytes] = []
        await client.start_notify(NOTIFY, lambda _, data: got.append(bytes(data)))
        await client.start_notify(INDICATE, lambda _, data: got.append(bytes(data)))
        await thing.device.notify_subscribers(thing.notify, b"one")
        await thing.device.indicate_subscribers(thing.indicate, b"two")
        await eventually(lambda: got == [b"one", b"two"])
        await client.stop_notify(NOTIFY)
        await thing.device.notify_subscribers(thing.notify, b"unheard")
        await thing.device.indicate_subscribers(thing.indicate, b"three")
        await eventually(lambda: got == [b"one", b"two", b"three"])


async def test_out_of_range_ends_both_ends_with_0x08_and_return_reconnects(thing: Thing, bluetooth: Bluetooth) -> None:
    for _ in range(2):
        async with connected(bluetooth) as (client, lost):
            left = time.monotonic()
            thing.controller.out_of_range()
            await asyncio.wait_for(lost.wait(), 3)
            assert SUPERVISION_S <= time.monotonic() - left < SUPERVISION_S + 0.6
            assert not client.is_connected
            with pytest.raises(BleakError):
                await client.read_gatt_char(VALUE)
            with pytest.raises(asyncio.TimeoutError):
                await client.connect(timeout=0.3)
            thing.controller.in_range()
            await client.connect()
            assert await client.read_gatt_char(VALUE) == b"hello"
    assert thing.reasons[::2] == [hci.HCI_CONNECTION_TIMEOUT_ERROR] * 2
    assert thing.reasons[1::2] == [hci.HCI_REMOTE_USER_TERMINATED_CONNECTION_ERROR] * 2


async def test_short_absence_delays_and_loses_nothing(thing: Thing, bluetooth: Bluetooth) -> None:
    async with connected(bluetooth) as (client, lost):
        got: list[bytes] = []
        await client.start_notify(NOTIFY, lambda _, data: got.append(bytes(data)))
        thing.controller.out_of_range()
        for i in range(5):
            await thing.device.notify_subscribers(thing.notify, bytes([i]))
        await asyncio.sleep(SUPERVISION_S / 2)
        assert got == []
        thing.controller.in_range()
        await eventually(lambda: got == [bytes([i]) for i in range(5)])
        await asyncio.sleep(SUPERVISION_S)
        assert not lost.is_set()


async def test_link_lost_during_a_request_is_an_error_not_a_cancellation(thing: Thing, bluetooth: Bluetooth) -> None:
    async with connected(bluetooth) as (client, _):
        reading = asyncio.ensure_future(client.read_gatt_char(SLOW))
        waiting = asyncio.ensure_future(client.read_gatt_char(VALUE))
        await asyncio.sleep(0.05)
        thing.controller.out_of_range()
        for request in (reading, waiting):
            with pytest.raises(BleakError, match="lost"):
                await asyncio.wait_for(request, 3)


async def test_abandoned_request_does_not_answer_the_next(thing: Thing, bluetooth: Bluetooth) -> None:
    async with connected(bluetooth) as (client, _):
        thing.controller.out_of_range()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.read_gatt_char(VALUE), 0.1)
        waiting = asyncio.ensure_future(client.read_gatt_descriptor(_first_descriptor(client)))
        await asyncio.sleep(0.05)
        thing.controller.in_range()
        assert await asyncio.wait_for(waiting, 3) == b"\x00\x00"


def _first_descriptor(client: BleakClient) -> int:
    characteristic = client.services.get_characteristic(NOTIFY)
    assert characteristic is not None
    return characteristic.descriptors[0].handle


async def test_an_absent_wearable_does_not_keep_others_from_connecting(air: AirLink, bluetooth: Bluetooth) -> None:
    away, here = await make_thing(air, "Away"), await make_thing(air, "Here")
    device = await find(bluetooth, "Away")
    away.controller.out_of_range()
    waiting = asyncio.ensure_future(BleakClient(device, backend=bluetooth.client).connect(timeout=10))
    async with connected(bluetooth, "Here") as (client, _):
        assert await client.read_gatt_char(VALUE) == b"hello"
        assert not waiting.done()
        away.controller.in_range()
        await asyncio.wait_for(waiting, 3)
    assert here.reasons == [hci.HCI_REMOTE_USER_TERMINATED_CONNECTION_ERROR]


async def test_cancelled_connects_leave_nothing_behind(thing: Thing, bluetooth: Bluetooth) -> None:
    device = await find(bluetooth)
    cancelled = 0
    for i in range(16):
        client = BleakClient(device, backend=bluetooth.client)
        attempt = asyncio.ensure_future(client.connect())
        await asyncio.sleep(0.006 * i)
        attempt.cancel()
        try:
            await attempt
        except asyncio.CancelledError:
            cancelled += 1
            assert not client.is_connected
        await client.disconnect()  # as one does, whether it came so far or not
    assert cancelled > 5
    async with connected(bluetooth) as (client, _):
        assert await client.read_gatt_char(VALUE) == b"hello"
        assert len(thing.device.connections) == 1


async def test_connect_to_who_vanishes_after_being_heard(thing: Thing, bluetooth: Bluetooth) -> None:
    device = await find(bluetooth)
    client = BleakClient(device, backend=bluetooth.client)
    attempt = asyncio.ensure_future(client.connect(timeout=10))
    await asyncio.sleep(0)
    # Heard, but gone before the link is made: the pending connect must be cancelled in the controller.
    await thing.device.stop_advertising()
    await asyncio.sleep(2.5)
    assert not attempt.done()
    await thing.device.start_advertising(advertising_interval_min=50, advertising_interval_max=50)
    await asyncio.wait_for(attempt, 5)
    assert await client.read_gatt_char(VALUE) == b"hello"
    await client.disconnect()


async def test_connects_while_walking_in_and_out(thing: Thing, bluetooth: Bluetooth) -> None:
    rng = random.Random(7)
    device = await find(bluetooth)
    outcomes: list[str] = []
    for _ in range(8):
        client = BleakClient(device, backend=bluetooth.client)
        attempt = asyncio.ensure_future(client.connect(timeout=5))
        await asyncio.sleep(rng.uniform(0, 0.12))
        thing.controller.out_of_range()
        await asyncio.sleep(rng.choice([0.01, 0.2, SUPERVISION_S + 0.1]))
        thing.controller.in_range()
        try:
            await attempt
            assert await client.read_gatt_char(VALUE) == b"hello"
            outcomes.append("connected")
        except BleakError:  # lost while its services were discovered
            outcomes.append("lost")
        await client.disconnect()
        await eventually(lambda: not thing.device.connections)
    assert outcomes.count("connected") > 2, outcomes


async def test_retry_connector_works_unchanged(thing: Thing, bluetooth: Bluetooth) -> None:
    device = await find(bluetooth)
    for _ in range(5):
        client = await establish_connection(BleakClient, device, "Thing", backend=bluetooth.client)
        assert await client.read_gatt_char(VALUE) == b"hello"
        await client.disconnect()


async def test_unknown_address_times_out(air: AirLink, bluetooth: Bluetooth) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await BleakClient("00:11:22:33:44:55", backend=bluetooth.client, timeout=0.3).connect()


async def test_tampered_notifications(thing: Thing, air: AirLink, bluetooth: Bluetooth) -> None:
    async with connected(bluetooth) as (client, _):
        got: list[bytes] = []
        await client.start_notify(NOTIFY, lambda _, data: got.append(bytes(data)))
        fates: dict[bytes, list[bytes]] = {b"lost": [], b"twice": [b"twice"] * 2, b"cut off": [b"cut"]}
        air.tamper = lambda sender, value: fates.get(value, [value])
        for value in (b"whole", b"lost", b"twice", b"cut off"):
            await thing.device.notify_subscribers(thing.notify, value)
        await eventually(lambda: got == [b"whole", b"twice", b"twice", b"cut"])
        assert await client.read_gatt_char(VALUE) == b"hello"


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_hosts_come_and_go_on_sockets(kind: str, thing: Thing, air: AirLink, tmp_path: Path) -> None:
    where = "tcp-server:127.0.0.1:0" if kind == "tcp" else f"unix-server:{tmp_path / 'air'}"
    async with serve(air, where) as transport:
        for _ in range(2):
            async with open_bluetooth(transport) as bluetooth, connected(bluetooth) as (client, _):
                assert await client.read_gatt_char(VALUE) == b"hello"
        # A host that dies without a word: the wearable's link times out and it can be connected again.
        async with open_bluetooth(transport) as dying:
            await BleakClient(await find(dying), backend=dying.client).connect()
            for controller in tuple(air.controllers):
                if controller.name == "host":
                    controller.host.close()
            await eventually(lambda: len(thing.reasons) == 3)
            assert thing.reasons[-1] == hci.HCI_CONNECTION_TIMEOUT_ERROR
            with pytest.raises(BleakError, match="controller is lost"):
                await find(dying)
        async with open_bluetooth(transport) as bluetooth, connected(bluetooth) as (client, _):
            assert await client.read_gatt_char(VALUE) == b"hello"
    assert not (tmp_path / "air").exists()


async def test_two_hosts_share_the_air(air: AirLink, bluetooth: Bluetooth) -> None:
    await make_thing(air, "One")
    await make_thing(air, "Two")
    async with (
        open_bluetooth(AirController("other", air)) as other,
        connected(bluetooth, "One") as (first, _),
        connected(other, "Two") as (second, _),
    ):
        assert await first.read_gatt_char(VALUE) == await second.read_gatt_char(VALUE) == b"hello"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(find(other, "One"), 0.3)


async def test_noise_on_the_socket_harms_nobody(thing: Thing, air: AirLink, bluetooth: Bluetooth) -> None:
    rng = random.Random(1)
    async with serve(air, "tcp-server:127.0.0.1:0") as transport, connected(bluetooth) as (client, _):
        for i in range(60):
            _, writer = await asyncio.open_connection("127.0.0.1", int(transport.rsplit(":", 1)[1]))
            # Bytes of no packet, or a well-formed frame of nonsense: HCI commands (1), ACL data (2), events (4).
            noise = rng.randbytes(rng.randrange(1, 40))
            writer.write(noise if i % 2 else bytes([1]) + noise[:2] + bytes([len(noise)]) + noise)
            writer.write(b"" if i % 3 else bytes([2, 1, 0, 4, 0]) + noise[:4])
            await writer.drain()
            writer.close()
        assert await client.read_gatt_char(VALUE) == b"hello"
        async with open_bluetooth(transport):
            pass
    await eventually(lambda: len(air.controllers) == 2)


async def test_bad_transports_are_one_sentence(air: AirLink, tmp_path: Path) -> None:
    sockets = ("tcp-client:127.0.0.1:1", f"unix-client:{tmp_path / 'none'}", "tcp-client:x")
    for transport in (*sockets, "carrier-pigeon:1", "usb:63", "serial:/dev/none"):
        with pytest.raises(WearableError, match="cannot open the Bluetooth transport") as refused:
            async with open_bluetooth(transport):
                pass
        assert ("nobody listens there" in str(refused.value)) == (transport in sockets[:2])
    tcp = ("tcp-server:127.0.0.1", "tcp-server:127.0.0.1:x", "tcp-server:127.0.0.1:65536", "tcp-client:127.0.0.1:1")
    for where in (*tcp, "unix-server:"):
        with pytest.raises(UsageError, match="give tcp-server:HOST:PORT, unix-server:PATH or vhci"):
            async with serve(air, where):
                pass
    async with serve(air, "tcp-server:127.0.0.1:0") as transport:
        taken = transport.replace("client", "server")
        with pytest.raises(WearableError, match="cannot listen"):
            async with serve(air, taken):
                pass


async def test_a_socket_that_is_no_controller_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armlet_bridge.radio.bumble_backend.POWER_ON_TIMEOUT_S", 0.3)
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(WearableError, match="no Bluetooth controller answers"):
        async with open_bluetooth(f"tcp-client:127.0.0.1:{port}"):
            pass
    server.close()
