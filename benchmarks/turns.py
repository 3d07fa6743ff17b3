"""Times of calls taken in turns: whatever else the machine does meets all of them alike, so their ratios hold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

WINDOWS = 7
TURNS = 40
"""Turns of every call in a window."""
BLOCK = 20
"""Calls in a turn, after one that is not counted: few enough that turns are short against whatever disturbs."""

Call = Callable[[], object]


def medians_us(calls: Mapping[str, Call], windows: int = WINDOWS) -> list[dict[str, float]]:
    """For each of some windows of time, the median (p50) of every call in microseconds."""
    clock = time.perf_counter_ns
    measured = []
    for _ in range(windows):
        times: dict[str, list[int]] = {name: [] for name in calls}
        for _ in range(TURNS):
            for name, call in calls.items():
                call()
                for _ in range(BLOCK):
                    start = clock()
                    call()
                    times[name].append(clock() - start)
        measured.append({name: float(np.median(taken)) / 1000 for name, taken in times.items()})
    return measured


def ratio(windows: list[dict[str, float]], one: str, other: str) -> float:
    """Median over the windows of how many times the other call's p50 the one call's is."""
    return statistics.median(window[one] / window[other] for window in windows)


def median(windows: list[dict[str, float]], name: str) -> float:
    """Median over the windows of a call's p50, in microseconds."""
    return statistics.median(window[name] for window in windows)
