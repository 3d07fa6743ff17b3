"""Tables of the suites' reports: on the terminal, and in Markdown between two marks that name the suite."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from armlet_runtime.errors import UsageError
from armlet_runtime.files import write_atomic

from . import bench_masking, bench_methods, bench_one_shot, bench_specialists
from .bench_masking import MaskingReport
from .bench_methods import SuiteReport
from .bench_one_shot import OneShotReport
from .bench_specialists import MadeReport
from .grid import Table

Report = SuiteReport | MaskingReport | OneShotReport | MadeReport
"""What a suite gives; each names its suite, and says whether it was a quick one."""


def tables(report: Report) -> list[Table]:
    """What a report says."""
    match report:
        case MaskingReport():
            suite_tables = bench_masking.tables(report)
        case OneShotReport():
            suite_tables = bench_one_shot.tables(report)
        case MadeReport():
            suite_tables = bench_specialists.tables(report)
        case SuiteReport():
            suite_tables = bench_methods.tables(report)
    if report.quick:
        return [table._replace(title=f"{table.title} (quick: the figures are void)") for table in suite_tables]
    return suite_tables


def show(report: Report, console: Console) -> None:
    """Print them."""
    for table in tables(report):
        shown = RichTable(title=table.title)
        for number, column in enumerate(table.columns):
            # Names of subsets have no blanks: without 'fold', rich would cut them.
            shown.add_column(column, justify="right" if number else "left", overflow="fold")
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
    write_atomic(path, between.sub(lambda match: f"{match[1]}{body}{match[2]}", text, count=1).encode())


def _markdown(table: Table) -> str:
    lines = [table.columns, ["---"] + ["---:"] * (len(table.columns) - 1), *table.rows]
    return "\n".join([f"{table.title}:", "", *(f"| {' | '.join(line)} |" for line in lines), ""])
