"""``armlet data``: the data sets that armlet knows."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "data"
HELP = "Fetch a data set, tell what is in it, or write one of its recordings to a file."
EXAMPLE = """armlet data fetch hapt
  armlet data record hapt --person 2 --recording 0 walk.mcap"""
EXTRA = "train"

DATA_SETS = ["hapt"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fetch = actions.add_parser("fetch", help="fetch it into the cache and check its hash")
    info = actions.add_parser("info", help="people, splits, recordings and labels")
    record = actions.add_parser("record", help="write one recording as an MCAP file")
    for action in (fetch, info, record):
        action.add_argument("name", choices=DATA_SETS, help="the data set")
    record.add_argument("--person", required=True, help="the wearer, as 'armlet data info' names them")
    record.add_argument(
        "--recording", type=int, default=0, metavar="N", help="which of the person's (default 0, the first)"
    )
    record.add_argument("out", type=Path, metavar="OUT.mcap")


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    from .. import hapt

    if args.action == "fetch":
        path = hapt.fetch()
        print(f"{args.name}: {path} ({path.stat().st_size / 1e6:.1f} MB, hash checked)")
    elif args.action == "info":
        _info()
    else:
        _record(args)
    return 0


def _info() -> None:
    from collections import Counter

    from rich.console import Console
    from rich.table import Table

    from .. import hapt

    recordings = hapt.load()
    table = Table(title="HAPT: acc (g) and gyro (rad/s) at 50 Hz from a waist-worn phone")
    for heading in ("split", "people", "recordings", "minutes"):
        table.add_column(heading, justify="left" if heading in ("split", "people") else "right")
    for split, people in hapt.SPLITS.items():
        chosen = [recording for recording in recordings if recording.person in people]
        minutes = sum(len(recording.streams["acc"].times_ns) for recording in chosen) / hapt.RATE_HZ / 60
        table.add_row(split, ", ".join(people), str(len(chosen)), f"{minutes:.1f}")
    seconds: Counter[str] = Counter()
    for recording in recordings:
        for label in recording.labels:
            seconds[label.name] += label.end_ns - label.start_ns
    labels = Table(title="Labels")
    labels.add_column("label")
    labels.add_column("minutes", justify="right")
    for name in hapt.LABELS.values():
        labels.add_row(name, f"{seconds[name] / 60e9:.1f}")
    console = Console()
    console.print(table)
    console.print(labels)


def _record(args: argparse.Namespace) -> None:
    from armlet_runtime.errors import UsageError
    from armlet_runtime.recording import write_recording

    from .. import hapt

    chosen = [recording for recording in hapt.load() if recording.person == args.person]
    if not 0 <= args.recording < len(chosen):
        raise UsageError(
            f"HAPT's person {args.person} has {len(chosen)} recordings, counted from 0; "
            f"there is no recording {args.recording} ('armlet data info hapt' lists people)"
        )
    write_recording(args.out, chosen[args.recording])
    print(f"{chosen[args.recording].name}: {args.out}")
