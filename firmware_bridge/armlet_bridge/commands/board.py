"""``armlet board``: prepare a board over SSH, and see what it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "board"
HELP = "Prepare a board over SSH for deploys, and show what it is and runs."
EXAMPLE = """armlet board setup ssh://pi@raspberrypi.local --class raspberry-pi-5
  armlet board info ssh://pi@raspberrypi.local --json board.json"""
EXTRA = "bridge"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    setup = actions.add_parser("setup", help="bring the runtime and its wheels onto a board, which needs no internet")
    _add_target(setup)
    setup.add_argument("--class", dest="board", metavar="NAME", help="what the board is, such as raspberry-pi-5")
    setup.add_argument(
        "--modalities", metavar="NAME,...", help="what its wearables measure; bundles that need more are refused"
    )
    setup.add_argument(
        "--engine", action="append", default=[], choices=["onnx", "executorch"], help="an engine besides LiteRT"
    )
    setup.add_argument("--no-service", action="store_true", help="do not start a systemd unit")
    setup.add_argument("--key", type=Path, action="append", default=[], metavar="FILE.pub", help="whom it is to trust")
    back = actions.add_parser("rollback", help="use the bundle before the present one again, by the owner's permission")
    _add_target(back)
    info = actions.add_parser("info", help="what the board is, what it runs, how its last update ended")
    _add_target(info)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="ssh://USER@HOST", help="the board")
    parser.add_argument("--host-key", metavar="SHA256:...", help="believe this new host key, and remember it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found and done")


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    import asyncio

    from armlet_runtime.outputs import write_json

    actions = {"setup": _setup, "info": _info, "rollback": _roll_back}
    result = asyncio.run(actions[args.action](args))
    if args.json:
        write_json(args.json, result)
    return 0


async def _setup(args: argparse.Namespace) -> Any:
    from armlet_runtime.errors import UsageError
    from armlet_runtime.slots import Board
    from armlet_runtime.trust import trusted_keys

    from ..boards import parse_target
    from ..setup import setup

    target = parse_target(args.target)
    trust = trusted_keys(args.key)
    if not trust.keys:
        raise UsageError("this home trusts no key yet that the board could trust: 'armlet key new', or give --key")
    if args.modalities and not args.board:
        raise UsageError("--modalities describes a board that has a name; give --class as well")
    description = (
        Board(args.board, tuple(args.modalities.split(",")) if args.modalities else None) if args.board else None
    )
    done = await setup(target, trust, description, args.engine, args.host_key, not args.no_service, print)
    print(f"{done.board} is ready: {done.bytes_sent / 1e6:.1f} MB sent, trusts {', '.join(done.trusted)}")
    print(f"service: {done.unit}")
    return done


async def _info(args: argparse.Namespace) -> Any:
    from ..boards import connect, parse_target

    target = parse_target(args.target)
    async with connect(target, args.host_key) as board:
        found = await board.hello()
    machine, place = found["machine"], found["place"]
    print(
        f"{target}: {machine['cpu']}, {machine['cores']} cores, {machine['architecture']}, Python {machine['python']}"
    )
    print(f"{found['free_bytes'] / 1e6:.0f} MB of disk and {found['memory_available'] / 1e6:.0f} MB of memory free")
    engines = [f"{name}{'' if why is None else f' (no: {why})'}" for name, why in found["engines"].items()]
    print(f"engines: {', '.join(engines)}")
    if place is None:
        print("no bundle yet")
    else:
        entry = found["places"][place]
        print(f"runs {entry['name']} {entry['version']} ({entry['digest'][:12]}), deployed {entry['deployed']}")
    print(f"last update: {found['update']['message']}")
    return found


async def _roll_back(args: argparse.Namespace) -> Any:
    from armlet_runtime.admission import permit
    from armlet_runtime.errors import DeployError
    from armlet_runtime.keys import default_signing_key
    from armlet_runtime.slots import PLACES

    from ..boards import connect, parse_target

    target = parse_target(args.target)
    async with connect(target, args.host_key) as board:
        found = await board.hello()
        other = PLACES[1] if found["place"] == PLACES[0] else PLACES[0]
        if other not in found["places"]:
            raise DeployError(f"{target} holds no bundle besides the present one; deploy the one you want")
        key, _ = default_signing_key()
        entry = await board.roll_back(permit(found["places"][other]["digest"], found["floor"], [key]))
    print(f"{target} runs {entry.name} {entry.version} ({entry.digest[:12]}) again")
    return entry
