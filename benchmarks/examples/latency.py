"""Measure a bundle on this computer: latency, memory and cold start of each engine.

Usage: ``python latency.py model.armlet SECONDS [signing.key.pub]``. Prints a line for each engine; ratios between
engines hold, because their calls take turns in one process.
"""

import sys
from pathlib import Path

from armlet_runtime.checks import DECISION, measure_engines


def main(bundle: str, seconds: str, *keys: str) -> None:
    """Measure."""
    report = measure_engines(Path(bundle), [Path(key) for key in keys], seconds=float(seconds))
    for figures in report.engines:
        timing, fresh = figures.timings[DECISION], figures.fresh
        print(
            f"{figures.engine}: a decision takes {timing.p50_us:.0f} us (p99 {timing.p99_us:.0f}), "
            f"{fresh.resident_bytes / 2**20:.0f} MiB, {fresh.cold_start_s:.2f} s from a cold start"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
