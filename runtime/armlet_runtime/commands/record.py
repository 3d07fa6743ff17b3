"""``armlet record``: packets of wearables as they arrive, for replays and training."""

from __future__ import annotations

import argparse
from pathlib import Path

from .bluetooth_arguments import add_bluetooth_arguments, chosen_names

NAME = "record"
HELP = "Record what Bluetooth wearables send, packet by packet; a killed recording is readable up to its last second."
EXAMPLE = """armlet record walk.mcap --wearables "Polar H10 12345678" --duration 600
  armlet record walk.mcap --wearables Armlet-Acc,Armlet-Gyro --person p01"""
EXTRA = ""

LOOK_S = 15.0
"""With ``--wearables any``, time in which further wearables are looked for: scanning costs the radio's time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("out", type=Path, metavar="OUT.mcap", help="new recording; an existing file is not touched")
    add_bluetooth_arguments(parser)
    parser.add_argument("--person", default="", metavar="ID", help="who wears them, for splits by person")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write packets by wearable")


def run(args: argparse.Namespace) -> int:
    """Record until the duration is over or Ctrl-C."""
    from ..bluetooth import run_main

    return run_main(_record(args))


async def _record(args: argparse.Namespace) -> int:
    import time
    from collections import Counter

    from ..bluetooth import Session, drive, open_bluetooth
    from ..errors import DataError
    from ..files import write_json
    from ..signals import BEGAN, ENDED_NS, Packet, RecordingWriter, now_text
    from ..views import BackgroundWriter, LineView

    counts: Counter[str] = Counter()
    begin_s = time.monotonic()
    view = LineView(writer=BackgroundWriter())  # a stalled terminal must not stop the recording
    async with open_bluetooth(args.bluetooth) as bluetooth:
        names = await chosen_names(args, bluetooth)
        session = Session(
            bluetooth, names, complete=lambda: bool(session.links) and time.monotonic() - begin_s > LOOK_S
        )
        view.links(session.links)
        with RecordingWriter.create(args.out, args.out.stem, args.person, {BEGAN: now_text()}) as writer:

            def turn(packets: list[Packet], now_ns: int) -> None:
                for packet in packets:
                    writer.packet(packet)
                    counts[packet.wearable] += packet.kind == "data"
                view.tick(now_ns)

            ended_ns = await drive(session, turn, args.duration)
            writer.add_meta({ENDED_NS: str(ended_ns)})
    view.close()
    if writer.problem:
        raise DataError(
            f"{args.out} could not be written to its end: {writer.problem}; {writer.lost} packets are lost, and those "
            "before are in the recording"
        )
    result = {"packets": dict(counts), "dropped_packets": session.dropped}
    print(f"{args.out}: {', '.join(f'{name} {n} packets' for name, n in counts.items()) or 'nothing came'}")
    if args.json:
        write_json(args.json, result)
    return 0
