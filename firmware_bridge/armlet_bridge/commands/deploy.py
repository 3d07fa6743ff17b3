"""``armlet deploy``: put a bundle into a slot."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from armlet_runtime.commands.model_arguments import add_bundle_arguments

NAME = "deploy"
HELP = "Verify a bundle and put it into a slot; the slot keeps its old bundle if anything is wrong with the new one."
EXAMPLE = "armlet deploy har.armlet file:/var/lib/armlet/slot --json deployed.json"
EXTRA = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_bundle_arguments(parser)
    parser.add_argument("target", metavar="TARGET", help="file:FOLDER, a slot on this machine; made if not there")
    older = parser.add_mutually_exclusive_group()
    older.add_argument(
        "--allow-older", action="store_true", help="go back to a lower release, permitted with this home's signing key"
    )
    older.add_argument("--permission", type=Path, metavar="FILE", help="go back, permitted by 'armlet key permit'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was done as JSON")


def run(args: argparse.Namespace) -> int:
    """Deploy; 1 if the golden run refused the bundle."""
    from armlet_runtime.outputs import write_json
    from armlet_runtime.slots import bundle_path

    from ..deploy import HealthError, deploy, parse_target

    folder = parse_target(args.target)
    bundle = bundle_path(args.bundle)
    try:
        done = deploy(bundle, folder, args.key, _permission(args, bundle, folder))
    except HealthError as error:
        print(f"armlet: {error}", file=sys.stderr)
        return 1
    if args.json:
        write_json(args.json, done)
    health = done.health
    print(f"{done.name} {done.version} ({done.digest[:12]}) is in use in {done.slot}, place {done.place}")
    print(
        f"golden run: {health.windows} windows on {health.engine} {health.version} ({health.detail}), "
        f"largest difference {health.max_difference:g}, {health.tolerance:g} allowed"
    )
    return 0


def _permission(args: argparse.Namespace, bundle: Path, folder: Path) -> bytes | None:
    from armlet_runtime.admission import floor, permit
    from armlet_runtime.bundle import open_bundle
    from armlet_runtime.errors import DeployError
    from armlet_runtime.keys import default_signing_key
    from armlet_runtime.slots import read_state
    from armlet_runtime.trust import trusted_keys

    if args.permission:
        try:
            return bytes(args.permission.read_bytes())
        except OSError as error:
            raise DeployError(f"cannot read the permission {args.permission}: {error.strerror}") from error
    if not args.allow_older:
        return None
    trusted = trusted_keys(args.key)
    key, _ = default_signing_key()
    return permit(open_bundle(bundle, trusted), floor(read_state(folder), trusted), [key])
