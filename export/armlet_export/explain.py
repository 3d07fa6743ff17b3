"""What is in programs, for people: of a bundle, or of a run before the hours of training and proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from armlet_runtime.bundle import Bundle

from . import choose_precision as precision
from .backends import BACKENDS, Lowered, Part, check_precision, litert_delegates, lower_part, read_program
from .pipeline import Material, ProgramReport, program_part, program_report
from .quantise import learn_ranges, prepare_model

RANGE_BATCHES = 2
"""Training batches from which an untrained run's ranges are taken: they decide no size and no operator."""


def explain_bundle(bundle: Bundle) -> list[ProgramReport]:
    """What is in the programs of a bundle.

    Raises:
        ExportError: An int8 program stayed in float, or a part of a ``.pte`` is outside of its delegate.
    """
    reports = []
    for engine, programs in bundle.manifest.engines.items():
        for part, ref in programs.by_part.items():
            data = bundle.read(ref.member)
            program = read_program(engine, data)
            check_precision(program, ref.precision)
            reports.append(program_report(engine, part, ref.member, Lowered(data, ref.precision, program)))
    return reports


def explain_run(
    material: Material, engines: Sequence[str], step: Callable[[], None] = lambda: None
) -> list[ProgramReport]:
    """What would be in the programs of a run: lowered without training, with ranges from a few batches.

    Args:
        material: Of the run.
        engines: Some of :data:`armlet_export.backends.BACKENDS`.
        step: Called after each program.

    Raises:
        ExportError: A program cannot be made, or stayed in float.
    """
    kinds = {part: "int8" if kind == precision.AUTO else kind for part, kind in material.precision.items()}
    examples = {part: material.description.signature(part).example() for part, kind in kinds.items() if kind == "int8"}
    student = prepare_model(material.model, examples)
    learn_ranges(student, True)
    batches = material.batches(0)
    for _ in range(RANGE_BATCHES):
        windows, present, _ = next(batches)
        student(windows, present)
    learn_ranges(student, False)
    reports = []

    def make(part: str, kind: str) -> Part:
        return precision.part_of(material.model, student, material.description, part, kind)

    programs = kinds | {step: kinds[name] for step, name in material.description.step_parts.items()}
    for engine in (engine for engine in BACKENDS if engine in engines):
        for part, kind in programs.items():
            made = lower_part(engine, program_part(make, material.description, part, kind))
            reports.append(program_report(engine, part, f"{part}.{BACKENDS[engine].suffix}", made))
            step()
    return reports


def table(reports: Sequence[ProgramReport]) -> Any:
    """The programs as a table for rich."""
    from rich import box
    from rich.table import Table

    headings = ("engine", "part", "type", "kB", "int8", "MACs", "live", "plan", "inside")
    shown = Table(*headings, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
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
    for column in shown.columns[3:]:
        column.justify = "right"
    return shown


def lines(reports: Sequence[ProgramReport]) -> list[str]:
    """What the table's columns are; the operators of each program, inside the delegate and outside with the reason."""
    told = [
        "int8: share of weight bytes; MACs: multiplications with additions of one run; live: activations that must be "
        "kept at once, plan: memory that a .pte plans for by itself (both kB); inside: delegates of a .pte"
    ]
    for report in reports:
        inside = ", ".join(f"{count} {kind}" for kind, count in sorted(report.operators.items()))
        told.append(f"{report.engine} {report.part}: {inside}")
        told += [f"  outside: {kind} ({why})" for kind, why in report.outside.items()]
    return told


def delegated_when_loaded(bundle: Bundle) -> Mapping[str, str]:
    """For each LiteRT program of a bundle, how many of its operators XNNPACK took when it was loaded here."""
    programs = bundle.manifest.engines.get("litert")
    if programs is None:
        return {}
    found = {}
    for part, ref in programs.by_part.items():
        delegates = litert_delegates(bundle.read(ref.member))
        found[part] = f"{delegates} delegate" + ("s" if delegates != 1 else "")
    return found
