"""``armlet board``: set boards up over SSH, show their status and logs, roll them back, and remove armlet from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "board"
HELP = "Set a board up over SSH for deploys, show its status and logs, roll it back, and remove armlet from it."
EXAMPLE = """armlet board setup ssh://pi@raspberrypi.local --class raspberry-pi-5
  armlet board info ssh://pi@raspberrypi.local --json board.json
  armlet board status ssh://pi@raspberrypi.local
  armlet board list fleet:boards.toml"""
EXTRA = "bridge"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    setup = actions.add_parser("setup", help="bring the runtime and its wheels onto a board, which needs no internet")
    _add_target(setup)
    setup.add_argument("--class", dest="board", metavar="NAME", help="class of the board, such as raspberry-pi-5")
    setup.add_argument(
        "--modalities", metavar="NAME,...", help="what its wearables measure; bundles that need more are refused"
    )
    setup.add_argument(
        "--engine", action="append", default=[], choices=["onnx", "executorch"], help="an engine besides LiteRT"
    )
    setup.add_argument(
        "--wearables",
        metavar="NAME,NAME",
        help="advertised names or addresses of the wearables that a systemd unit on the board is to connect; without "
        "them no unit is made",
    )
    setup.add_argument("--no-service", action="store_true", help="do not start a systemd unit")
    setup.add_argument(
        "--key",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.pub",
        help="key to trust",
    )
    info = actions.add_parser("info", help="show the machine, the bundle in use and the last update")
    _add_target(info)
    status = actions.add_parser(
        "status",
        help="show whether the board runs a bundle; exit with 1 if not, or if its unit fails",
    )
    _add_target(status)
    logs = actions.add_parser("logs", help="show the output of the last update and of the board's unit")
    _add_target(logs)
    logs.add_argument("--lines", type=int, default=30, metavar="N", help="most lines of each (default %(default)s)")
    listing = actions.add_parser("list", help="show the bundles of many boards; exit with 1 if a board has none")
    listing.add_argument("targets", nargs="+", metavar="TARGET", help="ssh://USER@HOST ..., or fleet:FILE.toml")
    _add_json(listing)
    back = actions.add_parser("rollback", help="return to the previous bundle, with a signed permission")
    _add_target(back)
    remove = actions.add_parser("remove", help="remove armlet from the board: unit, bundles, environment, keys")
    _add_target(remove)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="ssh://USER@HOST", help="the board")
    parser.add_argument("--host-key", metavar="SHA256:...", help="accept this new host key, and add it to known_hosts")
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the action; return 1 if a board has no bundle or a failing unit."""
    import asyncio

    from armlet_runtime.files import write_json

    actions = {
        "setup": _setup, "info": _info, "status": _status, "logs": _logs, "list": _list, "rollback": _roll_back,
        "remove": _remove,
    }  # fmt: skip
    result, well = asyncio.run(actions[args.action](args))
    if args.json:
        write_json(args.json, result)
    return 0 if well else 1


async def _setup(args: argparse.Namespace) -> tuple[Any, bool]:
    from armlet_runtime.bundle import trusted_keys
    from armlet_runtime.commands import wearable_names
    from armlet_runtime.errors import UsageError
    from armlet_runtime.install import BoardDescription

    from ..boards import parse_target, setup

    target = parse_target(args.target)
    trust = trusted_keys(args.key)
    if not trust.keys:
        raise UsageError("this home trusts no key that the board could trust: run 'armlet key new', or give --key")
    if args.modalities and not args.board:
        raise UsageError("--modalities needs the class of the board: give --class as well")
    modalities = tuple(args.modalities.split(",")) if args.modalities else None
    description = BoardDescription(args.board, modalities) if args.board else None
    service = not args.no_service
    names = wearable_names(args)
    done = await setup(target, trust, description, args.engine, args.host_key, service, names, print)
    print(f"{done.board} is ready: {done.bytes_sent / 1e6:.1f} MB sent, trusts {', '.join(done.trusted)}")
    print(f"service: {done.unit}")
    return done, True


