"""Tables of the suites' reports: on the terminal, and in Markdown between two marks that name the suite."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from armlet_runtime.errors import UsageError
from armlet_runtime.files import write_atomic

from . import bench_one_shot, bench_specialists
from .bench_masking import MaskingReport
from .bench_methods import Figures, SuiteReport
from .bench_one_shot import OneShotReport
from .bench_specialists import MadeReport

Report = SuiteReport | MaskingReport | OneShotReport | MadeReport
"""What a suite gives; each names its suite, and says whether it was a quick one."""


class Table(NamedTuple):
    """A title, the names of the columns, and the cells."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(report: Report) -> list[Table]:
    """What a report says."""
    match report:
        case MaskingReport():
            made = _masking(report)
        case OneShotReport():
            made = [Table(*bench_one_shot.cells(report))]
        case MadeReport():
            made = [Table(*bench_specialists.cells(report))]
        case SuiteReport():
            made = _methods(report)
    if report.quick:
        made = [table._replace(title=f"{table.title} (quick: the figures are void)") for table in made]
    return made


def show(report: Report, console: Console) -> None:
    """Print them."""
    for table in tables(report):
        shown = RichTable(title=table.title)
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if number else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)


def insert(path: Path, report: Report) -> None:
    """Put them into a Markdown file, in place of what stands between ``<!-- suite NAME -->`` and ``<!-- end -->``.

    Raises:
        UsageError: The file cannot be read, or has no such marks.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    begin, end = f"<!-- suite {report.suite} -->", "<!-- end -->"
    between = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if not between.search(text):
        raise UsageError(f"{path} has no lines '{begin}' and '{end}' to put the tables between")
    body = "\n".join(_markdown(table) for table in tables(report))
    write_atomic(path, between.sub(lambda found: f"{found[1]}{body}{found[2]}", text, count=1).encode())


def _markdown(table: Table) -> str:
    lines = [table.columns, ["---"] + ["---:"] * (len(table.columns) - 1), *table.rows]
    return "\n".join([f"{table.title}:", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _methods(report: SuiteReport) -> list[Table]:
    methods = {
        figures.method: [one for one in report.methods if one.method == figures.method] for figures in report.methods
    }
    trained = {method: seeds for method, seeds in methods.items() if seeds[0].finetuned}
    where = f"macro-F1 on {report.windows} windows of {report.split} people"
    made = []
    if trained:
        subsets = [score.subset for score in next(iter(trained.values()))[0].finetuned]
        made.append(Table(
            f"Fine-tuned with all labels, {where}; in brackets the specialist of that subset",
            ["method", "parameters", "seeds", *subsets],
            [[method, f"{seeds[0].parameters:,}", str(len(seeds)), *_with_specialists(seeds)]
             for method, seeds in trained.items()],
        ))  # fmt: skip
        people = list(next(iter(trained.values()))[0].finetuned[0].people)
        made.append(Table(
            f"The same by person ({subsets[0]})",
            ["method", *people],
            [[method, *(_mean([one.finetuned[0].people[person] for one in seeds]) for person in people)]
             for method, seeds in trained.items()],
        ))  # fmt: skip
    few = report.methods[0].few_label
    made.append(Table(
        f"Linear probe with k labelled windows of each class, mean and deviation of {few[0].seeds} draws, {where}",
        ["method", *(f"k = {one.k}" for one in few), "all labels"],
        [[method, *_few(seeds), _mean([one.probe[0].macro_f1 for one in seeds])] for method, seeds in methods.items()],
    ))  # fmt: skip
    return made


def _with_specialists(seeds: list[Figures]) -> list[str]:
    cells = []
    for number in range(len(seeds[0].finetuned)):
        one_model = _mean([one.finetuned[number].macro_f1 for one in seeds])
        specialist = _mean([one.specialists[number].macro_f1 for one in seeds])
        cells.append(f"{one_model} ({specialist})")
    return cells


def _few(seeds: list[Figures]) -> list[str]:
    cells = []
    for place in range(len(seeds[0].few_label)):
        scores = [one.few_label[place] for one in seeds]
        cells.append(f"{_mean([one.macro_f1 for one in scores])} ± {_mean([one.deviation for one in scores])}")
    return cells


def _masking(report: MaskingReport) -> list[Table]:
    subsets = list(report.rows[0].embedding)
    title = (
        f"Armlet's small model after {report.epochs} epochs, macro-F1 on {report.split} people: linear probe on the "
        f"encoders with {report.k} labelled windows of each class, and on the embedding of each subset"
    )
    rows = []
    for row in report.rows:
        way = row.variant
        tokens = way.objective == "cocoa"  # it compares tokens, and hides none
        choices = ["-"] * 3 if tokens else [way.strategy, f"{way.keep:g}", way.mask]
        embedding = [f"{row.embedding[name]:.3f}" if name in row.embedding else "-" for name in subsets]
        rows.append([way.objective, *choices, f"{row.few_label:.3f}", *embedding])
    return [Table(title, ["objective", "strategy", "keep", "mask policy", f"k = {report.k}", *subsets], rows)]


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}"
