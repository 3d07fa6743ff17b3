"""``armlet wearables``: put virtual wearables on a virtual air, or look at wearables that are there."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armlet_runtime.commands import add_bluetooth_option, seconds
from armlet_runtime.errors import UsageError, WearableError

if TYPE_CHECKING:
    from armlet_runtime.bluetooth import Link
    from armlet_runtime.modalities import Modality
    from armlet_runtime.signals import Wearable
    from armlet_runtime.wearables import Group

    from ..virtual import LinkLoss, WearableSpec

NAME = "wearables"
HELP = "Play a recording as virtual Bluetooth wearables, or look at the wearables that are in reach."
EXAMPLE = """armlet wearables simulate walk.mcap --listen tcp-server:127.0.0.1:9000 --link-loss gyro:60:90
  armlet wearables scan --bluetooth bumble:tcp-client:127.0.0.1:9000
  armlet wearables info Armlet-Acc --json acc.json
  armlet wearables watch "Polar H10 12345678" --duration 60"""
EXTRA = "bridge"

# After the last packet: what is on its way arrives before the wearables leave.
LINGER_S = 1.0

# 'info' and 'watch' look at counts and clocks only, not at samples.
KEEP_NS = 1_000_000_000

# How often 'watch' shows a line, and over how much time it counts rates.
WATCH_S = 1.0

# What some wearables send shows only in what they send: 'info' listens for so long.
LISTEN_S = 3.0


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
        help="where hosts reach the virtual air: tcp-server:HOST:PORT (port 0: a free one), unix-server:PATH, "
        "or vhci: an adapter of this machine's own BlueZ (as root, after 'modprobe hci_vhci')",
    )
    simulate.add_argument(
        "--wearable",
        action="append",
        default=[],
        metavar="MODALITY[+MODALITY..]=NAME[@PROFILE]",
        help="put on this wearable (repeatable), such as ecg+acc='Polar H10 12345678@polar'; then only those given are "
        "put on",
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
    simulate.add_argument("--events", type=Path, metavar="FILE", help="write the events as JSON lines")
    simulate.set_defaults(act=_simulate)

    scan = actions.add_parser(
        "scan",
        help="list the wearables that are in reach",
        description="List what advertises: name, address, signal strength, and the profiles that armlet reads it by; "
        "first those that it can read.",
    )
    info = actions.add_parser(
        "info",
        help="connect to one wearable and show what it is",
        description="Connect to one wearable and show its battery, what it says of itself, the MTU and the connection "
        "interval agreed upon, and the modalities that it sends with their rates.",
    )
    watch = actions.add_parser(
        "watch",
        help="connect to one wearable and show how it does, a line a second",
        description="Connect to one wearable and show once a second its link, signal strength and battery, and of each "
        "group of modalities the rate, the share of packets lost, and the drift of its clock with its error bound.",
    )
    for action in (info, watch):
        action.add_argument("name", metavar="NAME", help="its advertised name or address")
    for action, act in ((scan, _scan), (info, _info), (watch, _watch)):
        add_bluetooth_option(action)
        action.add_argument("--json", type=Path, metavar="FILE", help="write the result")
        action.set_defaults(act=act)
    for action, wait in ((scan, 5.0), (info, 20.0)):
        action.add_argument("--seconds", type=seconds, default=wait, metavar="S", help=f"listen (default {wait:g})")
    watch.add_argument("--duration", type=seconds, metavar="S", help="end after S seconds (default: at Ctrl-C)")


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    return int(args.act(args))


def _simulate(args: argparse.Namespace) -> int:
    from armlet_runtime.files import Lines
    from armlet_runtime.signals import read_recording

    from ..virtual import AirLink, default_wearables, put_on, serve

    recording = read_recording(args.recording)
    specs = [parse_wearable(text) for text in args.wearable] or default_wearables(recording)
    losses = [parse_link_loss(text, specs) for text in args.link_loss]

    with Lines(args.events) as lines:

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
                names = list(wearables.wearables)
                print(f"{', '.join(names)} on the air at {transport}", flush=True)
                print(f"silent until {'all are' if len(names) > 1 else 'it is'} subscribed to", flush=True)
                await wearables.run(args.start, args.duration, losses)
                await asyncio.sleep(LINGER_S)

        try:
            asyncio.run(play())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    return 0


def parse_wearable(text: str) -> WearableSpec:
    """Read ``acc=Armlet-Acc``, ``acc+gyro=Armlet-Imu`` or ``ecg=Polar H10 12345678@polar``.

    Raises:
        UsageError: It is not of this form.
    """
    from ..virtual import WearableSpec

    modalities, _, name = text.partition("=")
    if not name or not all(modalities.split("+")):
        raise UsageError(f"--wearable {text}: give MODALITY=NAME or MODALITY+MODALITY=NAME, and @PROFILE if need be")
    name, _, profile = name.partition("@")
    return WearableSpec(name, tuple(modalities.split("+")), profile or None)


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
    from armlet_runtime.files import write_json

    found = asyncio.run(_listen(args.bluetooth, args.seconds))
    for one in found:
        print(f"{one['name'] or '(no name)':24} {one['address']}  {one['rssi']:4} dBm  {', '.join(one['profiles'])}")
    if not found:
        print(f"nothing heard in {args.seconds:g} s")
    if args.json:
        write_json(args.json, found)
    return 0


async def _listen(bluetooth_names: str, wait_s: float) -> list[dict[str, Any]]:
    from bleak import BleakScanner

    from armlet_runtime.bluetooth import open_bluetooth
    from armlet_runtime.wearables import profiles_of_advertisement

    found: dict[str, dict[str, Any]] = {}
    async with AsyncExitStack() as stack:
        adapters = await stack.enter_async_context(open_bluetooth(bluetooth_names))
        with _bleak_errors(f"cannot scan on Bluetooth '{bluetooth_names}'"):
            async with AsyncExitStack() as scanning:
                scanners = [
                    await scanning.enter_async_context(BleakScanner(backend=one.scanner, **one.options))
                    for one in adapters
                ]
                await asyncio.sleep(wait_s)
                heard = [
                    both for scanner in scanners for both in scanner.discovered_devices_and_advertisement_data.values()
                ]
    for device, advertisement in heard:
        name = advertisement.local_name or device.name
        known = found.get(device.address)
        if known is None or advertisement.rssi > known["rssi"]:
            found[device.address] = {
                "name": name,
                "address": device.address,
                "rssi": advertisement.rssi,
                "services": advertisement.service_uuids,
                "profiles": [one.name for one in profiles_of_advertisement(name, advertisement.service_uuids)],
            }
    return sorted(found.values(), key=lambda one: (not one["profiles"], -one["rssi"], one["address"]))


_SHOWN_UNITS = {"rssi": " dBm", "battery": " %", "mtu": " bytes", "interval": " ms"}


def _info(args: argparse.Namespace) -> int:
    from armlet_runtime.files import write_json

    about = asyncio.run(_ask(args.bluetooth, args.name, args.seconds))
    shown = {
        **{key: value for key, value in about.items() if key not in ("modalities", "interval_ms")},
        "profiles": ", ".join(about["profiles"]),
        "interval": about["interval_ms"],
    }
    for key, value in shown.items():
        if value not in (None, ""):
            print(f"{key:11} {f'{value:g}' if isinstance(value, float) else value}{_SHOWN_UNITS.get(key, '')}")
    for modality in about["modalities"]:
        channels = ", ".join(modality["channels"])
        print(f"{'modality':11} {modality['name']} ({channels}) in {modality['unit']} at {modality['rate_hz']:g} Hz")
    if not about["modalities"]:
        print(f"{'modality':11} none yet: what it sends shows when it sends, and it has sent nothing")
    if args.json:
        write_json(args.json, about)
    return 0


async def _ask(bluetooth_names: str, name: str, wait_s: float) -> dict[str, Any]:
    import msgspec

    from armlet_runtime.bluetooth import Session, open_bluetooth
    from armlet_runtime.signals import Wearable

    async with open_bluetooth(bluetooth_names) as adapters:
        session = Session(adapters, (name,))
        running = asyncio.ensure_future(session.run())
        wearable = Wearable(name, KEEP_NS)
        clock = asyncio.get_running_loop().time
        end = clock() + wait_s
        listened = math.inf
        try:
            while True:
                await asyncio.wait({running}, timeout=0.05)
                if running.done():
                    running.result()
                for packet in session.take():
                    wearable.take(packet)
                link = session.links[name]
                if link.state == "streaming" and link.learned:
                    listened = min(listened, clock() + LISTEN_S)
                    groups = _groups(link, wearable)
                    if all(groups.values()) or clock() > listened:
                        break
                    continue
                if link.state == "refused":
                    raise WearableError(f"'{name}' cannot be used: {link.problem}")
                if clock() > end:
                    raise WearableError(
                        f"'{name}' did not come up in {wait_s:g} s ({link.problem or link.state}): is it on, near, and "
                        "not in use?"
                    )
            each = [modality for some in groups.values() for group in some for modality in group.modalities]
            modalities = [msgspec.to_builtins(modality) for modality in each]
            return {"name": name, **_state(link), **link.about, "modalities": modalities}
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


def _groups(link: Link, wearable: Wearable) -> dict[str, tuple[Group, ...]]:
    """By profile that was started, what the wearable sends: as it was heard, else as every such wearable does."""
    from armlet_runtime.wearables import PROFILES

    heard = {
        one.name: tuple(group for group in wearable.groups if group.name.partition(".")[0] == one.name)
        for one in PROFILES
        if one.name in link.profiles
    }
    return {one.name: heard[one.name] or one.decoder().groups for one in PROFILES if one.name in heard}


def _state(link: Link) -> dict[str, Any]:
    """What is known of a link, as JSON has it."""
    return {
        "address": link.address,
        "rssi": link.rssi,
        "battery": link.battery,
        "profiles": list(link.profiles),
        "mtu": link.mtu,
        "interval_ms": link.interval_ms,
    }


def _watch(args: argparse.Namespace) -> int:
    from armlet_runtime.files import write_json

    result = asyncio.run(_follow(args.bluetooth, args.name, args.duration))
    if args.json:
        write_json(args.json, result)
    return 0


async def _follow(bluetooth_names: str, name: str, duration_s: float | None) -> dict[str, Any]:
    from armlet_runtime.bluetooth import Session, drive, open_bluetooth
    from armlet_runtime.signals import Packet, Wearable

    async with open_bluetooth(bluetooth_names) as adapters:
        session = Session(adapters, (name,))
        wearable = Wearable(name, KEEP_NS)
        shown_ns: int | None = None
        before: dict[str, int] = {}
        state: dict[str, Any] = {}

        def turn(packets: list[Packet], now_ns: int) -> int:
            nonlocal shown_ns, state
            link = session.links.get(name)
            if link is not None and (not state or link.state == "streaming"):
                state = _state(link)
            for packet in packets:
                wearable.take(packet)
            if link is not None and (shown_ns is None or now_ns - shown_ns >= WATCH_S * 1e9):
                elapsed_s = WATCH_S if shown_ns is None else (now_ns - shown_ns) / 1e9
                print(watch_line(link, wearable, before, elapsed_s), flush=True)
                before.update({group: counts.samples for group, counts in wearable.counts.items()})
                shown_ns = now_ns
            return (shown_ns or now_ns) + round(WATCH_S * 1e9)

        await drive(session, turn, duration_s)
        return {
            "name": name,
            **state,
            "groups": {group: _clock_state(wearable, group) for group in wearable.clocks},
        }


def watch_line(link: Link, wearable: Wearable, before: Mapping[str, int], elapsed_s: float) -> str:
    """One line of 'watch': the link, and of each group of modalities rate, loss and how well its clock is known.

    Args:
        link: Of the wearable.
        wearable: What came from it.
        before: Samples of each group when the line before was shown.
        elapsed_s: Time since then.
    """
    parts = [link.state if not link.problem else f"{link.state} ({link.problem})"]
    parts += [f"{link.rssi} dBm"] if link.rssi is not None else []
    parts += [f"battery {link.battery} %"] if link.battery is not None else []
    for group in wearable.clocks:
        state = _clock_state(wearable, group)
        modalities = _modalities(wearable, group)
        names = "+".join(modality.name for modality in modalities)
        # Each modality's samples are counted.
        rate_hz = (state["samples"] - before.get(group, 0)) / max(len(modalities), 1) / elapsed_s
        text = f"{names or group} {rate_hz:.1f} Hz lost {state['lost_share']:.1%}"
        if state["bound_ms"] is not None:
            text += f" clock {state['drift_ppm']:+.0f} ppm +-{state['bound_ms']:.1f} ms"
        parts.append(text)
    if link.state == "streaming" and not wearable.clocks:
        parts.append("it has sent nothing yet")
    return "  ".join(parts)


def _modalities(wearable: Wearable, group: str) -> list[Modality]:
    return [modality for one in wearable.groups if one.name == group for modality in one.modalities]


def _clock_state(wearable: Wearable, group: str) -> dict[str, Any]:
    counts, clock = wearable.counts[group], wearable.clocks[group]
    bound_ns = clock.bound_ns
    return {
        "packets": counts.packets,
        "samples": counts.samples,
        "lost": counts.lost,
        "lost_share": counts.lost / max(counts.packets + counts.lost, 1),
        "restarts": counts.restarts,
        "drift_ppm": clock.fit.drift_ppm,
        "bound_ms": None if bound_ns is None else bound_ns / 1e6,
    }


@contextmanager
def _bleak_errors(what: str) -> Iterator[None]:
    """Give bleak's errors, and those of the system below it, as one of ours."""
    from bleak.exc import BleakError

    from armlet_runtime.bluetooth import sentence_of

    try:
        yield
    except (BleakError, OSError, EOFError, asyncio.TimeoutError) as error:
        raise WearableError(
            f"{what} ({sentence_of(error)}): check that an adapter is there and powered, "
            "or name another with --bluetooth"
        ) from error
