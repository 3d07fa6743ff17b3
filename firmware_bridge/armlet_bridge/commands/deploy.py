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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was done as JSON")


def run(args: argparse.Namespace) -> int:
    """Deploy; 1 if the golden run refused the bundle."""
    from armlet_runtime.outputs import write_json
    from armlet_runtime.slots import bundle_path

    from ..deploy import HealthError, deploy, parse_target

    folder = parse_target(args.target)
    try:
        done = deploy(bundle_path(args.bundle), folder, args.key)
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
