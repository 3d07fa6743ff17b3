"""``armlet wearables simulate``: a recording as virtual wearables on a virtual air."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armlet_runtime.commands import seconds
from armlet_runtime.errors import UsageError

if TYPE_CHECKING:
    from ..virtual import LinkLoss, WearableSpec

NAME = "wearables simulate"
HELP = (
    "Play a recording in real time as virtual wearables, by default a wearable for each modality. The play begins when "
    "every wearable is subscribed to, and ends by itself."
)
EXTRA = "bridge"

# After the last packet: what is on its way arrives before the wearables leave.
LINGER_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("recording", type=Path, help="recording with streams (.mcap)")
    parser.add_argument(
        "--listen",
        required=True,
        metavar="TRANSPORT",
        help="where hosts reach the virtual air: tcp-server:HOST:PORT (port 0: a free one), unix-server:PATH, "
        "or vhci: an adapter of this machine's own BlueZ (as root, after 'modprobe hci_vhci')",
    )
    parser.add_argument(
        "--wearable",
        action="append",
        default=[],
        metavar="MODALITY[+MODALITY..]=NAME[@PROFILE]",
        help="put on this wearable (repeatable), such as ecg+acc='Polar H10 12345678@polar'; then only those given are "
        "put on",
    )
    parser.add_argument("--samples-per-packet", type=int, default=2, metavar="N", help="of IMUs (default 2)")
    parser.add_argument(
        "--drift-ppm",
        type=float,
        default=0.0,
        metavar="PPM",
        help="drift of the wearables' clocks: the first is fast, the next slow, and so on (default 0)",
    )
    parser.add_argument(
        "--link-loss",
        action="append",
        default=[],
        metavar="NAME:START:END",
        help="this wearable (or the one of this modality) is out of reach from START to END seconds (repeatable); the "
        "link ends after its supervision timeout (0.72 s), and a shorter absence only delays",
    )
    parser.add_argument("--start", type=seconds, default=0.0, metavar="S", help="begin S seconds into the recording")
    parser.add_argument("--duration", type=seconds, metavar="S", help="play S seconds (default: to the end)")
    parser.add_argument("--events", type=Path, metavar="FILE", help="write the events as JSON lines")


def run(args: argparse.Namespace) -> int:
    """Play until the recording ends or Ctrl-C."""
    from armlet_runtime.files import Lines
    from armlet_runtime.signals import read_recording

    from ..virtual import AirLink, default_wearables, put_on, serve

    recording = read_recording(args.recording)
    specs = [parse_wearable(text) for text in args.wearable] or default_wearables(recording)
    losses = [parse_link_loss(text, specs) for text in args.link_loss]

    with Lines(args.events) as lines:

        def log(event: dict[str, Any]) -> None:
            lines.write(json.dumps(event).encode())
            about = json.dumps(event["packets"]) if "packets" in event else event["wearable"] or ""
            print(f"{event['event']} {about}".rstrip(), flush=True)

        async def play() -> None:
            task = asyncio.current_task()
            assert task is not None
            # SIGINT too: a shell without job control starts background processes with it ignored.
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
            air = AirLink()
            async with (
                put_on(recording, air, specs, args.samples_per_packet, args.drift_ppm, log) as wearables,
                serve(air, args.listen) as transport,
            ):
                names = list(wearables.wearables)
                print(f"{', '.join(names)} on the air at {transport}", flush=True)
                print(f"silent until {'all are' if len(names) > 1 else 'it is'} subscribed to", flush=True)
                await wearables.run(args.start, args.duration, losses)
                await asyncio.sleep(LINGER_S)

        try:
            asyncio.run(play())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    return 0


def parse_wearable(text: str) -> WearableSpec:
    """Read ``acc=Armlet-Acc``, ``acc+gyro=Armlet-Imu`` or ``ecg=Polar H10 12345678@polar``.

    Raises:
        UsageError: It is not of this form.
    """
    from ..virtual import WearableSpec

    modalities, _, name = text.partition("=")
    if not name or not all(modalities.split("+")):
        raise UsageError(f"--wearable {text}: give MODALITY=NAME or MODALITY+MODALITY=NAME, and @PROFILE if need be")
    name, _, profile = name.partition("@")
    return WearableSpec(name, tuple(modalities.split("+")), profile or None)


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
    if not 0 <= start_s < end_s < math.inf:
        raise UsageError(f"--link-loss {text}: START must not be negative and END must come after it")
    for spec in specs:
        if name == spec.name or name in spec.modalities:
            return LinkLoss(spec.name, start_s, end_s)
    raise UsageError(f"--link-loss {text}: there is no wearable '{name}', only {', '.join(s.name for s in specs)}")
