"""Links in trouble: strangers, refusals, bonding, several adapters, and how long each class of error is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData
from bleak.exc import (
    BleakCharacteristicNotFoundError,
    BleakDeviceNotFoundError,
    BleakError,
    BleakGATTProtocolError,
)
from bumble import hci
from bumble.core import AdvertisingData
from bumble.device import Device
from bumble.gatt import Characteristic
from bumble.transport.common import AsyncPipeSink
from dbus_fast import Variant

from armlet_bridge.radio.bumble_backend import Bluetooth
from armlet_bridge.radio.bumble_backend import open_bluetooth as open_bumble
from armlet_bridge.virtual.air import AirController, AirLink
from armlet_bridge.virtual.wearable import Play, VirtualWearable, WearableSpec, put_on
from armlet_runtime.bluetooth import SystemBluetooth, bluez, open_bluetooth
from armlet_runtime.bluetooth import link as link_module
from armlet_runtime.bluetooth.link import DISCONNECT_S, STOP_S
from armlet_runtime.bluetooth.link_errors import (
    AWAY,
    BUSY,
    CUT,
    LOCKED,
    REFUSED,
    STALE,
    Trouble,
    sentence_of,
    trouble_of,
)
from armlet_runtime.bluetooth.session import CANCEL_S, MAX_LINKS, Session
from armlet_runtime.errors import PacketError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Recording, Stream
from armlet_runtime.wearables import imu

from .test_ble import Run


def still(seconds: float = 10.0) -> Recording:
    times = (np.arange(round(seconds * 50)) * 20_000_000).astype(np.int64)
    stream = Stream(Modality("acc", ("x", "y", "z"), "g", 50.0), times, np.zeros((len(times), 3), np.float32))
    return Recording("still", "nobody", streams={"acc": stream})


@asynccontextmanager
async def worn(air: AirLink, *names: str) -> AsyncIterator[Play]:
    async with put_on(still(), air, [WearableSpec(name, ("acc",)) for name in names]) as play:
        yield play


@asynccontextmanager
async def ran(session: Session) -> AsyncIterator[Run]:
    run = Run(session)
    try:
        yield run
    finally:
        run.task.cancel()
        await asyncio.gather(run.task, return_exceptions=True)


# As bleak 3.1 and BlueZ 5.66 say it, and as the issues of bleak's repository quote it.
@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (asyncio.TimeoutError(), AWAY),
        (BleakError("device 'C0:FF' not found"), AWAY),
        (BleakError("failed to discover services, device disconnected"), CUT),
        (BleakError("the link to C0:FF was lost at once"), CUT),
        (BleakError("[org.bluez.Error.InProgress] Operation already in progress"), BUSY),
        (BleakError("[org.bluez.Error.Failed] le-connection-abort-by-local"), BUSY),
        (BleakError("[org.freedesktop.DBus.Error.UnknownObject] Method StartNotify doesn't exist"), STALE),
        (BleakCharacteristicNotFoundError("2a37"), STALE),
        (BleakGATTProtocolError(0x01), STALE),
        (BleakGATTProtocolError(0x05), LOCKED),
        (BleakGATTProtocolError(0x0F), LOCKED),
        (BleakError("[org.bluez.Error.NotAuthorized] Operation Not Authorized"), LOCKED),
        (BleakGATTProtocolError(0x0E), CUT),
        (BleakGATTProtocolError(0x80), REFUSED),
        (PacketError("IMU info is of layout 9"), REFUSED),
    ],
)
def test_errors_have_their_classes(error: BaseException, trouble: Trouble) -> None:
    assert trouble_of(error) is trouble
    assert 0 < trouble.first_s <= trouble.longest_s


def test_errors_of_a_wearable_are_sentences() -> None:
    assert sentence_of(BleakGATTProtocolError(0x0E)) == "GATT Protocol Error: Unlikely Error (ATT 0x0e)"
    assert sentence_of(asyncio.TimeoutError()) == "no answer in time" and sentence_of(KeyError()) == "KeyError"


async def test_only_those_on_the_list_are_connected_by_name_or_address() -> None:
    air = AirLink()
    async with AsyncExitStack() as stack:
        play = await stack.enter_async_context(worn(air, "One", "Two", "Three"))
        bluetooth = await stack.enter_async_context(open_bumble(AirController("host", air)))
        address = str(play.wearables["Two"]._device.random_address.to_string(with_type_qualifier=False))
        session = Session(bluetooth, ("One", address.lower()))
        async with ran(session) as run:
            await run.until(lambda: run.streaming("One", address.lower()), 10)
            await asyncio.sleep(0.3)
            assert session.links.keys() == {"One", address.lower()}
            assert session.links[address.lower()].address == address
            assert not play.wearables["Three"].subscribed.is_set()


async def test_a_stranger_of_the_same_name_is_left_alone() -> None:
    air = AirLink()
    async with AsyncExitStack() as stack:
        play = await stack.enter_async_context(worn(air, "Acc"))
        bluetooth = await stack.enter_async_context(open_bumble(AirController("host", air)))
        session = Session(bluetooth, ("Acc",))
        async with ran(session) as run:
            await run.until(lambda: run.streaming("Acc"), 10)
            # An address is made from a name: this one has another, and shows the same name.
            twin = VirtualWearable("Stranger", play.wearables["Acc"].streams, air)
            twin.name = "Acc"
            stack.push_async_callback(twin.power_off)
            await twin.power_on()
            play.wearables["Acc"].controller.out_of_range()
            await run.until(lambda: session.links["Acc"].state != "streaming", 10)
            await asyncio.sleep(0.5)
            assert session.links.keys() == {"Acc"} and not twin.subscribed.is_set()
            play.wearables["Acc"].controller.in_range()
            await run.until(lambda: run.streaming("Acc"), 15)
            assert not twin.subscribed.is_set()


async def test_names_of_wearables_are_made_printable() -> None:
    """A terminal obeys escapes; the name as it is shown can be given to ``--wearables``."""
    name, shown = "\x1b[2JAcc", r"\x1b[2JAcc"
    air = AirLink()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(worn(air, name))
        bluetooth = await stack.enter_async_context(open_bumble(AirController("host", air)))
        for names in ((), (shown,)):
            session = Session(bluetooth, names, ("acc",))
            async with ran(session) as run:
                await run.until(lambda run=run: run.streaming(shown), 10)  # type: ignore[misc]
                assert session.links.keys() == {shown}
                assert {packet.wearable for packet in run.packets} == {shown}


async def test_changing_addresses_do_not_pile_up() -> None:
    air = AirLink()
    async with open_bumble(AirController("host", air)) as bluetooth:
        session = Session(bluetooth)
        async with ran(session) as run:
            for n in range(500):
                address = f"C0:00:00:00:{n >> 8:02X}:{n & 255:02X}"
                device = BLEDevice(address, "Rotating", None)
                heard = AdvertisementData("Rotating", {}, {}, [imu.SERVICE_UUID], None, -60, ())
                session._heard(session._adapters[0], device, heard)
                assert len(session.links) <= MAX_LINKS
                if n % 50 == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            assert len(session._tasks) <= MAX_LINKS + 1 and not run.task.done()


async def test_what_is_no_wearable_is_refused_and_holds_up_nobody() -> None:
    air = AirLink()
    async with AsyncExitStack() as stack:
        play = await stack.enter_async_context(worn(air, "Acc"))
        toaster = AirController("toaster", air)
        device = Device.with_hci(
            "Toaster",
            hci.Address("C0:11:22:33:44:55", hci.Address.RANDOM_DEVICE_ADDRESS),
            toaster,
            AsyncPipeSink(toaster),
        )
        await device.power_on()
        name = bytes(AdvertisingData([(AdvertisingData.Type.COMPLETE_LOCAL_NAME, b"Toaster")]))
        await device.start_advertising(
            advertising_data=bytes(AdvertisingData([(AdvertisingData.Type.FLAGS, bytes([6]))])),
            scan_response_data=name,
            advertising_interval_min=100,
            advertising_interval_max=100,
            auto_restart=True,
        )
        bluetooth = await stack.enter_async_context(open_bumble(AirController("host", air)))
        session = Session(bluetooth, ("Toaster", "Acc"))
        async with ran(session) as run:
            await run.until(lambda: bool(session.links) and session.links["Toaster"].state == "refused", 10)
            await run.until(lambda: run.streaming("Acc"), 10)
            link = session.links["Toaster"]
            assert link.problem == "'Toaster' has no service that armlet knows"
            assert (link.failures, link.attempts) == ({"stale": 2, "refused": 1}, 3)
        toaster.power_off()
        assert play.wearables["Acc"].sent == 0


def failing(bluetooth: Bluetooth, *errors: BaseException) -> tuple[Bluetooth, list[BaseException | None]]:
    """An adapter whose first connection attempts end in errors; and what became of each attempt that reached it."""
    attempts: list[BaseException | None] = []

    class Failing(bluetooth.client):  # type: ignore[misc, name-defined]  # made when its adapter is opened
        async def connect(self, pair: bool, **kwargs: Any) -> None:
            error = errors[len(attempts)] if len(attempts) < len(errors) else None
            attempts.append(error)
            if error is not None:
                raise error
            await super().connect(pair, **kwargs)

    return replace(bluetooth, client=Failing), attempts


async def test_an_attempt_is_one_attempt_and_its_error_keeps_its_class() -> None:
    air = AirLink()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(worn(air, "Acc"))
        bluetooth, attempts = failing(
            await stack.enter_async_context(open_bumble(AirController("host", air))),
            BleakError("[org.bluez.Error.Failed] le-connection-abort-by-local"),
            BleakDeviceNotFoundError("C0:FF", "Device with address C0:FF was not found."),
            BleakError("failed to discover services, device disconnected"),
        )
        session = Session(bluetooth, ("Acc",))
        async with ran(session) as run:
            await run.until(lambda: run.streaming("Acc"), 10)
            link = session.links["Acc"]
            assert link.attempts == len(attempts) == 4
            assert link.failures == {"busy": 1, "away": 1, "cut": 1}


async def test_a_wearable_that_wants_a_bond_gets_one() -> None:
    air = AirLink()
    async with AsyncExitStack() as stack:
        play = await stack.enter_async_context(worn(air, "Acc"))
        info = play.wearables["Acc"]._twin.service.characteristics[0]
        info.permissions |= Characteristic.Permissions.READ_REQUIRES_ENCRYPTION
        bluetooth = await stack.enter_async_context(open_bumble(AirController("host", air)))
        session = Session(bluetooth)
        async with ran(session) as run:
            await run.until(lambda: run.streaming("Acc"), 20)
            link = session.links["Acc"]
            assert link.failures == {"locked": 1} and link.attempts == 2 and session._supervisors["Acc"]._pair
            assert len(run.of("Acc", "info")) == 1


async def test_two_adapters_share_the_wearables() -> None:
    air = AirLink()
    names = ("One", "Two", "Three", "Four")
    async with AsyncExitStack() as stack:
        play = await stack.enter_async_context(worn(air, *names))
        adapters = [await stack.enter_async_context(open_bumble(AirController(f"host{i}", air))) for i in range(2)]
        session = Session(adapters, modalities=("acc",))
        async with ran(session) as run:
            await run.until(lambda: run.streaming(*names), 20)
            used = [one.adapter for one in session._supervisors.values()]
            assert sorted(used.count(adapter) for adapter in session._adapters) == [2, 2]
            playing = asyncio.ensure_future(play.run(duration_s=1.0))
            await run.until(lambda: all(len(run.of(name)) > 15 for name in names), 10)
            await playing


async def test_an_address_that_changes_while_its_wearable_waits_for_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "TAKE_OVER_S", 0.0)
    air = AirLink()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(worn(air, "Acc"))
        deaf = AirController("deaf", air)
        adapters = [await stack.enter_async_context(open_bumble(one)) for one in (deaf, AirController("host", air))]
        deaf.out_of_range()
        session = Session(adapters, ("Acc",))
        first, second = session._adapters
        await first.connecting.acquire()
        await second.connecting.acquire()
        async with ran(session) as run:
            await asyncio.sleep(0)
            former = AdvertisementData("Acc", {}, {}, [imu.SERVICE_UUID], None, -40, ())
            session._heard(first, BLEDevice("C0:00:00:00:00:01", "Acc", None), former)
            await asyncio.sleep(0.05)  # it waits for the first adapter
            second.connecting.release()
            await run.until(lambda: session.links["Acc"].address != "C0:00:00:00:00:01", 10)
            first.connecting.release()
            await run.until(lambda: run.streaming("Acc"), 10)
            assert session.links["Acc"].attempts == 1 and not session.links["Acc"].failures


async def test_an_unexpected_error_concerns_one_link_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    air = AirLink()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(worn(air, "One", "Two"))
        bluetooth, attempts = failing(
            await stack.enter_async_context(open_bumble(AirController("host", air))), KeyError("org.bluez.GattService1")
        )
        session = Session(bluetooth, ("One", "Two"))
        async with ran(session) as run:
            await run.until(lambda: run.streaming("One", "Two"), 10)
            assert sorted(link.failures.get("unexpected", 0) for link in session.links.values()) == [0, 1]
            assert len(attempts) == 3
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.name == "armlet_runtime.bluetooth.link" and record.exc_info is not None
    assert record.getMessage() in ("'One': unexpected error", "'Two': unexpected error")


async def test_wearables_that_are_heard_together_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wearable that waits for its turn counts as one of its adapter's."""
    air = AirLink()
    async with AsyncExitStack() as stack:
        adapters = [await stack.enter_async_context(open_bumble(AirController(f"host{i}", air))) for i in range(2)]
        session = Session(adapters, modalities=("acc",))
        for adapter in session._adapters:
            await adapter.connecting.acquire()
        async with ran(session):
            for n in range(4):
                device = BLEDevice(f"C0:00:00:00:00:0{n}", f"Strap {n}", None)
                heard = AdvertisementData(device.name, {}, {}, [imu.SERVICE_UUID], None, -60, ())
                for adapter in session._adapters:
                    session._heard(adapter, device, heard)
            await asyncio.sleep(0.05)
            used = [session._adapters.index(one.adapter) for one in session._supervisors.values() if one.adapter]
            assert used == [0, 1, 0, 1]


