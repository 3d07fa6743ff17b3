"""``armlet replay``: the live loop on a recording."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .model_arguments import add_floor_option, add_model_arguments, add_unknown_option, add_web_option

NAME = "replay"
HELP = "Run a bundle's model on a recorded run: the same packets give the same decisions, byte for byte."
EXAMPLE = """armlet replay walk.mcap model.armlet --decisions decisions.jsonl
  armlet replay walk.mcap file:/var/lib/armlet/slot --speed 1"""
EXTRA = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("recording", type=Path, help="recording (.mcap), live or imported")
    add_model_arguments(parser)
    add_floor_option(parser)
    add_unknown_option(parser)
    add_web_option(parser)
    parser.add_argument(
        "--speed",
        type=times,
        metavar="X",
        help="show it as it was live, X times as fast (with --web: 1); default: as fast as it goes, in lines",
    )
    parser.add_argument("--decisions", type=Path, metavar="FILE", help="write the decisions as JSON lines")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a summary")


def times(text: str) -> float:
    """A speed on the command line: 0.01 to 1,000 times."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0.01 to 1000")
    return value


def run(args: argparse.Namespace) -> int:
    """Replay."""
    import asyncio
    import time

    from ..bluetooth import play
    from ..errors import DataError
    from ..files import Lines, write_json
    from ..live import LONGEST_SILENCE_NS, LiveCore, Tally, open_model, since_process_start_s
    from ..model import Policy
    from ..signals import ENDED_NS, Packet, decoded, packets_of, read_recording
    from ..views import LineView, Monitor, Page, make_view, parse_address, serve_page

    recording = read_recording(args.recording)
    if recording.truncated:
        print(f"armlet: {args.recording} has no end (its writer was killed): replaying what there is", file=sys.stderr)
    opened = open_model(args.bundle, args.key, args.engine, Policy(args.floor, args.unknown_below))
    model = opened.model
    try:
        packets, said = packets_of(recording, model.manifest.modalities)
    except DataError as error:
        raise DataError(f"{args.recording}: {error}") from error
    for sentence in said:
        print(sentence, flush=True)
    ended = recording.meta.get(ENDED_NS, "")
    newest_ns = packets[-1].arrival_ns
    ended_ns = int(ended) if ended.isdecimal() else newest_ns
    if ended_ns - newest_ns >= LONGEST_SILENCE_NS:
        raise DataError(f"{args.recording} says that it ended at {ended_ns} ns, a week after its last packet")
    ready_s = since_process_start_s()
    core = LiveCore(model, None, opened.policy)
    tally = Tally()
    monitor = Monitor(core, live=False)
    speed = args.speed if args.speed is not None or args.web is None else 1.0
    modalities = model.manifest.modalities
    view = LineView(opened.policy) if speed is None else make_view(monitor, modalities, opened.policy)
    page: Page | None = None

    async def show(speed: float) -> int:
        nonlocal page
        if args.web is None:
            return await play(packets, ended_ns, speed, turn)
        async with serve_page(parse_address(args.web), monitor, modalities) as page:
            view.say(f"the page is at {page.url}")
            return await play(packets, ended_ns, speed, turn)

    # Of a recording that began in the middle of a run the windows lie elsewhere.
    comparable = recording.meta.get("bundle") == opened.bundle.digest and recording.decisions
    live = recording.decisions if comparable and decoded(recording.decisions[0]).index == 0 else []
    same = 0

    began_ns = time.monotonic_ns()
    with Lines(args.decisions) as lines:

        def turn(packets: list[Packet], now_ns: int) -> None:
            nonlocal same
            for decision in [one for packet in packets for one in core.packet(packet)] + core.advance(now_ns):
                lines.write(decision.to_json())
                monitor.decision(decision)
                view.decision(decision, tally.add(decision))
                if decision.index < len(live):
                    same += decoded(live[decision.index]).untimed() == decision
            view.tick(now_ns)
            if page is not None:
                page.tick(now_ns)

        try:
            if speed is None:
                for packet in packets:
                    turn([packet], packet.arrival_ns)
                turn([], ended_ns)
            else:
                ended_ns = asyncio.run(show(speed))
        finally:
            view.close()
    ran_s = (time.monotonic_ns() - began_ns) / 1e9
    summary = tally.summary(opened.bundle.digest, core, ended_ns, ready_s, ran_s)
    view.end(summary)
    if live:
        print(f"{same} of the live run's {len(live)} decisions are the same here", flush=True)
    if args.json:
        write_json(args.json, summary)
    return 0
