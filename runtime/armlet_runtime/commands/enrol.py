"""``armlet enrol``: teach a board a new class from an example, live or from a recording."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .bluetooth_arguments import add_bluetooth_option, add_wearables_option, chosen_names, seconds
from .model_arguments import add_engine_option, add_key_option, load_bundle

if TYPE_CHECKING:
    from ..arrays import Float32
    from ..live import Stretch
    from ..model import BundleModel, Layer
    from ..signals import Packet

NAME = "enrol"
HELP = "Teach a board a new class from one example; it is kept beside the bundle, and can be undone and removed."
EXAMPLE = """armlet enrol sit-down file:/var/lib/armlet/slot --wearables "Polar H10 12345678" --from 5s
  armlet enrol sit-down file:/var/lib/armlet/slot --recording walk.mcap --at 63.5
  armlet enrol --list file:/var/lib/armlet/slot
  armlet enrol --remove sit-down file:/var/lib/armlet/slot
  armlet enrol --undo file:/var/lib/armlet/slot"""
EXTRA = ""

# Without a sensor for so long, a live enrolment is given up.
PATIENCE_S = 60.0

# So many places at which an example is found are told.
MOST_TOLD = 5


def length(text: str) -> float:
    """Seconds, with or without their unit."""
    return seconds(text.removesuffix("s"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="the new class, or one to give a further example")
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle file, or file:SLOT for a slot's current bundle")
    parser.add_argument(
        "--from",
        dest="length",
        type=length,
        metavar="S",
        help="learn from the windows within so many seconds, such as 5s (default: one window)",
    )
    parser.add_argument("--recording", type=Path, metavar="FILE", help="learn from a recording instead of live")
    parser.add_argument("--at", type=seconds, metavar="S", help="where in the recording the example begins")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="list the classes that were enrolled for the bundle")
    what.add_argument("--undo", action="store_true", help="take back the last change, be it an example or a removal")
    what.add_argument("--remove", metavar="NAME", help="take a class away, with all its examples")
    add_key_option(parser)
    add_engine_option(parser)
    add_bluetooth_option(parser)
    add_wearables_option(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the classes that there are now")


def run(args: argparse.Namespace) -> int:
    """Change the layer, or list it."""
    from ..errors import UsageError
    from ..files import write_json
    from ..live import found_elsewhere, layer_path
    from ..model import (
        Bank,
        BundleModel,
        Layer,
        change_layer,
        check_name,
        left_behind,
        make_example,
        read_layer,
        taken_for,
    )

    teaching = not (args.list or args.undo or args.remove)
    if teaching is (args.name is None):
        raise UsageError(
            "give the NAME of a class to enrol and the BUNDLE, or --list, --undo or --remove NAME and BUNDLE"
        )
    if (args.recording is None) is not (args.at is None):
        raise UsageError("--recording FILE and --at S go together: where in the recording the example begins")
    bundle = load_bundle(args)
    path = layer_path(args.bundle, bundle.digest)
    layer = read_layer(path, bundle.digest, bundle.manifest)  # what is wrong with it is said before anybody moves
    change: Callable[[Layer], Layer] | None = None
    elsewhere: list[Stretch] | None = None
    if teaching:
        check_name(args.name, bundle.manifest)
        bank = Bank(bundle.manifest, bundle.read)
        model = BundleModel.from_bundle(bundle, args.engine)
        packets = _packets(args, model) if args.recording is not None else None
        windows, source = _live(args, model) if packets is None else _recorded(args, model, packets)
        if (label := taken_for(model, windows)) is not None:
            print(f"the model is sure that all of this is '{label}': the two will not be told apart")
        example = make_example(model, bank, windows, source)
        if packets is not None:
            elsewhere = found_elsewhere(model, args.name, example, packets, args.at, args.length)
        change = partial(Layer.enrol, name=args.name, example=example)
    elif args.undo:
        change = Layer.undo
    elif args.remove:
        change = partial(Layer.remove, name=args.remove)
    if change is not None:
        layer = change_layer(path, bundle.digest, bundle.manifest, change)
    _show(layer, [modality.name for modality in bundle.manifest.modalities])
    print(f"{path}: revision {layer.revision}")
    if elsewhere is not None:
        _show_elsewhere(elsewhere)
    if others := left_behind(path):
        print(f"for other bundles, which this one cannot use: {', '.join(others)}")
    if args.json:
        write_json(args.json, {"path": str(path), "revision": layer.revision, "classes": layer.classes()})
    return 0


def _packets(args: argparse.Namespace, model: BundleModel) -> list[Packet]:
    """The packets of the recording."""
    from ..errors import DataError
    from ..signals import packets_of, read_recording

    try:
        return packets_of(read_recording(args.recording), model.manifest.modalities)[0]
    except DataError as error:
        raise DataError(f"{args.recording}: {error}") from error


def _recorded(
    args: argparse.Namespace, model: BundleModel, packets: list[Packet]
) -> tuple[list[dict[str, Float32]], str]:
    """The windows of an example in a recording, and how the layer names it."""
    from ..errors import EnrolmentError
    from ..live import recorded_windows

    windows = recorded_windows(model, packets, args.at, args.length)
    if not windows:
        raise EnrolmentError(f"{args.recording} has no whole window with a sensor in it after --at {args.at:g}")
    return windows, f"{args.recording.name} at {args.at:g} s"


def _live(args: argparse.Namespace, model: BundleModel) -> tuple[list[dict[str, Float32]], str]:
    """The windows of an example from the wearables, from the moment at which all sensors are there."""
    from ..bluetooth import run_main

    return run_main(_watch(args, model)), "live"


async def _watch(args: argparse.Namespace, model: BundleModel) -> list[dict[str, Float32]]:
    import asyncio
    import time
    from contextlib import aclosing

    from ..api import Live
    from ..bluetooth import ANY, open_bluetooth
    from ..errors import EnrolmentError
    from ..live import LiveCore

    window = model.manifest.window
    length_s = max(args.length or 0.0, window.length_s)
    names = {modality.name for modality in model.manifest.modalities}
    async with open_bluetooth(args.bluetooth) as bluetooth:
        wearables = await chosen_names(args, bluetooth, names) or (ANY,)
    live = Live(model, lambda: LiveCore(model, time.monotonic_ns), args.bluetooth, wearables, None)
    give_up = time.monotonic() + PATIENCE_S
    # Before the first sample there is no decision that could tell the time.
    silent = asyncio.Event()
    patience = asyncio.get_running_loop().call_later(PATIENCE_S, silent.set)
    end_ns: int | None = None
    async with aclosing(live.decisions(silent)) as decisions:
        async for decision in decisions:
            patience.cancel()
            if end_ns is None and (set(decision.subset) == names or (decision.subset and time.monotonic() > give_up)):
                missing = ", ".join(sorted(names - set(decision.subset)))
                if missing:
                    print(f"{missing} is not there: the class will be known only where it is missing")
                print(f"now, for {length_s:g} s: {args.name}", flush=True)
                end_ns = time.monotonic_ns() + round((length_s + window.hop_s) * 1e9)
            elif end_ns is not None and decision.window_end_ns >= end_ns:
                return live.core.recent(length_s)
            elif end_ns is None and time.monotonic() > give_up:
                break
    raise EnrolmentError(
        f"no sensor was there for {PATIENCE_S:g} s: 'armlet wearables scan' lists who is in reach; whoever is "
        "connected to another run ('armlet service status') is not"
    )


def _show(layer: Layer, names: Sequence[str]) -> None:
    """A line for each class."""
    from ..modalities import subset_name, subsets

    every = [subset_name(subset) for subset in subsets(names)]
    for name, examples in layer.classes().items():
        known = {subset for example in examples for subset in example.prototypes}
        lacking = [subset for subset in every if subset not in known]
        told = ", ".join(f"{example.source} ({example.windows} windows)" for example in examples)
        print(f"{name}: {told}" + (f"; not known on {', '.join(lacking)}" if lacking else ""))
    if not layer.classes():
        print("no classes are enrolled for this bundle")


def _show_elsewhere(stretches: Sequence[Stretch]) -> None:
    """Where else in the recording a new example is found, the longest first."""
    if not stretches:
        print("it is found nowhere else in the recording")
        return
    longest = sorted(stretches, key=lambda one: -one.length_s)
    times = "once" if len(longest) == 1 else f"{len(longest)} times"
    told = ", ".join(f"{one.begin_s:.1f} s ({one.length_s:.1f} s of '{one.label}')" for one in longest[:MOST_TOLD])
    more = f", and {len(longest) - MOST_TOLD} more" if len(longest) > MOST_TOLD else ""
    print(f"elsewhere in the recording it is found {times}: at {told}{more}")
    print("if that is something else, take the example back with --undo and show another")