async def test_adapters_are_named_with_a_plus() -> None:
    async with open_bluetooth("system+system:hci1") as adapters:
        assert [dict(one.options) for one in adapters] == [{}, {"bluez": {"adapter": "hci1"}}]
        assert [one.interval_ms("C0:00:00:00:00:00") for one in adapters] == [None, None]


async def test_links_of_other_programs_are_left_alone() -> None:
    session = Session(SystemBluetooth(), modalities=("acc",))
    device, advertisement = BLEDevice("C0:00:00:00:00:01", "Acc", None), [imu.SERVICE_UUID]
    heard = AdvertisementData("Acc", {}, {}, advertisement, None, -60, ())
    assert not session._is_ours("Acc", device.address)
    session._heard(session._adapters[0], device, heard)
    assert not session._is_ours("Acc", device.address)  # of use, but another program may have a link to it
    session.links["Acc"].connections = 1
    assert session._is_ours("Acc", device.address)
    session.links["Acc"].state = "streaming"
    assert not session._is_ours("Acc", device.address)
    for task in session._tasks:
        task.cancel()
    await asyncio.gather(*session._tasks, return_exceptions=True)
    named = Session(SystemBluetooth(), ("Acc",))
    assert named._is_ours("Acc", device.address) and not named._is_ours("Other", device.address)


