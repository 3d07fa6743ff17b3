"""``armlet deploy``: deploy a bundle into a slot on this machine, to a board, or to a fleet."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from armlet_runtime.commands import add_bundle_arguments

if TYPE_CHECKING:
    from ..boards import Deployed

NAME = "deploy"
HELP = "Verify a bundle and put it into use, here or on a board, which keeps its old bundle if the new bundle fails."
EXAMPLE = """armlet deploy har.armlet file:/var/lib/armlet/slot --json deployed.json
  armlet deploy har.armlet ssh://pi@raspberrypi.local
  armlet deploy har.armlet fleet:boards.toml --json deployed.json"""
EXTRA = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_bundle_arguments(parser)
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="file:FOLDER, a slot on this machine; ssh://USER@HOST; or fleet:FILE.toml",
    )
    parser.add_argument(
        "--host-key", metavar="SHA256:...", help="accept this new host key of a board, and add it to known_hosts"
    )
    older = parser.add_mutually_exclusive_group()
    older.add_argument(
        "--allow-older",
        action="store_true",
        help="go back to a lower release, permitted with this home's signing key",
    )
    older.add_argument("--permission", type=Path, metavar="FILE", help="go back, permitted by 'armlet key permit'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Deploy; return 1 if a bundle failed its golden run or its probation."""
    from armlet_runtime.bundle import trusted_keys
    from armlet_runtime.files import write_json
    from armlet_runtime.install import (
        HealthError,
        ProbationError,
        bundle_path,
        deploy_to_slot,
        floor,
        read_state,
        slot_folder,
    )

    from ..boards import FLEET

    bundle = bundle_path(args.bundle)
    if args.target.startswith("ssh://"):
        return _deploy_to_board(args, bundle)
    if args.target.startswith(FLEET):
        return _deploy_to_fleet(args, bundle)
    folder = slot_folder(args.target)
    try:
        permission = _permission(args, bundle, floor(read_state(folder), trusted_keys(args.key)))
        done = deploy_to_slot(bundle, folder, args.key, permission)
    except (HealthError, ProbationError) as error:
        print(f"armlet: {error}", file=sys.stderr)
        return 1
    if args.json:
        write_json(args.json, done)
    print(f"{done.name} {done.version} ({done.digest[:12]}) is in use in {done.slot}, place {done.place}")
    print(done.health)
    print(f"probation: {done.live}")
    return 0


def _deploy_to_fleet(args: argparse.Namespace, bundle: Path) -> int:
    import asyncio

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from armlet_runtime.bundle import trusted_keys
    from armlet_runtime.errors import UsageError
    from armlet_runtime.files import write_json

    _need_ssh()
    from ..boards import FLEET, connect, deploy_to_fleet, parse_target, read_inventory, table, totals

    if args.allow_older or args.host_key:
        raise UsageError("a fleet takes neither --allow-older nor --host-key: give --permission, and fill known_hosts")
    inventory = read_inventory(Path(args.target.removeprefix(FLEET)))
    count = sum(len(group.boards) for group in inventory.group)
    columns = (TextColumn("boards"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=count)
        rows = asyncio.run(
            deploy_to_fleet(
                bundle, inventory, lambda board: lambda: connect(parse_target(board)), trusted_keys(args.key),
                lambda row: progress.update(task, advance=1, description=f"{row.board}: {row.outcome}"),
                _permission(args, bundle, 0),
            )
        )  # fmt: skip
    if args.json:
        write_json(args.json, rows)
    Console().print(table(rows))
    counts = totals(rows)
    return 0 if counts["deployed"] + counts["already"] == count else 1


def _need_ssh() -> None:
    from armlet_runtime.errors import MissingExtraError

    try:
        import asyncssh  # noqa: F401  (fail before any work is done)
    except ModuleNotFoundError:
        raise MissingExtraError("boards over SSH need an extra: pip install 'armlet[bridge]'") from None


def _deploy_to_board(args: argparse.Namespace, bundle: Path) -> int:
    import asyncio

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from armlet_runtime.bundle import trusted_keys
    from armlet_runtime.files import write_json
    from armlet_runtime.install import UpdateResult

    _need_ssh()
    from ..boards import connect, parse_target, push_bundle

    target = parse_target(args.target)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())

    async def deploy() -> Deployed:
        over = 0
        if args.allow_older:
            async with connect(target, args.host_key) as board:
                over = (await board.hello())["floor"]
        permission = _permission(args, bundle, over)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("connecting", total=None)
            return await push_bundle(
                bundle, str(target), lambda: connect(target, args.host_key), trusted_keys(args.key), permission,
                lambda state, done, total: progress.update(task, description=state, completed=done, total=total),
            )  # fmt: skip

    done = asyncio.run(deploy())
    if args.json:
        write_json(args.json, done)
    if done.result is not UpdateResult.SUCCESS:
        print(f"armlet: {target} keeps its previous bundle: {done.message}", file=sys.stderr)
        return 1
    print(f"{target}: {done.message}")
    print(f"{done.bytes_sent} of {done.bytes_bundle} bytes sent in {done.seconds:.1f} s, {done.links_lost} links lost")
    return 0


def _permission(args: argparse.Namespace, bundle: Path, over: int) -> bytes | None:
    from armlet_runtime.bundle import default_signing_key, open_bundle, trusted_keys
    from armlet_runtime.errors import DeployError
    from armlet_runtime.install import permit

    if args.permission:
        try:
            return bytes(args.permission.read_bytes())
        except OSError as error:
            raise DeployError(f"cannot read the permission {args.permission}: {error.strerror}") from error
    if not args.allow_older:
        return None
    key, _ = default_signing_key()
    return permit(open_bundle(bundle, trusted_keys(args.key)).digest, over, [key])
