"""``armlet wearables``: put virtual wearables on a virtual air, or look at wearables that are there."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armlet_runtime.errors import UsageError

if TYPE_CHECKING:
    from ..virtual import LinkLoss, WearableSpec

NAME = "wearables"
HELP = "Play a recording as virtual Bluetooth wearables, or look at the wearables that are in reach."
EXAMPLE = """armlet wearables simulate walk.mcap --listen tcp-server:127.0.0.1:9000 --link-loss gyro:60:90
  armlet wearables scan --bluetooth bumble:tcp-client:127.0.0.1:9000
  armlet wearables info Armlet-Acc --json acc.json"""
EXTRA = "bridge"

# After the last packet: what is on its way arrives before the wearables leave.
LINGER_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    simulate = actions.add_parser(
        "simulate",
        help="play a recording as virtual wearables in real time",
        description="Play a recording as virtual wearables, one for each modality by default, in real time. It begins "
        "when every wearable is subscribed to, and ends by itself.",
    )
    simulate.add_argument("recording", type=Path, help="recording with streams (.mcap)")
    simulate.add_argument(
        "--listen",
        required=True,
        metavar="TRANSPORT",
        help="where hosts reach the virtual air: tcp-server:HOST:PORT (port 0: a free one) or unix-server:PATH",
    )
    simulate.add_argument(
        "--wearable",
        action="append",
        default=[],
        metavar="MODALITY[+MODALITY..]=NAME",
        help="put on this wearable (repeatable); then only those given are put on",
    )
    simulate.add_argument("--samples-per-packet", type=int, default=2, metavar="N", help="of IMUs (default 2)")
    simulate.add_argument(
        "--drift-ppm",
        type=float,
        default=0.0,
        metavar="PPM",
        help="drift of the wearables' clocks: the first is fast, the next slow, and so on (default 0)",
    )
    simulate.add_argument(
        "--link-loss",
        action="append",
        default=[],
        metavar="NAME:START:END",
        help="this wearable (or the one of this modality) is out of reach from START to END seconds (repeatable)",
    )
    simulate.add_argument("--start", type=float, default=0.0, metavar="S", help="begin S seconds into the recording")
    simulate.add_argument("--duration", type=float, metavar="S", help="play S seconds (default: to the end)")
    simulate.add_argument("--log", type=Path, metavar="FILE", help="write the events as JSON lines")
    simulate.set_defaults(act=_simulate)


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    return int(args.act(args))


def _simulate(args: argparse.Namespace) -> int:
    from armlet_runtime.recording import read_recording

    from ..air import AirLink, serve
    from ..virtual import default_wearables, put_on

    recording = read_recording(args.recording)
    specs = [parse_wearable(text) for text in args.wearable] or default_wearables(recording)
    losses = [parse_link_loss(text, specs) for text in args.link_loss]

    with ExitStack() as stack:
        lines = None
        if args.log:
            try:
                lines = stack.enter_context(args.log.open("w"))
            except OSError as error:
                raise UsageError(f"cannot write {args.log}: {error.strerror}") from error

        def log(event: dict[str, Any]) -> None:
            if lines is not None:
                lines.write(json.dumps(event) + "\n")
                lines.flush()
            about = event["wearable"] or json.dumps(event.get("packets", ""))
            print(f"{event['event']} {about}".strip(' "'), flush=True)

        async def play() -> None:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
            air = AirLink()
            async with (
                put_on(recording, air, specs, args.samples_per_packet, args.drift_ppm, log) as wearables,
                serve(air, args.listen) as transport,
            ):
                print(f"{', '.join(wearables.wearables)} on the air at {transport}", flush=True)
                await wearables.run(args.start, args.duration, losses)
                await asyncio.sleep(LINGER_S)

        try:
            asyncio.run(play())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    return 0


def parse_wearable(text: str) -> WearableSpec:
    """Read ``acc=Armlet-Acc`` or ``acc+gyro=Armlet-Imu``.

    Raises:
        UsageError: It is not of this form.
    """
    from ..virtual import WearableSpec

    modalities, _, name = text.partition("=")
    if not name or not all(modalities.split("+")):
        raise UsageError(f"--wearable {text}: give MODALITY=NAME or MODALITY+MODALITY=NAME")
    return WearableSpec(name, tuple(modalities.split("+")))


def parse_link_loss(text: str, specs: Sequence[WearableSpec]) -> LinkLoss:
    """Read ``NAME:START:END``; NAME is a wearable's or a modality's.

    Raises:
        UsageError: It is not of this form, or names no wearable.
    """
    from ..virtual import LinkLoss

    name, *span = text.rsplit(":", 2)
    try:
        start_s, end_s = map(float, span)
    except ValueError:
        raise UsageError(f"--link-loss {text}: give NAME:START:END with seconds since the play's start") from None
    if not 0 <= start_s < end_s:
        raise UsageError(f"--link-loss {text}: START must not be negative and END must come after it")
    for spec in specs:
        if name == spec.name or name in spec.modalities:
            return LinkLoss(spec.name, start_s, end_s)
    raise UsageError(f"--link-loss {text}: there is no wearable '{name}', only {', '.join(s.name for s in specs)}")
