"""``armlet bench``: latency, memory and cold start of a bundle's engines on this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .model_arguments import add_bundle_arguments

NAME = "bench"
HELP = "Measure a bundle on this machine: latency of each part, memory and cold start, for every engine."
EXAMPLE = """armlet bench model.armlet --json bench.json
  armlet bench file:/var/lib/armlet/slot --engine litert --engine executorch --seconds 30"""
EXTRA = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_bundle_arguments(parser)
    parser.add_argument(
        "--engine", action="append", default=[], metavar="NAME", help="engine to measure (repeatable; default: all)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="time for all latencies together (default: 10)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure the engines and show the figures."""
    from rich.console import Console

    from ..checks import measure_engines
    from ..files import write_json
    from ..install import bundle_path
    from ..views import figures_table

    report = measure_engines(
        bundle_path(args.bundle),
        args.key,
        args.engine,
        args.seconds,
        progress=lambda text: print(f"armlet: {text}", file=sys.stderr),
    )
    console = Console(highlight=False, markup=False)
    machine = report.machine
    console.print(
        f"{report.model} on {machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 2**30:.1f} GiB, "
        f"{machine.architecture}, {machine.system}, Python {machine.python}, load {report.load_average[0]:.1f}",
        soft_wrap=True,
    )
    for figures in report.engines:
        console.print(f"{figures.engine}: {figures.version}, {figures.detail}", soft_wrap=True)
    for name, reason in report.skipped.items():
        console.print(f"{name}: not measured, {reason}", soft_wrap=True)

    first = report.engines[0].engine
    latency = figures_table("part", "engine", "p50 us", "p90 us", "p99 us", f"p50 / {first}", "calls")
    for part in report.engines[0].timings:
        for figures in report.engines:
            timing = figures.timings[part]
            latency.add_row(
                part, figures.engine, f"{timing.p50_us:.1f}", f"{timing.p90_us:.1f}", f"{timing.p99_us:.1f}",
                f"{figures.ratios[part]:.2f}", str(timing.calls),
            )  # fmt: skip
    console.print(latency)

    fresh = figures_table("engine", "cold start s", "resident MiB", "of it engine MiB", "peak MiB", aligned_left=1)
    for figures in report.engines:
        start = figures.fresh
        fresh.add_row(
            figures.engine,
            f"{start.cold_start_s:.3f}",
            f"{start.resident_bytes / 2**20:.1f}",
            f"{(start.resident_bytes - start.before_engine_bytes) / 2**20:.1f}",
            f"{start.peak_bytes / 2**20:.1f}",
        )
    console.print(fresh)
    if args.json:
        write_json(args.json, report)
    return 0
