"""``armlet run``: the model live, on wearables over Bluetooth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .bluetooth_arguments import add_bluetooth_arguments, wearable_names
from .model_arguments import add_floor_option, add_model_arguments, add_unknown_option, add_web_option

if TYPE_CHECKING:
    from ..live import Opened

NAME = "run"
HELP = "Run a bundle's model live on Bluetooth wearables; it goes on with what is left when a sensor is lost."
EXAMPLE = """armlet run model.armlet
  armlet run file:/var/lib/armlet/slot --wearables Armlet-Acc,Armlet-Gyro --decisions decisions.jsonl
  armlet run model.armlet --bluetooth bumble:usb:0 --duration 60 --record walk.mcap --json summary.json
  armlet run model.armlet --web"""
EXTRA = ""

LOOK_NS = 200_000_000
"""How often a run of a slot looks whether another bundle is in use there."""

RESTART = 75
"""Exit code of a run whose slot has a bundle for other signals or windows now: start it again (EX_TEMPFAIL)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_model_arguments(parser)
    add_floor_option(parser)
    add_unknown_option(parser)
    add_bluetooth_arguments(parser)
    add_web_option(parser)
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="record what arrives and what is decided (.mcap), for 'armlet replay'",
    )
    parser.add_argument("--decisions", type=Path, metavar="FILE", help="write the decisions as JSON lines")
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
    import asyncio

    from ..live import open_model, since_process_start_s
    from ..model import Policy

    opened = open_model(args.bundle, args.key, args.engine, Policy(args.floor, args.unknown_below))
    return asyncio.run(_run(args, opened, since_process_start_s()))


