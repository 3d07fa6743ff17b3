"""The summary that ``armlet export`` prints at its end."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from armlet_runtime.bundle import AGGREGATOR, step_of
from armlet_runtime.views import SubsetCell, figures_table

from ..pipeline import ExportReport


def print_summary(report: ExportReport) -> None:
    """Print the table of the certificate, and what else a person wants to know of the bundle."""
    console = Console()
    console.print(_table(report))
    for line in _lines(report):
        console.print(line, highlight=False, soft_wrap=True)


def _table(report: ExportReport) -> Table:
    table = figures_table(
        "engine", "subset", "macro-F1", "interval", "PyTorch", "agree", "QAT", "RMSE",
        title=f"Proven on {report.certificate.windows} windows of {report.certificate.data}",
    )  # fmt: skip
    previous = ""
    for row in report.certificate.rows:
        table.add_row(
            row.engine if row.engine != previous else "",
            SubsetCell(row.subset),
            f"{row.macro_f1:.4f}",
            f"{row.macro_f1_low:.2f}-{row.macro_f1_high:.2f}",
            f"{row.macro_f1_pytorch:.4f}",
            f"{row.agreement:.2%}",
            f"{row.quantised_agreement:.2%}",
            f"{row.quantised_rmse:.2g}",
        )
        previous = row.engine
    return table


def _lines(report: ExportReport) -> Iterator[str]:
    yield (
        f"interval: {report.certificate.interval}; agree: same label as the float model; QAT, RMSE: "
        "against the model with its rounding simulated"
    )
    sizes: dict[str, int] = {}
    kinds: dict[str, set[str]] = {}
    for program in report.programs:
        sizes[program.engine] = sizes.get(program.engine, 0) + program.bytes
        kinds.setdefault(program.engine, set()).add(program.precision)
    yield "programs: " + ", ".join(
        f"{engine} {'/'.join(sorted(kinds[engine]))} {size / 1000:.0f} kB" for engine, size in sizes.items()
    )
    if report.engines_agree:
        pairs = "; ".join(f"{pair} {share:.2%}" for pair, share in report.engines_agree.items())
        yield f"same label in the worst subset: {pairs}"
    if any(proof.steps is not None for proof in report.proofs):
        yield _incremental(report)
    first_engine = report.certificate.rows[0].engine
    errors = ", ".join(
        f"{row.subset} {row.ece_uncalibrated:.3f} -> {row.ece:.3f}"
        for row in report.certificate.rows
        if row.engine == first_engine
    )
    yield f"calibration error on {first_engine}: {errors}"
    yield f"bundle: {report.bundle} ({report.bytes / 1000:.0f} kB), signed by {report.key_id}"


def _incremental(report: ExportReport) -> str:
    parts = dict.fromkeys(program.part for program in report.programs)
    steps = [part for part in parts if step_of(part) in parts]
    short = [part for part in parts if part not in (AGGREGATOR, *steps, *map(step_of, steps))]
    differences = ", ".join(f"{proof.engine} {proof.steps:.2g}" for proof in report.proofs)
    without = f"; windows too short for steps: {', '.join(short)}" if short else ""
    return f"incremental: {', '.join(steps)}{without}; largest difference from whole windows: {differences}"
