"""A decision and its parts, as the live loop makes them: encoders, aggregator, and all together."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from armlet_runtime.bundle import AGGREGATOR, Bundle
from armlet_runtime.checks import DECISION, cases
from armlet_runtime.model import BundleModel

Measure = Callable[[Callable[[], object]], None]


@pytest.mark.benchmark(group="encoder")
def test_encoders(measure: Measure, bundle: Bundle, model: BundleModel) -> None:
    """Normalisation and encoder of every modality, one after another."""
    parts = [call for name, call in cases(bundle, model).items() if name.startswith("encoder ")]

    def all_encoders() -> None:
        for encode in parts:
            encode(0)

    measure(all_encoders)


@pytest.mark.benchmark(group="aggregator")
def test_aggregator(measure: Measure, bundle: Bundle, model: BundleModel) -> None:
    call = cases(bundle, model)[AGGREGATOR]
    measure(lambda: call(0))


@pytest.mark.benchmark(group="decision")
def test_decision(measure: Measure, bundle: Bundle, model: BundleModel) -> None:
    call = cases(bundle, model)[DECISION]
    measure(lambda: call(0))
