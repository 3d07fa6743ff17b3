"""Results of the demo: figures from the files of its stages, as a table and as a report."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.table import Table as TerminalTable

from armlet_runtime.bundle import open_bundle, trusted_keys
from armlet_runtime.checks import BenchReport, LiveScore, PlayEvent, score_live
from armlet_runtime.decisions import Decision
from armlet_runtime.errors import DataError
from armlet_runtime.install import current_bundle
from armlet_runtime.live import Summary
from armlet_runtime.model import BundleModel
from armlet_runtime.signals import Label, Recording, Wearable, read_recording
from armlet_train.evaluation import Evaluation

from ..pipeline import ExportReport
from . import html as page
from .stages import ENGINES, LOST

T = TypeVar("T")


class Figures(msgspec.Struct, frozen=True):
    """Everything that the demo measured; what ``armlet demo --json`` writes."""

    evaluations: dict[str, Evaluation]
    """``pytorch`` and engine names to figures on test people."""
    few_label: Evaluation
    export: ExportReport
    live: Summary
    live_score: LiveScore
    replays_identical: bool
    """Whether the replays of the live recording gave the live decisions, but for the two times that only a run has."""
    bench: BenchReport
    stage_seconds: dict[str, float]


def collect(root: Path, seconds: dict[str, float]) -> Figures:
    """Read what the stages wrote, and score the live run.

    Raises:
        DataError: A file of a stage is missing or damaged.
    """
    engines = {engine: _read(root / f"evaluate-{engine}.json", Evaluation) for engine in ENGINES}
    live = _read(root / "live.json", Summary)
    bundle = open_bundle(current_bundle(root / "board"), trusted_keys())
    decisions = _decisions(root / "live.jsonl")
    return Figures(
        evaluations={"pytorch": _read(root / "evaluate-pytorch.json", Evaluation), **engines},
        few_label=_read(root / "few-label.json", Evaluation),
        export=_read(root / "export.json", ExportReport),
        live=live,
        live_score=score_live(
            decisions,
            _played(root / "played.jsonl"),
            read_recording(root / "recording.mcap"),
            BundleModel.from_bundle(bundle, live.engine),
        ),
        replays_identical=[_untimed(decision) for decision in decisions] == _decisions(root / "replay.jsonl"),
        bench=_read(root / "bench.json", BenchReport),
        stage_seconds=seconds,
    )


def make_table(figures: Figures) -> TerminalTable:
    """The demo's closing table."""
    subsets = [score.subset for score in figures.evaluations["pytorch"].subsets]
    result = TerminalTable(title="Results of the demo", title_style="bold")
    result.add_column("")
    for subset in subsets:
        result.add_column(subset, justify="right")

    def row(name: str, *values: str) -> None:
        result.add_row(name, *values, *[""] * (len(subsets) - len(values)))

    for name, precision in _engine_names(figures).items():
        scores = [f"{score.macro_f1:.3f}" for score in figures.evaluations[name].subsets]
        row(f"macro-F1, test people: {name} {precision}", *scores)
    result.add_section()
    by_subset = {score.subset: score for score in figures.live_score.subsets}
    live = [by_subset.get(subset) for subset in subsets]
    row("macro-F1, live over Bluetooth", *[page.dash(score and score.macro_f1_live, "{:.3f}") for score in live])
    row("the same windows offline", *[page.dash(score and score.macro_f1_offline, "{:.3f}") for score in live])
    row("live windows with a label", *[page.dash(score and score.windows, "{}") for score in live])
    row("live decisions, of them missed", str(figures.live_score.decisions), str(figures.live_score.missed))
    masked, whole = _worst(figures)
    row("sensor lost: decided without it, past the limit", page.dash(masked, "{:+.2f} s"))
    row("sensor back: decided with it again", page.dash(whole, "{:.2f} s"))
    row("replay gives the live decisions", "yes" if figures.replays_identical else "NO")
    result.add_section()
    memory, latency = figures.live.memory, figures.live.compute_s
    row("live process: memory, cold start", f"{memory['resident_bytes'] / 1e6:.0f} MB",
        page.dash(figures.live.cold_start_s, "{:.1f} s"))  # fmt: skip
    if latency is not None:
        row("live decision, p50 and p99", f"{latency.p50 * 1e6:.0f} µs", f"{latency.p99 * 1e6:.0f} µs")
    for engine in figures.bench.engines:
        timing = engine.timings["decision"]
        row(f"{engine.engine}: decision p50, p99", f"{timing.p50_us:.0f} µs", f"{timing.p99_us:.0f} µs")
        fresh = engine.fresh
        row(
            f"{engine.engine}: memory, cold start",
            f"{fresh.resident_bytes / 1e6:.0f} MB",
            f"{fresh.cold_start_s:.2f} s",
        )
    result.add_section()
    row("bundle", f"{figures.export.bytes / 1000:.0f} kB")
    row("the whole demo", f"{sum(figures.stage_seconds.values()):.0f} s")
    return result


