"""``armlet replay``: the live loop on a recording."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .model_arguments import add_floor_option, add_model_arguments, add_unknown_option, load_certified

NAME = "replay"
HELP = "Run a bundle's model on a recorded run: the same packets give the same decisions, byte for byte."
EXAMPLE = """armlet replay walk.mcap model.armlet --decisions decisions.jsonl
  armlet replay walk.mcap file:/var/lib/armlet/slot --real-time"""
EXTRA = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("recording", type=Path, help="recording (.mcap), live or imported")
    add_model_arguments(parser)
    add_floor_option(parser)
    add_unknown_option(parser)
    parser.add_argument("--real-time", action="store_true", help="take as long as the run took")
    parser.add_argument("--decisions", type=Path, metavar="FILE", help="write the decisions as JSON lines")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a summary")


def run(args: argparse.Namespace) -> int:
    """Replay."""
    import time

    from ..errors import DataError
    from ..live import LONGEST_SILENCE_NS, LiveCore
    from ..outputs import Lines, write_json
    from ..playing import packets_of
    from ..recording import ENDED_NS, read_recording
    from ..summary import Tally, since_process_start_s
    from ..view import LineView

    recording = read_recording(args.recording)
    if recording.truncated:
        print(f"armlet: {args.recording} has no end (its writer was killed): replaying what there is", file=sys.stderr)
    model, bundle, certified = load_certified(args)
    try:
        packets, said = packets_of(recording, model.manifest.modalities)
    except DataError as error:
        raise DataError(f"{args.recording}: {error}") from error
    for sentence in said:
        print(sentence, flush=True)
    ready_s = since_process_start_s()
    core = LiveCore(model, None, args.floor, certified, args.unknown_below)
    tally = Tally()
    view = LineView(certified)
    # Sleeping keeps this distance between the recording's clock and the host's.
    began_ns = time.monotonic_ns()
    offset_ns = began_ns - packets[0].arrival_ns
    with Lines(args.decisions) as lines:
        for packet in packets:
            if args.real_time:
                time.sleep(max(0, packet.arrival_ns + offset_ns - time.monotonic_ns()) / 1e9)
            for decision in core.packet(packet):
                lines.write(decision.to_json())
                view.decision(decision, tally.add(decision))
        ended = recording.meta.get(ENDED_NS, "")
        newest_ns = packets[-1].arrival_ns
        ended_ns = int(ended) if ended.isdecimal() else newest_ns
        if ended_ns - newest_ns >= LONGEST_SILENCE_NS:
            raise DataError(f"{args.recording} says that it ended at {ended_ns} ns, a week after its last packet")
        for decision in core.advance(ended_ns):
            lines.write(decision.to_json())
            view.decision(decision, tally.add(decision))
    ran_s = (time.monotonic_ns() - began_ns) / 1e9
    summary = tally.summary(model, bundle.digest, core, ended_ns, ready_s, ran_s, certified=certified, floor=args.floor)
    view.end(summary)
    if args.json:
        write_json(args.json, summary)
    return 0
