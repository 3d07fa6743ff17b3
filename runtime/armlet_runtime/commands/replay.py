"""``armlet replay``: the live loop on a recording."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .model_arguments import add_model_arguments, add_run_options
from .output_arguments import keep_earlier

if TYPE_CHECKING:
    from ..live import Run
    from ..signals import Packet, Recording
    from ..views import LineView, Monitor

NAME = "replay"
HELP = "Run a bundle's model on a recorded run: the same packets give the same decisions, byte for byte."
EXAMPLE = """armlet replay walk.mcap model.armlet --decisions decisions.jsonl
  armlet replay walk.mcap file:/var/lib/armlet/slot --speed 1"""
EXTRA = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("recording", type=Path, help="recording (.mcap), live or imported")
    add_model_arguments(parser)
    add_run_options(parser)
    parser.add_argument(
        "--speed",
        type=times,
        metavar="X",
        help="show the recording at X times its live speed (with --web: 1); default: as fast as possible, in lines",
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
    import time

    from ..bluetooth import run_main
    from ..errors import DataError
    from ..files import write_json
    from ..live import Comparison, DecisionLines, LiveCore, Run, Tally, open_model, since_process_start_s
    from ..model import Policy
    from ..signals import decoded, packets_of, read_recording
    from ..views import LineView, Monitor, make_view

    recording = read_recording(args.recording)
    if recording.truncated:
        print(f"armlet: {args.recording} has no end (its writer was killed): replaying what there is", file=sys.stderr)
    opened = open_model(args.bundle, args.key, args.engine, Policy(args.floor, args.unknown_below))
    modalities = opened.bundle.manifest.modalities
    try:
        packets, notices = packets_of(recording, modalities)
    except DataError as error:
        raise DataError(f"{args.recording}: {error}") from error
    for sentence in notices:
        print(sentence, flush=True)
    ended_ns = _ended_ns(args.recording, recording, packets[-1].arrival_ns)
    ready_s = since_process_start_s()
    # A recording that began in the middle of a run has another grid of windows.
    comparable = recording.meta.get("bundle") == opened.bundle.digest and recording.decisions
    live = recording.decisions if comparable and decoded(recording.decisions[0]).index == 0 else []
    core = LiveCore(opened.model, None, opened.policy)
    speed = args.speed if args.speed is not None or args.web is None else 1.0
    began_ns = time.monotonic_ns()
    with Run(opened, core) as run:
        tally = run.add(Tally(core))
        if args.decisions is not None:
            keep_earlier(args.decisions)
            run.add(DecisionLines(args.decisions))
        comparison = run.add(Comparison(live))
        monitor = run.add(Monitor(core, live=False))
        view = run.add(LineView(opened.policy) if speed is None else make_view(monitor, modalities, opened.policy))
        if speed is None:
            for packet in packets:
                run.turn([packet], packet.arrival_ns)
            run.turn([], ended_ns)
        else:
            run_main(_show(args.web, speed, packets, ended_ns, run, monitor, view))
        run.finish()
    summary = tally.summary(run, ready_s, (time.monotonic_ns() - began_ns) / 1e9)
    if args.json:
        write_json(args.json, summary)
    view.end(summary)  # last: it waits for a terminal that is stalled
    if live:
        print(f"{comparison.same} of the live run's {len(live)} decisions are the same here", flush=True)
    return 0


def _ended_ns(path: Path, recording: Recording, newest_ns: int) -> int:
    """The end of a recording on the clock of the arrivals; ``newest_ns``: arrival of its last packet.

    Raises:
        DataError: The end is a week or more after the last packet.
    """
    from ..errors import DataError
    from ..live import LONGEST_SILENCE_NS
    from ..signals import ENDED_NS

    ended = recording.meta.get(ENDED_NS, "")
    ended_ns = int(ended) if ended.isdecimal() else newest_ns
    if ended_ns - newest_ns >= LONGEST_SILENCE_NS:
        raise DataError(f"{path}: its end, at {ended_ns} ns, is a week or more after its last packet")
    return ended_ns


async def _show(
    web: str | None, speed: float, packets: list[Packet], ended_ns: int, run: Run, monitor: Monitor, view: LineView
) -> None:
    """Play the packets at a speed, with the page if ``--web`` asks for it."""
    from contextlib import AsyncExitStack

    from ..bluetooth import play
    from ..views import parse_address, serve_page

    async with AsyncExitStack() as stack:
        if web is not None:
            serving = serve_page(parse_address(web), monitor, run.opened.bundle.manifest.modalities)
            page = run.add(await stack.enter_async_context(serving))
            view.say(f"the page is at {page.url}")
        await play(packets, ended_ns, speed, run.turn)
