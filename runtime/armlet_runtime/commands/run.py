"""``armlet run``: the model live, on wearables over Bluetooth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .bluetooth_arguments import add_bluetooth_arguments, chosen_names
from .model_arguments import add_model_arguments, add_run_options
from .output_arguments import add_output_arguments, decision_lines, recording_folder

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from ..bluetooth import Session
    from ..errors import WearableError
    from ..live import Notifier, Opened, OutputFolder, Run
    from ..signals import Recorder
    from ..views import LineView

NAME = "run"
HELP = "Run a bundle's model live on Bluetooth wearables; it goes on with what is left when a sensor is lost."
EXAMPLE = """armlet run model.armlet --wearables "Polar H10 12345678"
  armlet run file:/var/lib/armlet/slot --wearables Armlet-Acc,Armlet-Gyro --decisions decisions.jsonl
  armlet run model.armlet --wearables any --bluetooth bumble:usb:0 --duration 60 --record walk.mcap --json summary.json
  armlet run model.armlet --wearables C0:11:22:33:44:55 --web"""
EXTRA = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_model_arguments(parser)
    add_run_options(parser)
    add_bluetooth_arguments(parser)
    add_output_arguments(parser)
    parser.add_argument(
        "--mqtt",
        metavar="URL",
        help="publish the decisions: mqtt://HOST[:PORT]/TOPIC, or mqtts:// for TLS (needs armlet[mqtt])",
    )
    parser.add_argument(
        "--lsl", metavar="NAME", help="stream scores and labels to the Lab Streaming Layer (needs armlet[lsl])"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a summary")


def run(args: argparse.Namespace) -> int:
    """Run until the duration is over or Ctrl-C."""
    from ..bluetooth import run_main
    from ..live import Notifier, open_model, since_process_start_s, wait_for_bundle
    from ..model import Policy

    manager = Notifier()
    wait_for_bundle(args.bundle, manager)
    opened = open_model(args.bundle, args.key, args.engine, Policy(args.floor, args.unknown_below))
    return run_main(_run(args, opened, manager, since_process_start_s()))


async def _run(args: argparse.Namespace, opened: Opened, manager: Notifier, ready_s: float) -> int:
    import time
    from contextlib import AsyncExitStack

    from ..bluetooth import Session, open_bluetooth
    from ..files import write_json
    from ..live import LiveCore, RecordingOutput, Run, ServiceOutput, Tally, open_sinks
    from ..signals import Recorder

    _report_other_classes(args.bundle, opened)
    manifest = opened.bundle.manifest
    core = LiveCore(opened.model, time.monotonic_ns, opened.policy)
    rates_hz = {modality.name: modality.rate_hz for modality in manifest.modalities}
    async with AsyncExitStack() as stack:
        bluetooth = await stack.enter_async_context(open_bluetooth(args.bluetooth))
        names = await chosen_names(args, bluetooth, rates_hz)  # before any file is begun
        recorder = stack.enter_context(Recorder())
        run = stack.enter_context(Run(opened, core))
        tally = run.add(Tally(core))
        lines = run.add(decision_lines(args)) if args.decisions is not None else None
        folder = recording_folder(args)
        run.add(RecordingOutput(recorder, run, folder))
        sinks = run.add(open_sinks(args.mqtt, args.lsl, core))
        _record_or_watch(args, run, recorder, folder)
        session = Session(bluetooth, names, rates_hz, lambda: core.complete)
        view = await _add_views(args, run, recorder, session, stack)
        run.add(ServiceOutput(manager))
        began_ns = time.monotonic_ns()
        failure = await _drive(session, run, args.duration)
        run.finish()
    links = {name: (link.state, link.problem) for name, link in session.links.items()}
    ran_s = (run.newest_ns - began_ns) / 1e9
    reports = [*sinks.reports, *(lines.reports() if lines is not None else ())]
    summary = tally.summary(run, ready_s, ran_s, links, session.dropped, reports)
    if args.json:
        write_json(args.json, summary)
    view.end(summary)  # last: it waits for a terminal that is stalled
    if failure is not None:
        raise failure
    return 0


def _report_other_classes(path: str, opened: Opened) -> None:
    """Print that classes were enrolled, but for another bundle."""
    from ..live import layer_path
    from ..model import left_behind

    others = left_behind(layer_path(path, opened.bundle.digest))
    if others and not opened.policy.layer.changes:
        print(f"classes were enrolled for another bundle ({', '.join(others)}); enrol them for this bundle again")


def _record_or_watch(args: argparse.Namespace, run: Run, recorder: Recorder, folder: OutputFolder | None) -> None:
    """Begin the recording, or watch the slot: a recording is of a single bundle, so that its replay is the run again.

    Raises:
        DataError: The recording cannot be begun.
        BundleError: The slot cannot be written to.
    """
    from ..install import SCHEME
    from ..live import SlotWatch

    if args.record is not None:
        run.start_recording(recorder, Path(args.record) if folder is None else folder.next_file())
    elif args.bundle.startswith(SCHEME):
        run.add(SlotWatch(run, args.bundle, args.key, args.engine, recorder))


async def _add_views(
    args: argparse.Namespace, run: Run, recorder: Recorder, session: Session, stack: AsyncExitStack
) -> LineView:
    """Add the page, if ``--web`` asks for it, and the view that fits standard output."""
    from ..live import RunControls
    from ..views import Monitor, make_view, parse_address, serve_page

    modalities = run.opened.bundle.manifest.modalities
    monitor = run.add(Monitor(run.core))
    monitor.links(session.links)
    page = None
    if args.web is not None:
        controls = RunControls(run, args.bundle, args.engine, recorder)
        serving = serve_page(parse_address(args.web), monitor, modalities, controls)
        page = run.add(await stack.enter_async_context(serving))
    view = run.add(make_view(monitor, modalities, run.opened.policy))
    view.links(session.links)
    if page is not None:
        view.say(f"the page is at {page.url}")
    return view


async def _drive(session: Session, run: Run, duration_s: float | None) -> WearableError | None:
    """Run until the end; the error of a Bluetooth that was lost during the run, whose decisions count nevertheless.

    Raises:
        WearableError: Bluetooth was lost before the first sample.
    """
    from ..bluetooth import drive
    from ..errors import WearableError

    try:
        await drive(session, run.turn, duration_s)
    except WearableError as error:
        if run.core.start_ns is None:
            raise
        return error
    return None
