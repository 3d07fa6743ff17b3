"""``armlet wearables``: the wearables in reach, and the properties and state of one of them."""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WearableError
from .bluetooth_arguments import add_bluetooth_option, seconds

if TYPE_CHECKING:
    from ..bluetooth import Link
    from ..modalities import Modality
    from ..signals import Wearable
    from ..wearables import Group

NAME = "wearables"
HELP = "Look at the Bluetooth wearables in reach, or play a recording as virtual wearables."
EXAMPLE = """armlet wearables scan
  armlet wearables info "Polar H10 12345678" --json strap.json
  armlet wearables watch "Polar H10 12345678" --duration 60
  armlet wearables simulate walk.mcap --listen tcp-server:127.0.0.1:9000 --link-loss gyro:60:90"""
EXTRA = ""

# Further actions: modules with NAME, HELP, EXTRA, ``add_arguments(parser)`` and ``run(args)``, as commands have them.
GROUP = "armlet.commands.wearables"

KEEP_NS = 1_000_000_000
"""Samples are kept for this long: 'info' and 'watch' need counts and clocks only."""

WATCH_S = 1.0
"""Time between two lines of 'watch', over which rates are measured."""

LISTEN_S = 3.0
"""Time for which 'info' listens: some wearables reveal their modalities only by their data."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    scan = actions.add_parser(
        "scan",
        help="list the wearables in reach",
        description="List the advertising devices: name, address, signal strength, and the profiles by which armlet "
        "reads them; devices that it can read come first.",
    )
    info = actions.add_parser(
        "info",
        help="connect to a wearable and show its properties",
        description="Connect to a wearable and show its battery, its device information, the MTU and the connection "
        "interval agreed upon, and the modalities that it sends with their rates.",
    )
    watch = actions.add_parser(
        "watch",
        help="connect to a wearable and show its state, a line a second",
        description="Connect to a wearable and show once a second its link, signal strength and battery, and for each "
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
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        module = entry.load()
        action = actions.add_parser(entry.name, help=module.HELP, description=module.HELP)
        module.add_arguments(action)
        action.set_defaults(module=module)


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    return int(args.act(args))


def _scan(args: argparse.Namespace) -> int:
    from ..bluetooth import run_main
    from ..files import write_json

    nearby = run_main(_listen(args.bluetooth, args.seconds))
    for device in nearby:
        profiles = ", ".join(device["profiles"])
        print(f"{device['name'] or '(no name)':24} {device['address']}  {device['rssi']:4} dBm  {profiles}")
    if not nearby:
        print(f"nothing heard in {args.seconds:g} s")
    if args.json:
        write_json(args.json, nearby)
    return 0


async def _listen(bluetooth: str, wait_s: float) -> list[dict[str, Any]]:
    from ..bluetooth import open_bluetooth, who_is_near

    async with open_bluetooth(bluetooth) as adapters:
        nearby = await who_is_near(adapters, wait_s)
    return [
        {
            "name": device.name or None,
            "address": device.address,
            "rssi": device.rssi,
            "services": list(device.services),
            "profiles": list(device.profiles),
        }
        for device in nearby
    ]


_SHOWN_UNITS = {"rssi": " dBm", "battery": " %", "mtu": " bytes", "interval": " ms"}


def _info(args: argparse.Namespace) -> int:
    from ..bluetooth import run_main
    from ..files import write_json

    about = run_main(_ask(args.bluetooth, args.name, args.seconds))
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
        print(f"{'modality':11} none yet: they are known when it sends, and it has sent nothing")
    if args.json:
        write_json(args.json, about)
    return 0


async def _ask(bluetooth: str, name: str, wait_s: float) -> dict[str, Any]:
    import msgspec

    from ..bluetooth import Session, open_bluetooth
    from ..signals import Wearable

    async with open_bluetooth(bluetooth) as adapters:
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
            modalities = [
                msgspec.to_builtins(modality)
                for profile in groups.values() for group in profile for modality in group.modalities
            ]  # fmt: skip
            return {"name": name, **_state(link), **link.about, "modalities": modalities}
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


def _groups(link: Link, wearable: Wearable) -> dict[str, tuple[Group, ...]]:
    """The groups of each started profile: those of the received packets, else those of every such wearable."""
    from ..wearables import PROFILES

    started = [profile for profile in PROFILES if profile.name in link.profiles]
    heard = {
        profile.name: tuple(group for group in wearable.groups if group.name.partition(".")[0] == profile.name)
        for profile in started
    }
    return {profile.name: heard[profile.name] or profile.decoder().groups for profile in started}


def _state(link: Link) -> dict[str, Any]:
    """The state of a link, as JSON has it."""
    return {
        "address": link.address,
        "rssi": link.rssi,
        "battery": link.battery,
        "profiles": list(link.profiles),
        "mtu": link.mtu,
        "interval_ms": link.interval_ms,
    }


def _watch(args: argparse.Namespace) -> int:
    from ..bluetooth import run_main
    from ..files import write_json

    result = run_main(_follow(args.bluetooth, args.name, args.duration))
    if args.json:
        write_json(args.json, result)
    return 0


async def _follow(bluetooth: str, name: str, duration_s: float | None) -> dict[str, Any]:
    from ..bluetooth import Session, drive, open_bluetooth
    from ..signals import Packet, Wearable

    async with open_bluetooth(bluetooth) as adapters:
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
        return {"name": name, **state, "groups": {group: _clock_state(wearable, group) for group in wearable.clocks}}


def watch_line(link: Link, wearable: Wearable, before: Mapping[str, int], elapsed_s: float) -> str:
    """A line of 'watch': the link, and for each group of modalities its rate, its loss and the error of its clock.

    ``before``: samples of each group ``elapsed_s`` seconds ago, when the line before was printed.
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
    return [modality for other in wearable.groups if other.name == group for modality in other.modalities]


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
