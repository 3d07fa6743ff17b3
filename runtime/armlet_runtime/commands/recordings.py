"""``armlet recordings``: import recordings of other programs, export and describe those of armlet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..signals import Recording

NAME = "recordings"
HELP = "Import recordings of other programs, export recordings for them, or show what a recording holds."
EXAMPLE = """armlet recordings import Polar_H10_12345678_20260424/ chest.mcap --person anna
  armlet recordings import walk.csv walk.mcap --stream 'acc[m/s2]=ax,ay,az' --time 'clock [ms]'
  armlet recordings export live.mcap live-tables --to csv
  armlet recordings info live.mcap"""
EXTRA = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    import_ = actions.add_parser(
        "import",
        help="convert a recording of another program",
        description="SOURCE is a file or folder of text exports of Polar Sensor Logger, the folder or zip file of an "
        "Empatica E4, an EDF or EDF+ file, an MCAP file, a CSV or Parquet file with a column of times, or a folder "
        "that 'armlet recordings export' wrote. Its contents tell which.",
    )
    import_.add_argument("source", type=Path, metavar="SOURCE", help="file or folder to import")
    import_.add_argument("out", type=Path, metavar="OUT.mcap", help="new recording; an existing file is not touched")
    import_.add_argument("--person", default="", metavar="ID", help="who wore it, for splits by person")
    import_.add_argument(
        "--stream",
        action="append",
        default=[],
        metavar="MODALITY[UNIT]=COLUMN,COLUMN",
        help="modality of these columns of a CSV or Parquet file (repeatable; default: by their names)",
    )
    import_.add_argument("--time", metavar="'COLUMN [UNIT]'", help="column of times of a CSV or Parquet file")
    import_.set_defaults(act=_import)

    export = actions.add_parser("export", help="write a recording for other programs")
    export.add_argument("recording", type=Path, metavar="RECORDING", help="recording (.mcap)")
    export.add_argument("out", type=Path, metavar="OUT", help="new folder of tables, or new file that ends in .edf")
    export.add_argument("--to", choices=("csv", "parquet", "edf"), help="format (default: edf for OUT.edf, else csv)")
    export.set_defaults(act=_export)

    info = actions.add_parser("info", help="show what a recording holds")
    info.add_argument("recording", type=Path, metavar="RECORDING", help="recording (.mcap)")
    info.set_defaults(act=_info)
    for action in (import_, export, info):
        action.add_argument("--json", type=Path, metavar="FILE", help="write the result")


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    from ..files import write_json

    result = args.act(args)
    if args.json:
        write_json(args.json, result)
    return 0


def _import(args: argparse.Namespace) -> dict[str, Any]:
    from ..errors import DataError, UsageError
    from ..formats import ASSUMED, REBUILT, import_recording, parse_stream
    from ..signals import write_recording

    if args.out.suffix != ".mcap":
        raise UsageError(f"{args.out}: a recording's name ends in .mcap")
    if args.out.exists():
        raise DataError(f"{args.out} exists already: choose another name for the new recording")
    streams = [parse_stream(text) for text in args.stream]
    recording = import_recording(args.source, args.out.stem, args.person, streams, args.time)
    write_recording(args.out, recording)
    about = describe(recording)
    _show(about)
    if ASSUMED in recording.meta:
        print(f"The source gives no unit for these columns; assumed: {recording.meta[ASSUMED]}.")
    if REBUILT in recording.meta:
        print(f"Samples bear the time of their delivery, not their own. {recording.meta[REBUILT]}.")
    return about


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from ..errors import UsageError
    from ..formats import export_recording
    from ..signals import read_recording, with_streams

    kind = args.to or ("edf" if args.out.suffix == ".edf" else "csv")
    if args.out.suffix in (".csv", ".parquet") or (args.out.suffix == ".edf") != (kind == "edf"):
        raise UsageError(f"{args.out}: EDF+ goes into a file that ends in .edf, tables into a folder of another name")
    files = export_recording(with_streams(read_recording(args.recording)), args.out, kind)
    for file in files:
        print(file)
    return {"files": [str(file) for file in files]}


def _info(args: argparse.Namespace) -> dict[str, Any]:
    from ..signals import read_recording, with_streams

    about = describe(with_streams(read_recording(args.recording)))
    _show(about)
    return about


def describe(recording: Recording) -> dict[str, Any]:
    """The contents of a recording, as ``--json`` writes them."""
    from collections import Counter

    spans = [(int(s.times_ns[0]), int(s.times_ns[-1])) for s in recording.streams.values() if len(s.times_ns)]
    return {
        "name": recording.name,
        "person": recording.person,
        "meta": recording.meta,
        "truncated": recording.truncated,
        "duration_s": (max(last for _, last in spans) - min(first for first, _ in spans)) / 1e9 if spans else 0.0,
        "streams": [
            {
                "modality": name,
                "channels": stream.modality.channels,
                "unit": stream.modality.unit,
                "rate_hz": stream.modality.rate_hz,
                "samples": len(stream.times_ns),
                "received": _received(stream.times_ns, stream.modality.rate_hz),
            }
            for name, stream in recording.streams.items()
        ],
        "labels": dict(Counter(label.name for label in recording.labels)),
        "packets": dict(Counter(packet.wearable for packet in recording.packets if packet.kind == "data")),
        "decisions": len(recording.decisions),
    }


def _received(times_ns: Any, rate_hz: float) -> float:
    """Share of the samples expected without gaps, at most 1: events such as heartbeats may come faster."""
    if not len(times_ns):
        return 0.0
    return min(1.0, len(times_ns) / (int(times_ns[-1] - times_ns[0]) / 1e9 * rate_hz + 1))


def _show(about: dict[str, Any]) -> None:
    from ..signals import BEGAN

    who = f" of {about['person']}" if about["person"] else ""
    when = f", begun {about['meta'][BEGAN]}" if BEGAN in about["meta"] else ""
    print(f"{about['name']}{who}: {about['duration_s']:.1f} s{when}")
    if about["truncated"]:
        print("It has no end: its writer was killed or the file cut off, and this is all up to the last whole second.")
    for stream in about["streams"]:
        channels = ", ".join(stream["channels"])
        print(
            f"  {stream['modality']:6} {stream['samples']:8} samples at {stream['rate_hz']:g} Hz, "
            f"{stream['received']:.1%} received: {channels} in {stream['unit'] or 'no unit'}"
        )
    for counted in ("packets", "labels"):
        if about[counted]:
            print(f"  {counted}: {', '.join(f'{name} {count}' for name, count in about[counted].items())}")
    if about["decisions"]:
        print(f"  decisions: {about['decisions']}")
