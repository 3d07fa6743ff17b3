"""Engines: one bare call of the aggregator program, and loading all programs of the bundle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from armlet_runtime.bundle import Bundle
from armlet_runtime.engines import get_engine
from armlet_runtime.model import BundleModel, programs_of


@pytest.mark.benchmark(group="bare program call")
def test_call(measure: Callable[[Callable[[], object]], None], bundle: Bundle, engine_name: str) -> None:
    ref = programs_of(bundle.manifest, engine_name)[1].aggregator
    program = get_engine(engine_name).load(bundle.read(ref.member), ref.inputs, ref.outputs)
    inputs = {name: np.zeros(shape, np.float32) for name, shape in ref.inputs.items()}
    measure(lambda: program(inputs))


@pytest.mark.benchmark(group="load all programs")
def test_load(benchmark: BenchmarkFixture, bundle: Bundle, engine_name: str) -> None:
    def load() -> None:
        BundleModel.from_bundle(bundle, engine_name).close()

    benchmark.pedantic(load, rounds=20, warmup_rounds=2)  # type: ignore[no-untyped-call]  # the library gives it none