def make_report(root: Path, figures: Figures) -> str:
    """The demo's report as HTML."""
    sections = [_quality(figures), _live(root, figures), _resources(figures), _few_label(figures), _origin(figures)]
    summary = (
        "A model was pretrained without labels, fine-tuned, quantised, proven, signed and deployed, then it decided "
        f"live on two Bluetooth wearables while the gyroscope's link was cut {_times(len(figures.live_score.losses))}. "
        "Recordings: HAPT (Reyes-Ortiz et al., 2016), real people with a phone at the waist; the wearables that played "
        "them are virtual."
    )
    return page.page("armlet demo", summary, sections)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _quality(figures: Figures) -> page.Section:
    labels = figures.evaluations["litert"].labels
    rows = []
    for name, precision in _engine_names(figures).items():
        evaluation = figures.evaluations[name]
        for score in evaluation.subsets:
            people = sorted(score.people.values())
            rows.append([f"{name} {precision}", score.subset, f"{score.macro_f1:.4f}", f"{people[0]:.3f}",
                         f"{people[len(people) // 2]:.3f}", f"{people[-1]:.3f}"])  # fmt: skip
    confusions = {score.subset: np.array(score.confusion) for score in figures.evaluations["litert"].subsets}
    return page.Section(
        "On people never seen, whatever sensor is left",
        f"Macro-F1 of six activities on {figures.evaluations['litert'].windows} windows of nine test people, by the "
        "very programs in the bundle, for every subset of the sensors; and the spread over people. Below: where the "
        "int8 LiteRT programs are wrong.",
        [page.Table(["programs", "sensors", "macro-F1", "lowest person", "median", "highest"], rows, 2)],
        [page.figure_confusions(confusions, labels)],
    )


def _live(root: Path, figures: Figures) -> page.Section:
    recording, log = read_recording(root / "recording.mcap"), _played(root / "played.jsonl")
    start = next(event for event in log if event.event == "start")
    losses = []
    for i, event in enumerate(log):
        if event.event == "link_lost":
            back = next((e for e in log[i:] if e.event == "link_back"), log[-1])
            losses.append(
                ((event.monotonic_ns - start.monotonic_ns) / 1e9, (back.monotonic_ns - start.monotonic_ns) / 1e9)
            )
    trace = page.LiveTrace(
        signals=_received(read_recording(root / "live.mcap"), start.monotonic_ns),
        decisions=[((d.window_end_ns - start.monotonic_ns) / 1e9, d) for d in _decisions(root / "live.jsonl")],
        truth=[
            Label(label.start_ns - start.recording_ns, label.end_ns - start.recording_ns, label.name)
            for label in recording.labels
        ],
        losses=losses,
        lost=LOST,
    )
    rows = [
        [score.subset, str(score.windows), f"{score.macro_f1_live:.3f}", f"{score.macro_f1_offline:.3f}",
         f"{100 * score.agreement:.1f} %", str(score.unknown)]
        for score in figures.live_score.subsets
    ]  # fmt: skip
    lost = [
        [
            f"{loss.lost_at_s:.1f} s",
            page.dash(loss.masked_after_s, "{:+.2f} s"),
            page.dash(loss.whole_after_s, "{:.2f} s"),
        ]
        for loss in figures.live_score.losses
    ]
    spread, compute = figures.live.latency_s, figures.live.compute_s
    decisions = _decisions(root / "live.jsonl")
    drawn = [page.figure_live(trace, figures.evaluations["litert"].labels)]
    if spread is not None and compute is not None:
        latency_ms = [1e3 * d.latency_s for d in decisions if d.latency_s is not None]
        drawn.append(page.figure_latency(latency_ms, [1e6 * d.compute_s for d in decisions if d.compute_s is not None]))
    return page.Section(
        "Live over Bluetooth, with a link that breaks",
        f"{figures.live_score.decisions} decisions, {figures.live_score.missed} missed. 'Offline' is what the same "
        "programs say about the same windows of the recording; 'unknown' are decisions that were not sure enough to "
        "name a class. 'Decided without it' counts from the staleness limit after the link was cut; 'decided with it "
        "again' from the moment the link could come back.",
        [
            page.Table(["sensors", "windows", "macro-F1 live", "macro-F1 offline", "same decision", "unknown"], rows),
            page.Table(["link cut at", "decided without it after", "decided with it again after"], lost),
        ],
        drawn,
    )