def test_services_of_bonded_wearables_are_not_forgotten() -> None:
    def device(address: str, paired: bool) -> dict[str, Any]:
        return {bluez.DEVICE: {"Address": Variant("s", address), "Paired": Variant("b", paired)}}

    objects = {
        "/org/bluez/hci0": {bluez.ADAPTER: {}},
        "/org/bluez/hci0/dev_A": device("C0:00:00:00:00:0A", False),
        "/org/bluez/hci1/dev_A": device("C0:00:00:00:00:0A", True),
        "/org/bluez/hci0/dev_B": device("C0:00:00:00:00:0B", False),
    }
    assert bluez._by_bond(objects, "C0:00:00:00:00:0A") == (["/org/bluez/hci0/dev_A"], ["/org/bluez/hci1/dev_A"])


async def test_a_session_ends_whatever_happens_to_its_links_meanwhile() -> None:
    """A cancellation that comes just when the link ends must not be lost."""
    air = AirLink()
    async with AsyncExitStack() as stack:
        play = await stack.enter_async_context(worn(air, "One"))
        bluetooth = await stack.enter_async_context(open_bumble(AirController("host", air)))
        device = play.wearables["One"]._device
        for turns in range(0, 24, 2):
            run = Run(Session(bluetooth, ("One",)))
            await run.until(partial(run.streaming, "One"), 10)
            ending = [asyncio.ensure_future(one.disconnect()) for one in list(device.connections.values())]
            for _ in range(turns):
                await asyncio.sleep(0)
            run.task.cancel()
            await asyncio.wait({run.task}, timeout=STOP_S + DISCONNECT_S + CANCEL_S)
            assert run.task.done(), turns
            await asyncio.gather(*ending, return_exceptions=True)