async def _run(args: argparse.Namespace, opened: Opened, ready_s: float) -> int:
    import time
    from contextlib import AsyncExitStack, ExitStack

    from ..bluetooth import Session, drive, open_bluetooth
    from ..decisions import Decision
    from ..errors import ArmletError, WearableError
    from ..files import Lines, write_json
    from ..install import SCHEME, Follower
    from ..live import (
        NOT_A_NUMBER,
        LiveCore,
        Notifier,
        RunControls,
        Tally,
        layer_path,
        load_programs,
        open_sinks,
    )
    from ..modalities import subset_name
    from ..model import LayerWatch, left_behind
    from ..signals import Packet, Recorder
    from ..views import Monitor, make_view, parse_address, serve_page

    model, bundle = opened.model, opened.bundle
    if not opened.policy.layer.changes and (others := left_behind(layer_path(args.bundle, bundle.digest))):
        print(f"classes were enrolled for another bundle ({', '.join(others)}): this one needs them enrolled again")
    core = LiveCore(model, time.monotonic_ns, opened.policy)
    tally = Tally()
    with ExitStack() as stack:
        lines = stack.enter_context(Lines(args.decisions))
        hop_s = model.manifest.window.hop_s
        sinks = stack.enter_context(open_sinks(args.mqtt, args.lsl, hop_s, core.labels))
        manager = stack.enter_context(Notifier())
        recorder = stack.enter_context(Recorder())

        def record(path: Path) -> None:
            recorder.start(path, {"bundle": bundle.digest, "engine": model.engine.name})

        if args.record is not None:
            record(args.record)
        async with AsyncExitStack() as links_and_page:
            bluetooth = await links_and_page.enter_async_context(open_bluetooth(args.bluetooth))
            modalities = {modality.name: modality.rate_hz for modality in model.manifest.modalities}
            session = Session(bluetooth, wearable_names(args), modalities, lambda: core.complete)
            follower = None
            # A recording is of one bundle, so that its replay is the run again.
            if args.bundle.startswith(SCHEME) and args.record is None:
                follower = Follower(Path(args.bundle.removeprefix(SCHEME)), bundle, args.key)
                stack.callback(follower.close)
            print(f"looking for {', '.join(wearable_names(args)) or 'wearables'}; Ctrl-C ends the run", flush=True)
            monitor = Monitor(core)
            monitor.links(session.links)
            page = None
            if args.web is not None:
                controls = RunControls(args.bundle, lambda: bundle, args.engine, core, recorder, record)
                serving = serve_page(parse_address(args.web), monitor, model.manifest.modalities, controls)
                page = await links_and_page.enter_async_context(serving)
            view = make_view(monitor, model.manifest.modalities, opened.policy)
            if page is not None:
                view.say(f"the page is at {page.url}")
            manager.ready()
            manager.status("no wearable has sent yet")
            began_ns = time.monotonic_ns()

            def take(packet: Packet) -> list[Decision]:
                recorder.write(packet)
                decisions = core.packet(packet)
                if page is not None:  # nothing else begins a recording later
                    counts = core.wearables[packet.wearable].counts.values()
                    recorder.remember(packet, sum(one.samples for one in counts))
                return decisions

            def out(decisions: list[Decision]) -> None:
                for decision in decisions:
                    line = decision.to_json()
                    lines.write(line)
                    recorder.decision(decision.decided_ns, line)
                    sinks.send(decision, core.labels)
                    monitor.decision(decision)
                    view.decision(decision, tally.add(decision))
                    subset = subset_name(decision.subset)
                    manager.status(f"no decision: {decision.reason}" if decision.reason else f"decides on {subset}")
                    if follower is not None and decision.reason != NOT_A_NUMBER and decision.latency_s is not None:
                        follower.decided(decision.latency_s)
                view.links(session.links)

            newest_ns = looked_ns = began_ns

            def follow(follower: Follower) -> None:
                nonlocal model, bundle
                try:
                    changed = follower.look(core.start_ns is not None)
                    if changed is not None:
                        other = load_programs(args.bundle, changed, args.engine, core.policy)
                        if not core.can_become(other.model):
                            # What this run was started with does not fit; whoever keeps it going starts it anew.
                            follower.report(restarting=True)
                            raise SystemExit(RESTART)
                        core.become(other.model, other.policy)
                        model.close()
                        model, bundle = other.model, changed
                        view.became(f"{model.manifest.name} {model.manifest.version}", other.policy)
                except ArmletError as error:
                    follower.failed(str(error))
                    view.problem(f"{error}; going on with {model.manifest.version}")
                follower.report()

            watch = LayerWatch()

            def learn() -> None:
                """Take up what 'armlet enrol' has changed since."""
                try:
                    changed = watch.look(layer_path(args.bundle, bundle.digest), bundle.digest, bundle.manifest)
                except ArmletError as error:
                    view.problem(f"{error}; going on with the classes that there are")
                else:
                    if changed is not None:
                        core.set_layer(changed)

            def due(packets: list[Packet], now_ns: int) -> int | None:
                nonlocal newest_ns, looked_ns
                newest_ns = now_ns
                if follower is not None and recorder.path is None and now_ns - looked_ns >= LOOK_NS:
                    looked_ns = now_ns
                    follow(follower)
                    learn()
                for packet in packets:
                    out(take(packet))
                out(core.advance(now_ns))
                for sentence in sinks.news():
                    view.problem(sentence)
                view.tick(now_ns)
                if page is not None:
                    page.tick(now_ns)
                manager.alive()  # every decision that is due is out
                return core.due_ns()

            failure: WearableError | None = None
            try:
                ended_ns = await drive(session, due, args.duration)
            except WearableError as error:
                if core.start_ns is None:
                    view.close()
                    raise
                failure, ended_ns = error, newest_ns  # Bluetooth is gone; what was done until now still counts
            except BaseException:
                view.close()
                raise
            if recorder.path is not None:
                recorder.stop(ended_ns)
            links = {name: (link.state, link.problem) for name, link in session.links.items()}
            summary = tally.summary(
                bundle.digest, core, ended_ns, ready_s, (ended_ns - began_ns) / 1e9, links, session.dropped,
                sinks.close(),
            )  # fmt: skip
        view.end(summary)
    if args.json:
        write_json(args.json, summary)
    if failure is not None:
        raise failure
    return 0
