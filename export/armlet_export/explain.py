"""The contents of a bundle's programs, or of those that a run would get, before hours of training and proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from armlet_runtime.bundle import Bundle

from .backends import BACKENDS, LoweredPart, Part, check_precision, litert_delegates, lower_part, read_program
from .choose_precision import AUTO, part_of
from .pipeline import ProgramReport, Trained, program_part, program_report
from .quantise import learn_ranges, prepare_model

RANGE_BATCHES = 2
"""Training batches from which an untrained run's ranges are taken: they decide no size and no operator."""


def explain_bundle(bundle: Bundle) -> list[ProgramReport]:
    """The contents of a bundle's programs.

    Raises:
        ExportError: An int8 program stayed in float, or a part of a ``.pte`` is outside of its delegate.
    """
    reports = []
    for engine, programs in bundle.manifest.engines.items():
        for part, ref in programs.by_part.items():
            data = bundle.read(ref.member)
            program = read_program(engine, data)
            check_precision(program, ref.precision)
            reports.append(program_report(engine, part, ref.member, LoweredPart(data, ref.precision, program)))
    return reports


def explain_run(
    trained: Trained, engines: Sequence[str], step: Callable[[], None] = lambda: None
) -> list[ProgramReport]:
    """What would be in the programs of a run: lowered without training, with ranges from a few batches.

    Args:
        trained: The run.
        engines: Some of :data:`armlet_export.backends.BACKENDS`.
        step: Called after each program.

    Raises:
        ExportError: A program cannot be made, or stayed in float.
    """
    kinds = {part: "int8" if kind == AUTO else kind for part, kind in trained.precision.items()}
    examples = {part: trained.description.signature(part).example() for part, kind in kinds.items() if kind == "int8"}
    student = prepare_model(trained.model, examples)
    learn_ranges(student, True)
    batches = trained.batches(0)
    for _ in range(RANGE_BATCHES):
        windows, present, _ = next(batches)
        student(windows, present)
    learn_ranges(student, False)
    reports = []

    def make(part: str, kind: str) -> Part:
        return part_of(trained.model, student, trained.description, part, kind)

    programs = kinds | {step: kinds[name] for step, name in trained.description.step_parts.items()}
    for engine in (engine for engine in BACKENDS if engine in engines):
        for part, kind in programs.items():
            lowered = lower_part(engine, program_part(make, trained.description, part, kind))
            reports.append(program_report(engine, part, f"{part}.{BACKENDS[engine].suffix}", lowered))
            step()
    return reports


def table(reports: Sequence[ProgramReport]) -> Any:
    """The programs as a table for rich."""
    from armlet_runtime.views import figures_table

    headings = ("engine", "part", "type", "kB", "int8", "MACs", "live", "plan", "inside")
    shown = figures_table(*headings, aligned_left=3)
    for report in reports:
        shown.add_row(
            report.engine,
            report.part,
            report.precision,
            f"{report.bytes / 1000:.1f}",
            f"{report.int8_weight_share:.1%}",
            f"{report.operations:,}",
            f"{report.live_bytes / 1000:.1f}",
            "-" if report.planned_bytes is None else f"{report.planned_bytes / 1000:.1f}",
            "-" if report.delegates is None else str(report.delegates),
        )
    return shown


def lines(reports: Sequence[ProgramReport]) -> list[str]:
    """The legend of the table's columns, then each program's operators inside the delegate, and outside with why."""
    text = [
        "int8: share of weight bytes; MACs: multiplications with additions of one run; live: activations that must be "
        "kept at once, plan: memory that a .pte plans for by itself (both kB); inside: delegates of a .pte"
    ]
    for report in reports:
        inside = ", ".join(f"{count} {kind}" for kind, count in sorted(report.operators.items()))
        text.append(f"{report.engine} {report.part}: {inside}")
        text += [f"  outside: {kind} ({why})" for kind, why in report.outside.items()]
    return text


def delegated_when_loaded(bundle: Bundle) -> Mapping[str, str]:
    """For each LiteRT program of a bundle, how many of its operators XNNPACK took when it was loaded here."""
    programs = bundle.manifest.engines.get("litert")
    if programs is None:
        return {}
    delegates = {}
    for part, ref in programs.by_part.items():
        count = litert_delegates(bundle.read(ref.member))
        delegates[part] = f"{count} delegate" + ("s" if count != 1 else "")
    return delegates