async def _info(args: argparse.Namespace) -> tuple[Any, bool]:
    from ..boards import connect, parse_target

    target = parse_target(args.target)
    async with connect(target, args.host_key) as board:
        hello = await board.hello()
    machine, place = hello["machine"], hello["place"]
    print(
        f"{target}: {machine['cpu']}, {machine['cores']} cores, {machine['architecture']}, Python {machine['python']}"
    )
    print(f"{hello['free_bytes'] / 1e6:.0f} MB of disk and {hello['memory_available'] / 1e6:.0f} MB of memory free")
    engines = [f"{name}{'' if why is None else f' (no: {why})'}" for name, why in hello["engines"].items()]
    print(f"engines: {', '.join(engines)}")
    if place is None:
        print("no bundle yet")
    else:
        entry = hello["places"][place]
        print(f"runs {entry['name']} {entry['version']} ({entry['digest'][:12]}), deployed {entry['deployed']}")
    print(f"last update: {hello['update']['message']}")
    return hello, True


async def _status(args: argparse.Namespace) -> tuple[Any, bool]:
    from ..boards import connect, parse_target, status

    target = parse_target(args.target)
    async with connect(target, args.host_key) as board:
        row = status(str(target), "", await board.hello())
    if row.bundle is None:
        print(f"{target} has no bundle yet: 'armlet deploy BUNDLE {target}'")
    else:
        entry = row.bundle
        print(f"{target} runs {entry.name} {entry.version} ({entry.digest[:12]}), deployed {entry.deployed}")
    if row.before is not None:
        print(f"before it: {row.before.name} {row.before.version} ({row.before.digest[:12]}), kept for a rollback")
    print(f"last update: {row.update.state.name.lower()}, {row.update.message}")
    print(f"unit: {row.unit}")
    print(f"clock: {abs(row.clock_s):.0f} s {'ahead of' if row.clock_s > 0 else 'behind'} this machine's")
    return row, row.well


async def _logs(args: argparse.Namespace) -> tuple[Any, bool]:
    from armlet_runtime.errors import UsageError
    from armlet_runtime.install import LOG_LINES

    from ..boards import connect, parse_target

    if not 1 <= args.lines <= LOG_LINES:
        raise UsageError(f"--lines is a number from 1 to {LOG_LINES}, not {args.lines}")
    target = parse_target(args.target)
    async with connect(target, args.host_key) as board:
        logs = await board.logs(args.lines)
    for name, empty in (("update", "no output"), ("service", "no lines, or no right to read the journal")):
        print(f"{name}:")
        for line in logs[name] or [f"({empty})"]:
            print(f"  {line}")
    return logs, True


async def _list(args: argparse.Namespace) -> tuple[Any, bool]:
    from rich.console import Console
    from rich.table import Table

    from ..boards import connect, named_boards, parse_target, statuses

    rows = await statuses(named_boards(args.targets), lambda board: lambda: connect(parse_target(board)))
    table = Table()
    for heading in ("board", "group", "runs", "unit", "last update, or why it cannot be reached"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        runs = f"{row.bundle.name} {row.bundle.version} ({row.bundle.digest[:12]})" if row.bundle else "-"
        table.add_row(row.board, row.group, runs, row.unit, row.update.message)
    Console().print(table)
    well = sum(row.well for row in rows)
    print(f"{well} of {len(rows)} boards run a bundle")
    return rows, well == len(rows)


async def _roll_back(args: argparse.Namespace) -> tuple[Any, bool]:
    from armlet_runtime.bundle import default_signing_key
    from armlet_runtime.errors import DeployError
    from armlet_runtime.install import PLACES, permit

    from ..boards import connect, parse_target

    target = parse_target(args.target)
    async with connect(target, args.host_key) as board:
        hello = await board.hello()
        other = PLACES[1] if hello["place"] == PLACES[0] else PLACES[0]
        if other not in hello["places"]:
            raise DeployError(f"{target} holds no bundle besides the present one; deploy the bundle that you want")
        key, _ = default_signing_key()
        entry = await board.roll_back(permit(hello["places"][other]["digest"], hello["floor"], [key]))
    print(f"{target} runs {entry.name} {entry.version} ({entry.digest[:12]}) again")
    return entry, True


async def _remove(args: argparse.Namespace) -> tuple[Any, bool]:
    from ..boards import parse_target, remove

    target = parse_target(args.target)
    removed = await remove(target, args.host_key)
    print(f"{target}: armlet is removed" if removed else f"{target}: armlet was not on the board")
    return {"board": str(target), "removed": removed}, True
