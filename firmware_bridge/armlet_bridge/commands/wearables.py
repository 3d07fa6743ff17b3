"""``armlet wearables``: put virtual wearables on a virtual air, or look at wearables that are there."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armlet_runtime.commands.bluetooth_arguments import add_bluetooth_option, seconds
from armlet_runtime.errors import UsageError, WearableError

if TYPE_CHECKING:
    from bleak import BleakClient, BleakScanner
    from bleak.backends.device import BLEDevice

    from ..virtual import LinkLoss, WearableSpec

NAME = "wearables"
HELP = "Play a recording as virtual Bluetooth wearables, or look at the wearables that are in reach."
EXAMPLE = """armlet wearables simulate walk.mcap --listen tcp-server:127.0.0.1:9000 --link-loss gyro:60:90
  armlet wearables scan --bluetooth bumble:tcp-client:127.0.0.1:9000
  armlet wearables info Armlet-Acc --json acc.json"""
EXTRA = "bridge"

# After the last packet: what is on its way arrives before the wearables leave.
LINGER_S = 1.0

# BlueZ takes 2 s for an orderly disconnect.
DISCONNECT_S = 5.0

# Characteristics of Device Information (0x180A) and Battery (0x180F) by the names that 'info' gives them.
_TEXTS = {
    "maker": "2a29",
    "model": "2a24",
    "serial": "2a25",
    "hardware": "2a27",
    "firmware": "2a26",
    "software": "2a28",
}
_BATTERY_LEVEL = "2a19"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    simulate = actions.add_parser(
        "simulate",
        help="play a recording as virtual wearables in real time",
        description="Play a recording as virtual wearables, one for each modality by default, in real time. It begins "
        "when every wearable is subscribed to, and ends by itself.",
    )
    simulate.add_argument("recording", type=Path, help="recording with streams (.mcap)")
    simulate.add_argument(
        "--listen",
        required=True,
        metavar="TRANSPORT",
        help="where hosts reach the virtual air: tcp-server:HOST:PORT (port 0: a free one) or unix-server:PATH",
    )
    simulate.add_argument(
        "--wearable",
        action="append",
        default=[],
        metavar="MODALITY[+MODALITY..]=NAME",
        help="put on this wearable (repeatable); then only those given are put on",
    )
    simulate.add_argument("--samples-per-packet", type=int, default=2, metavar="N", help="of IMUs (default 2)")
    simulate.add_argument(
        "--drift-ppm",
        type=float,
        default=0.0,
        metavar="PPM",
        help="drift of the wearables' clocks: the first is fast, the next slow, and so on (default 0)",
    )
    simulate.add_argument(
        "--link-loss",
        action="append",
        default=[],
        metavar="NAME:START:END",
        help="this wearable (or the one of this modality) is out of reach from START to END seconds (repeatable); the "
        "link ends after its supervision timeout (0.72 s), and a shorter absence only delays",
    )
    simulate.add_argument("--start", type=seconds, default=0.0, metavar="S", help="begin S seconds into the recording")
    simulate.add_argument("--duration", type=seconds, metavar="S", help="play S seconds (default: to the end)")
    simulate.add_argument("--log", type=Path, metavar="FILE", help="write the events as JSON lines")
    simulate.set_defaults(act=_simulate)

    scan = actions.add_parser("scan", help="list the wearables that are in reach")
    info = actions.add_parser("info", help="connect to one wearable and show what it is")
    info.add_argument("name", metavar="NAME", help="its advertised name")
    for action, act, wait in ((scan, _scan, 5.0), (info, _info, 15.0)):
        add_bluetooth_option(action)
        action.add_argument("--seconds", type=seconds, default=wait, metavar="S", help=f"listen (default {wait:g})")
        action.add_argument("--json", type=Path, metavar="FILE", help="write the result")
        action.set_defaults(act=act)


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    return int(args.act(args))


def _simulate(args: argparse.Namespace) -> int:
    from armlet_runtime.outputs import Lines
    from armlet_runtime.recording import read_recording

    from ..air import AirLink, serve
    from ..virtual import default_wearables, put_on

    recording = read_recording(args.recording)
    specs = [parse_wearable(text) for text in args.wearable] or default_wearables(recording)
    losses = [parse_link_loss(text, specs) for text in args.link_loss]

    with Lines(args.log) as lines:

        def log(event: dict[str, Any]) -> None:
            lines.write(json.dumps(event).encode())
            about = json.dumps(event["packets"]) if "packets" in event else event["wearable"] or ""
            print(f"{event['event']} {about}".rstrip(), flush=True)

        async def play() -> None:
            task = asyncio.current_task()
            assert task is not None
            # SIGINT too: a shell without job control starts background processes with it ignored.
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
            air = AirLink()
            async with (
                put_on(recording, air, specs, args.samples_per_packet, args.drift_ppm, log) as wearables,
                serve(air, args.listen) as transport,
            ):
                print(f"{', '.join(wearables.wearables)} on the air at {transport}", flush=True)
                await wearables.run(args.start, args.duration, losses)
                await asyncio.sleep(LINGER_S)

        try:
            asyncio.run(play())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    return 0


def parse_wearable(text: str) -> WearableSpec:
    """Read ``acc=Armlet-Acc`` or ``acc+gyro=Armlet-Imu``.

    Raises:
        UsageError: It is not of this form.
    """
    from ..virtual import WearableSpec

    modalities, _, name = text.partition("=")
    if not name or not all(modalities.split("+")):
        raise UsageError(f"--wearable {text}: give MODALITY=NAME or MODALITY+MODALITY=NAME")
    return WearableSpec(name, tuple(modalities.split("+")))


def parse_link_loss(text: str, specs: Sequence[WearableSpec]) -> LinkLoss:
    """Read ``NAME:START:END``; NAME is a wearable's or a modality's.

    Raises:
        UsageError: It is not of this form, or names no wearable.
    """
    from ..virtual import LinkLoss

    name, *span = text.rsplit(":", 2)
    try:
        start_s, end_s = map(float, span)
    except ValueError:
        raise UsageError(f"--link-loss {text}: give NAME:START:END with seconds since the play's start") from None
    if not 0 <= start_s < end_s < math.inf:
        raise UsageError(f"--link-loss {text}: START must not be negative and END must come after it")
    for spec in specs:
        if name == spec.name or name in spec.modalities:
            return LinkLoss(spec.name, start_s, end_s)
    raise UsageError(f"--link-loss {text}: there is no wearable '{name}', only {', '.join(s.name for s in specs)}")


def _scan(args: argparse.Namespace) -> int:
    from armlet_runtime.outputs import write_json

    found = asyncio.run(_listen(args.bluetooth, args.seconds))
    for one in found:
        print(f"{one['name'] or '(no name)':24} {one['address']}  {one['rssi']:4} dBm  {', '.join(one['profiles'])}")
    if not found:
        print(f"nothing heard in {args.seconds:g} s")
    if args.json:
        write_json(args.json, found)
    return 0


async def _listen(bluetooth_name: str, wait_s: float) -> list[dict[str, Any]]:
    from bleak import BleakScanner

    from armlet_runtime.ble import open_bluetooth
    from armlet_runtime.wearables import profiles_of_services

    async with open_bluetooth(bluetooth_name) as bluetooth:
        with _bleak_errors(f"cannot scan on Bluetooth '{bluetooth_name}'"):
            async with BleakScanner(backend=bluetooth.scanner) as scanner:
                await asyncio.sleep(wait_s)
                heard = scanner.discovered_devices_and_advertisement_data
    found = [
        {
            "name": advertisement.local_name or device.name,
            "address": device.address,
            "rssi": advertisement.rssi,
            "services": advertisement.service_uuids,
            "profiles": [profile.name for profile in profiles_of_services(advertisement.service_uuids)],
        }
        for device, advertisement in heard.values()
    ]
    return sorted(found, key=lambda one: (not one["profiles"], -one["rssi"], one["address"]))


def _info(args: argparse.Namespace) -> int:
    from armlet_runtime.outputs import write_json

    about = asyncio.run(_ask(args.bluetooth, args.name, args.seconds))
    for key, value in about.items():
        if key not in ("modalities", "services"):
            print(f"{key:10} {value}")
    for modality in about["modalities"]:
        channels = ", ".join(modality["channels"])
        print(f"{'modality':10} {modality['name']} ({channels}) {modality['unit']} at {modality['rate_hz']:g} Hz")
    for service in about["services"]:
        print(f"{'service':10} {service['uuid']}  {service['description']}")
    if args.json:
        write_json(args.json, about)
    return 0


async def _ask(bluetooth_name: str, name: str, wait_s: float) -> dict[str, Any]:
    from bleak import BleakClient, BleakScanner
    from bleak_retry_connector import establish_connection

    from armlet_runtime.ble import open_bluetooth

    async with open_bluetooth(bluetooth_name) as bluetooth:
        with _bleak_errors(f"cannot scan on Bluetooth '{bluetooth_name}'"):
            async with BleakScanner(backend=bluetooth.scanner) as scanner:
                device = await _find(scanner, name, wait_s)
        with _bleak_errors(f"cannot connect to '{name}' on Bluetooth '{bluetooth_name}'"):
            client = await establish_connection(BleakClient, device, name, backend=bluetooth.client)
            try:
                return {"name": name, "address": device.address, **await _read(client)}
            finally:
                with suppress(
                    TimeoutError, asyncio.TimeoutError
                ):  # of a wearable that is gone; the link ends by itself
                    await asyncio.wait_for(client.disconnect(), DISCONNECT_S)


async def _find(scanner: BleakScanner, name: str, wait_s: float) -> BLEDevice:
    found: asyncio.Future[BLEDevice] = asyncio.get_running_loop().create_future()

    async def look() -> None:
        async for device, advertisement in scanner.advertisement_data():
            if name in (advertisement.local_name, device.name):
                found.set_result(device)
                return

    try:
        await asyncio.wait_for(look(), wait_s)
    except asyncio.TimeoutError:
        raise WearableError(
            f"no wearable '{name}' was heard in {wait_s:g} s: is it on, near, and not in use?"
        ) from None
    return found.result()


async def _read(client: BleakClient) -> dict[str, Any]:
    import msgspec

    from armlet_runtime.wearables import profiles_of_services

    about: dict[str, Any] = {}
    for key, uuid in _TEXTS.items():
        if client.services.get_characteristic(uuid):
            about[key] = (await client.read_gatt_char(uuid)).decode(errors="replace").rstrip("\0")
    if client.services.get_characteristic(_BATTERY_LEVEL):
        level = await client.read_gatt_char(_BATTERY_LEVEL)
        about["battery"] = level[0] if level else None
    about["modalities"] = []
    for profile in profiles_of_services([service.uuid for service in client.services]):
        info = bytes(await client.read_gatt_char(profile.info_uuid)) if profile.info_uuid else b""
        about["modalities"] += [msgspec.to_builtins(modality) for modality in profile.decoder(info).modalities]
    about["services"] = [
        {
            "uuid": service.uuid,
            "description": service.description,
            "characteristics": [{"uuid": one.uuid, "properties": one.properties} for one in service.characteristics],
        }
        for service in client.services
    ]
    return about


@contextmanager
def _bleak_errors(what: str) -> Iterator[None]:
    """Give bleak's errors, and those of the system below it, as one of ours."""
    from bleak.exc import BleakError

    try:
        yield
    except (BleakError, OSError, EOFError, asyncio.TimeoutError) as error:
        raise WearableError(
            f"{what} ({error or type(error).__name__}): check that an adapter is there and powered, "
            "or name another with --bluetooth"
        ) from error
