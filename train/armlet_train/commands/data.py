"""``armlet data``: the data sets that armlet knows, and those that people bring."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .training import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..data import Piece

NAME = "data"
HELP = "Fetch, describe, check or prepare a data set, or write one of its recordings to a file."
EXAMPLE = """armlet data info hapt
  armlet data check my-study
  armlet data prepare my-study --out my-study.store
  armlet data record hapt --person 2 --recording 0 walk.mcap"""
EXTRA = "train"


class SplitInfo(msgspec.Struct, frozen=True):
    """The recordings of one split."""

    people: list[str]
    recordings: int
    minutes: float


class DataInfo(msgspec.Struct, frozen=True):
    """What ``armlet data info --json`` writes. ``modalities``: name to channels, unit and rate; minutes by label."""

    name: str
    modalities: dict[str, str]
    splits: dict[str, SplitInfo]
    labels: dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fetch = actions.add_parser("fetch", help="fetch it into the cache and check its hash")
    info = actions.add_parser("info", help="people, splits, recordings and labels")
    check = actions.add_parser("check", help="find every mistake in a folder of armlet's format")
    prepare = actions.add_parser("prepare", help="write it once in the form that training reads without loading it")
    record = actions.add_parser("record", help="write one recording as an MCAP file")
    for action in (fetch, info, prepare, record):
        action.add_argument("name", help="a data set that armlet knows (hapt, pamap2, ...), or a folder")
    for action in (info, prepare, record):
        action.add_argument("--path", type=Path, help="where you keep a data set that cannot be fetched")
    check.add_argument("folder", type=Path, help="the folder; train/DATA.md describes the format")
    prepare.add_argument("--out", type=Path, required=True, metavar="STORE", help="its folder; begun again, it goes on")
    prepare.add_argument("--workers", type=int, default=2, help="processes (2)")
    record.add_argument("--person", required=True, help="the wearer, as 'armlet data info' names them")
    record.add_argument(
        "--recording", type=int, default=0, metavar="N", help="which of the person's (default 0, the first)"
    )
    record.add_argument("out", type=Path, metavar="OUT.mcap")
    for action in (info, check):
        action.add_argument("--json", type=Path, metavar="FILE", help="write it as JSON")


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    if args.action == "fetch":
        return _fetch(args)
    if args.action == "info":
        return _info(args)
    if args.action == "check":
        return _check(args)
    if args.action == "prepare":
        return _prepare(args)
    return _record(args)


def _fetch(args: argparse.Namespace) -> int:
    from armlet_runtime.errors import UsageError

    from ..data.datasets import KNOWN, known_data_set

    if args.name not in KNOWN:
        raise UsageError(f"there is no data set '{args.name}' to fetch; known are {', '.join(KNOWN)}")
    data_set = known_data_set(args.name)
    if data_set.fetch is None:
        raise UsageError(f"{args.name} cannot be fetched: {data_set.bring}")
    path = data_set.fetch()
    size = f" ({path.stat().st_size / 1e6:.1f} MB, hash checked)" if path.is_file() else ""
    print(f"{args.name}: {path}{size}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from armlet_runtime.files import write_json

    info = _read_info(args)
    console = Console()
    table = Table(title=info.name)
    for heading in ("split", "people", "recordings", "minutes"):
        table.add_column(heading, justify="left" if heading in ("split", "people") else "right")
    for split, part in info.splits.items():
        table.add_row(split, ", ".join(part.people), str(part.recordings), f"{part.minutes:.1f}")
    modalities = Table("modality", "channels, unit, rate")
    for name, described in info.modalities.items():
        modalities.add_row(name, described)
    labels = Table("label")
    labels.add_column("minutes", justify="right")
    for label, minutes in info.labels.items():
        labels.add_row(label, f"{minutes:.1f}")
    for panel in (table, modalities, labels):
        console.print(panel)
    if args.json:
        write_json(args.json, info)
    return 0


def _read_info(args: argparse.Namespace) -> DataInfo:
    from ..data import arrow_store, find_data_set, on_grid
    from ..data.datasets import SPLITS

    pieces: dict[str, Iterable[Piece]]
    if arrow_store.is_store(Path(args.name)):
        name, modalities, labels = arrow_store.open_store(Path(args.name))
        pieces = {split: arrow_store.read_pieces(Path(args.name), split, modalities) for split in SPLITS}
    else:
        data_set, entries = find_data_set(args.name, args.path)
        name, modalities, labels = data_set.title, data_set.modalities, data_set.labels
        parts: dict[str, list[Piece]] = {split: [] for split in SPLITS}
        with progress_bar("read") as advance:
            for number, entry in enumerate(entries):
                piece = on_grid(entry.read(), modalities)
                if piece is not None:
                    parts[entry.split].append(dataclasses.replace(piece, signals={}))  # the samples may go
                advance(number + 1, len(entries))
        pieces = {**parts}
    splits, seconds = {}, dict.fromkeys(labels, 0.0)
    for split, recordings in pieces.items():
        kept = list(recordings)
        people = sorted({piece.person for piece in kept}, key=lambda person: (len(person), person))
        splits[split] = SplitInfo(people, len(kept), sum(piece.duration_s for piece in kept) / 60)
        for piece in kept:
            for label in piece.labels:
                seconds[label.name] += (label.end_ns - label.start_ns) / 1e9
    described = {
        modality.name: f"{', '.join(modality.channels)} in {modality.unit} at {modality.rate_hz:g} Hz"
        for modality in modalities
    }
    return DataInfo(name, described, splits, {label: total / 60 for label, total in seconds.items()})


def _check(args: argparse.Namespace) -> int:
    from armlet_runtime.errors import UsageError
    from armlet_runtime.files import write_json

    from ..data import user_folder

    if not args.folder.is_dir():
        raise UsageError(f"{args.folder} is not a folder; train/DATA.md describes what is checked")
    report = user_folder.check(args.folder)
    for line in user_folder.summary_lines(report):
        print(line)
    if args.json:
        write_json(args.json, report)
    return 1 if report.mistakes else 0


def _prepare(args: argparse.Namespace) -> int:
    from armlet_runtime.errors import UsageError

    from ..data import arrow_store, find_data_set

    if args.workers < 1:
        raise UsageError("--workers must be at least 1")
    data_set, entries = find_data_set(args.name, args.path)
    with progress_bar("prepare") as advance:
        arrow_store.prepare(data_set, entries, args.out, args.workers, advance)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"{args.out}: {len(entries)} recordings, {size / 1e9:.2f} GB; give it as [data] name in a recipe")
    return 0


def _record(args: argparse.Namespace) -> int:
    from armlet_runtime.errors import UsageError
    from armlet_runtime.signals import write_recording

    from ..data import find_data_set

    _, entries = find_data_set(args.name, args.path)
    chosen = [entry for entry in entries if entry.person == args.person]
    if not 0 <= args.recording < len(chosen):
        raise UsageError(
            f"{args.name}'s person {args.person} has {len(chosen)} recordings, counted from 0; "
            f"there is no recording {args.recording} ('armlet data info {args.name}' lists people)"
        )
    recording = chosen[args.recording].read()
    write_recording(args.out, recording)
    print(f"{recording.name}: {args.out}")
    return 0
