"""Cold start to the first decision, and resident memory, of each engine in fresh processes."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from armlet_runtime.checks import FreshStart, fresh_start

ROUNDS = 3


@pytest.mark.benchmark(group="fresh process")
def test_fresh_process(benchmark: BenchmarkFixture, bundle_file: tuple[Path, list[Path]], engine_name: str) -> None:
    """The time is of the whole process; ``extra_info`` has the cold start and the memory, as medians."""
    path, key_files = bundle_file
    starts: list[FreshStart] = []

    def start() -> None:
        starts.append(fresh_start(path, key_files, engine_name))

    benchmark.pedantic(start, rounds=ROUNDS)  # type: ignore[no-untyped-call]  # the library gives it none
    for name in FreshStart.__struct_fields__:
        benchmark.extra_info[name] = statistics.median(getattr(start, name) for start in starts)
    assert 0 < benchmark.extra_info["before_engine_bytes"] < benchmark.extra_info["resident_bytes"]
