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
    from ..bundle import Bundle
    from ..live import Stretch
    from ..model import BundleModel, Example, Layer
    from ..signals import Packet

NAME = "enrol"
HELP = "Teach a board a new class from a single example; it is kept beside the bundle, and can be undone and removed."
EXAMPLE = """armlet enrol sit-down file:/var/lib/armlet/slot --wearables "Polar H10 12345678" --from 5s
  armlet enrol sit-down file:/var/lib/armlet/slot --recording walk.mcap --at 63.5
  armlet enrol --list file:/var/lib/armlet/slot
  armlet enrol --remove sit-down file:/var/lib/armlet/slot
  armlet enrol --undo file:/var/lib/armlet/slot"""
EXTRA = ""

PATIENCE_S = 60.0
"""Time without a sensor after which a live enrolment is given up."""

MOST_OCCURRENCES = 5
"""Number of further occurrences of an example that are listed."""


def length(text: str) -> float:
    """Seconds, with or without their unit."""
    return seconds(text.removesuffix("s"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="the new class, or a class that gets a further example")
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
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--list", action="store_true", help="list the classes that were enrolled for the bundle")
    actions.add_argument("--undo", action="store_true", help="take back the last change, be it an example or a removal")
    actions.add_argument("--remove", metavar="NAME", help="take a class away, with all its examples")
    add_key_option(parser)
    add_engine_option(parser)
    add_bluetooth_option(parser)
    add_wearables_option(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the classes after the change")


def run(args: argparse.Namespace) -> int:
    """Change the enrolled classes, or list them."""
    from ..errors import UsageError
    from ..files import write_json
    from ..live import layer_path
    from ..model import Layer, change_layer, left_behind, read_layer

    teaching = not (args.list or args.undo or args.remove)
    if teaching is (args.name is None):
        raise UsageError(
            "give the NAME of a class to enrol and the BUNDLE, or --list, --undo or --remove NAME and BUNDLE"
        )
    if (args.recording is None) is not (args.at is None):
        raise UsageError("--recording FILE and --at S go together: where in the recording the example begins")
    bundle = load_bundle(args)
    path = layer_path(args.bundle, bundle.digest)
    layer = read_layer(path, bundle.digest, bundle.manifest)  # an error is reported before the person moves
    change: Callable[[Layer], Layer] | None = None
    occurrences: list[Stretch] | None = None
    if teaching:
        example, occurrences = _teach(args, bundle)
        change = partial(Layer.enrol, name=args.name, example=example)
    elif args.undo:
        change = Layer.undo
    elif args.remove:
        change = partial(Layer.remove, name=args.remove)
    if change is not None:
        layer = change_layer(path, bundle.digest, bundle.manifest, change)
    _show(layer, [modality.name for modality in bundle.manifest.modalities])
    print(f"{path}: revision {layer.revision}")
    if occurrences is not None:
        _show_occurrences(occurrences)
    if others := left_behind(path):
        print(f"classes for other bundles, which this bundle cannot use: {', '.join(others)}")
    if args.json:
        write_json(args.json, {"path": str(path), "revision": layer.revision, "classes": layer.classes()})
    return 0


def _teach(args: argparse.Namespace, bundle: Bundle) -> tuple[Example, list[Stretch] | None]:
    """An example of the new class, and its further occurrences in the recording; None for a live example."""
    from ..bluetooth import run_main
    from ..live import other_occurrences
    from ..model import Bank, BundleModel, check_name, make_example, taken_for

    check_name(args.name, bundle.manifest)
    bank = Bank(bundle.manifest, bundle.read)
    model = BundleModel.from_bundle(bundle, args.engine)
    packets = _packets(args, model) if args.recording is not None else None
    windows, source = run_main(_live(args, model)) if packets is None else _recorded(args, model, packets)
    if (label := taken_for(model, windows)) is not None:
        print(f"the model is sure that all of this is '{label}': the two will not be told apart")
    example = make_example(model, bank, windows, source)
    if packets is None:
        return example, None
    return example, other_occurrences(model, args.name, example, packets, args.at, args.length)


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
    """The windows of an example in a recording, and the name of their source in the layer."""
    from ..errors import EnrolmentError
    from ..live import recorded_windows

    windows = recorded_windows(model, packets, args.at, args.length)
    if not windows:
        raise EnrolmentError(f"{args.recording} has no whole window with a sensor in it after --at {args.at:g}")
    return windows, f"{args.recording.name} at {args.at:g} s"


async def _live(args: argparse.Namespace, model: BundleModel) -> tuple[list[dict[str, Float32]], str]:
    """The windows of an example from the wearables, from the moment at which all sensors send; and its source."""
    import asyncio
    import time
    from contextlib import aclosing

    from ..api import Live
    from ..bluetooth import ANY, open_bluetooth
    from ..errors import EnrolmentError

    window = model.manifest.window
    length_s = max(args.length or 0.0, window.length_s)
    names = {modality.name for modality in model.manifest.modalities}
    async with open_bluetooth(args.bluetooth) as bluetooth:
        wearables = await chosen_names(args, bluetooth, names) or (ANY,)
    live = Live(model, None, args.bluetooth, wearables)
    give_up = time.monotonic() + PATIENCE_S
    # Before the first sample there are no decisions by which to measure the time.
    silent = asyncio.Event()
    patience = asyncio.get_running_loop().call_later(PATIENCE_S, silent.set)
    end_ns: int | None = None
    async with aclosing(live.decisions(silent)) as decisions:
        async for decision in decisions:
            patience.cancel()
            if end_ns is None and (set(decision.subset) == names or (decision.subset and time.monotonic() > give_up)):
                missing = ", ".join(sorted(names - set(decision.subset)))
                if missing:
                    print(f"{missing} is missing: the class will be known only where it is missing")
                print(f"now, for {length_s:g} s: {args.name}", flush=True)
                end_ns = time.monotonic_ns() + round((length_s + window.hop_s) * 1e9)
            elif end_ns is not None and decision.window_end_ns >= end_ns:
                return live.core.recent(length_s), "live"
            elif end_ns is None and time.monotonic() > give_up:
                break
    raise EnrolmentError(
        f"no sensor was there for {PATIENCE_S:g} s: 'armlet wearables scan' lists the wearables in reach, but for "
        "those that are connected to another run ('armlet service status')"
    )


def _show(layer: Layer, names: Sequence[str]) -> None:
    """Print a line for each class."""
    from ..modalities import subset_name, subsets

    every = [subset_name(subset) for subset in subsets(names)]
    for name, examples in layer.classes().items():
        enrolled = {subset for example in examples for subset in example.prototypes}
        lacking = [subset for subset in every if subset not in enrolled]
        sources = ", ".join(f"{example.source} ({example.windows} windows)" for example in examples)
        print(f"{name}: {sources}" + (f"; not known on {', '.join(lacking)}" if lacking else ""))
    if not layer.classes():
        print("no classes are enrolled for this bundle")


def _show_occurrences(stretches: Sequence[Stretch]) -> None:
    """Print the further occurrences of a new example in the recording, the longest first."""
    if not stretches:
        print("it is found nowhere else in the recording")
        return
    longest = sorted(stretches, key=lambda stretch: -stretch.length_s)
    times = "once" if len(longest) == 1 else f"{len(longest)} times"
    places = ", ".join(f"{s.begin_s:.1f} s ({s.length_s:.1f} s of '{s.label}')" for s in longest[:MOST_OCCURRENCES])
    more = f", and {len(longest) - MOST_OCCURRENCES} more" if len(longest) > MOST_OCCURRENCES else ""
    print(f"elsewhere in the recording it is found {times}: at {places}{more}")
    print("if that is another activity, take the example back with --undo and show a better one")