def _resources(figures: Figures) -> page.Section:
    engines = figures.bench.engines
    sizes: dict[str, float] = {}
    for program in figures.export.programs:
        name = f"{program.engine} {program.precision}"
        sizes[name] = sizes.get(name, 0.0) + program.bytes / 1000
    rows = [
        [engine.engine, engine.detail, f"{engine.timings['decision'].p50_us:.0f}",
         f"{engine.timings['decision'].p99_us:.0f}", f"{engine.ratios['decision']:.2f}",
         f"{engine.fresh.resident_bytes / 1e6:.0f}", f"{engine.fresh.cold_start_s:.2f}"]
        for engine in engines
    ]  # fmt: skip
    live = figures.live
    text = (
        "One thread, on this machine; each engine's memory and cold start in a fresh process. Take the ratios, not the "
        f"absolute times: {figures.bench.machine.cpu}. The live process (Bluetooth, recording, screen) held "
        f"{live.memory['resident_bytes'] / 1e6:.0f} MB and came to its first decision "
        f"{page.dash(live.cold_start_s, '{:.1f} s')} after its start, a whole window of 2.56 s included."
    )
    bars = {
        "programs [kB]": sizes,
        "resident memory [MB]": {engine.engine: engine.fresh.resident_bytes / 1e6 for engine in engines},
        "cold start to first decision [ms]": {engine.engine: 1e3 * engine.fresh.cold_start_s for engine in engines},
    }
    head = ["engine", "kernels", "decision p50 [µs]", "p99 [µs]", "ratio", "memory [MB]", "cold start [s]"]
    return page.Section("Size, memory, speed", text, [page.Table(head, rows, 2)], [page.figure_bars(bars)])


def _few_label(figures: Figures) -> page.Section:
    rows = [[str(few.k), f"{few.macro_f1:.3f}", f"± {few.deviation:.3f}"] for few in figures.few_label.few_label]
    return page.Section(
        "Few labels",
        "A linear probe on the pretrained, frozen encoders, with k labelled windows of each activity from training "
        "people, scored on the test people; mean and deviation over 10 draws.",
        [page.Table(["k", "macro-F1", "deviation"], rows)],
    )


def _origin(figures: Figures) -> page.Section:
    stages = [[name, f"{seconds:.0f} s"] for name, seconds in figures.stage_seconds.items()]
    versions = [[name, version] for name, version in figures.bench.versions.items()]
    return page.Section(
        "How it was made",
        f"Bundle digest {figures.export.digest}, signed by {figures.export.key_id}.",
        [page.Table(["stage", "took"], stages), page.Table(["package", "version"], versions)],
    )


def _engine_names(figures: Figures) -> dict[str, str]:
    """Column of the evaluations to its precision, PyTorch first."""
    precisions = {program.engine: program.precision for program in figures.export.programs}
    return {name: precisions.get(name, "float") for name in figures.evaluations}


def _worst(figures: Figures) -> tuple[float | None, float | None]:
    """The slowest answer to a loss and to a return; None if any loss had none."""
    masked = [loss.masked_after_s for loss in figures.live_score.losses]
    whole = [loss.whole_after_s for loss in figures.live_score.losses]
    known_masked = [value for value in masked if value is not None]
    known_whole = [value for value in whole if value is not None]
    return (
        max(known_masked) if known_masked and len(known_masked) == len(masked) else None,
        max(known_whole) if known_whole and len(known_whole) == len(whole) else None,
    )


def _received(live: Recording, start_ns: int) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float32], str]]:
    """Modality name to what arrived of it: times in seconds since ``start_ns``, values, unit."""
    span_ns = live.packets[-1].arrival_ns - live.packets[0].arrival_ns
    wearables: dict[str, Wearable] = {}
    for packet in live.packets:
        wearables.setdefault(packet.wearable, Wearable(packet.wearable, 2 * span_ns)).take(packet)
    received = {}
    for wearable in wearables.values():
        for name, ring in wearable.rings.items():
            times_ns, values = ring.samples(start_ns)
            received[name] = (times_ns / 1e9, values, ring.modality.unit)
    return received


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{path} of the demo cannot be read ({error}); delete its folder and start again") from None


def _decisions(path: Path) -> list[Decision]:
    return [msgspec.json.decode(line, type=Decision) for line in path.read_bytes().splitlines()]


def _untimed(decision: Decision) -> Decision:
    """A decision without what only a live run has."""
    return msgspec.structs.replace(decision, latency_s=None, compute_s=None)


def _played(path: Path) -> list[PlayEvent]:
    return [msgspec.json.decode(line, type=PlayEvent) for line in path.read_bytes().splitlines()]
