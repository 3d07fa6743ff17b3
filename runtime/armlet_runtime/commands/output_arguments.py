"""Arguments of a live run for the files of its packets and decisions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..live import LiveDecisionLines, OutputFolder

KEEP_GB = 1.0
"""Default size of an output folder: two weeks of decisions twice a second."""


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--record``, ``--decisions``, ``--embeddings`` and ``--keep``."""
    parser.add_argument(
        "--record",
        metavar="FILE|FOLDER/",
        help="record packets and decisions (.mcap), for 'armlet replay'; in a folder each start and each "
        "part of a long run has a file of its own",
    )
    parser.add_argument(
        "--decisions", metavar="FILE|FOLDER/", help="write the decisions as JSON lines; a folder as for --record"
    )
    parser.add_argument(
        "--embeddings",
        action="store_true",
        help="write embeddings into a folder of decisions too, which makes it three times as large; a file has them",
    )
    parser.add_argument(
        "--keep",
        type=gigabytes,
        default=KEEP_GB,
        metavar="GB",
        help=f"remove the oldest files of a folder that is larger than this (default: {KEEP_GB:g})",
    )


def gigabytes(text: str) -> float:
    """A size on the command line: 0.001 to 1,000,000 GB."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-3 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of GB from 0.001 to 1000000")
    return value


def decision_lines(args: argparse.Namespace) -> LiveDecisionLines:
    """The output that ``--decisions`` names.

    Raises:
        UsageError: The file or the folder cannot be created.
    """
    from ..live import LiveDecisionLines, OutputFolder, is_folder

    path = Path(args.decisions)
    if is_folder(args.decisions):
        return LiveDecisionLines(OutputFolder(path, "decisions", ".jsonl", round(args.keep * 1e9)), args.embeddings)
    keep_earlier(path)
    return LiveDecisionLines(path)


def recording_folder(args: argparse.Namespace) -> OutputFolder | None:
    """The folder that ``--record`` names; None if it names a file, or was not given.

    Raises:
        UsageError: The folder cannot be created.
    """
    from ..live import OutputFolder, is_folder

    if args.record is None or not is_folder(args.record):
        return None
    return OutputFolder(Path(args.record), "recording", ".mcap", round(args.keep * 1e9))


def keep_earlier(path: Path) -> None:
    """Rename a file that holds decisions of an earlier run, and report the new name.

    Raises:
        UsageError: The file cannot be renamed.
    """
    from ..files import set_aside

    renamed = set_aside(path)
    if renamed is not None:
        print(f"armlet: {path} held decisions of an earlier run, which are in {renamed} now", file=sys.stderr)
