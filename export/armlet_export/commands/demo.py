"""``armlet demo``: the whole path on real recordings, ending in a table and a report."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "demo"
HELP = "Run the whole path on real recordings, from data to live decisions with a sensor lost, and write a report."
EXAMPLE = "armlet demo --out demo"
EXTRA = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder of the demo; a second start goes on in it"
    )
    parser.add_argument(
        "--quick", action="store_true", help="every stage for real but very short: a check of the installation"
    )
    parser.add_argument("--json", type=Path, help="write the figures of the closing table here")


def run(args: argparse.Namespace) -> int:
    """Run the demo, write ``report.html``, and close with the table."""
    from rich.console import Console

    from armlet_runtime.files import write_atomic, write_json

    from ..demo import stages as demo
    from ..tool_log import output_to_log

    console = Console()
    seconds = demo.run(args.out, "quick" if args.quick else "demo", console)
    report = args.out / "report.html"
    with output_to_log(args.out / "tools.log"):
        from ..demo import collect, make_report, make_table

        figures = collect(args.out, seconds)
        write_atomic(report, make_report(args.out, figures).encode())
    console.print(make_table(figures))
    console.print(f"Report: {report.resolve()}", highlight=False, soft_wrap=True)
    if args.json:
        write_json(args.json, figures)
    return 0
