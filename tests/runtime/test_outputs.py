"""What a run gives out: the tally in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from armlet_runtime.decisions import Decision
from armlet_runtime.live.core import LiveCore
from armlet_runtime.live.open_bundle import Opened
from armlet_runtime.live.run import Run
from armlet_runtime.live.summary import MOST_TRANSITIONS, Summary, Tally
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.policy import Policy

from .conftest import SmallBundle


@pytest.fixture(scope="module")
def opened(small_bundle: SmallBundle) -> Iterator[Opened]:
    bundle = small_bundle.open()
    model = BundleModel.from_bundle(bundle)
    yield Opened(model, bundle, Policy())
    model.close()


def decided(index: int, subset: tuple[str, ...] = ("acc",), latency_s: float = 0.01) -> Decision:
    """A decision with an embedding of 12 numbers, as the small model's."""
    end_ns = 1_000_000_000 + index * 500_000_000
    embedding = tuple(0.123456789 + n for n in range(12)) if subset else ()
    label, reason = ("walking", None) if subset else (None, "no sensor")
    scores = (0.7, 0.1, 0.1, 0.1) if subset else ()
    ages: dict[str, float | None] = {"acc": 0.01, "gyro": None}
    return Decision(
        index, end_ns, end_ns, subset, label, scores, embedding, ages, {"acc": 1.0, "gyro": 0.0}, "litert", reason,
        label, (), latency_s, latency_s / 10,
    )  # fmt: skip


def summary_of(tally: Tally, opened: Opened) -> Summary:
    return tally.summary(Run(opened, LiveCore(opened.model)), 0.0, 0.0, links={})


def test_a_tally_of_a_long_run_is_small_and_right_to_one_percent(opened: Opened) -> None:
    """Eight hours of half-second hops, with the subset changing all the time."""
    latencies = np.random.default_rng(0).lognormal(-5, 1.0, 60_000)
    tally = Tally(LiveCore(opened.model))
    tracemalloc.start()
    try:
        for index, latency_s in enumerate(latencies.tolist()):
            tally.decision(decided(index, ("acc",) if index % 2 else ("acc", "gyro"), latency_s))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000, f"{held} bytes are kept of 60 000 decisions"
    summary = summary_of(tally, opened)
    assert summary.latency_s is not None and summary.compute_s is not None
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert getattr(summary.latency_s, name) == pytest.approx(np.percentile(latencies, percent), rel=0.01)
    assert summary.latency_s.max == latencies.max()
    limit_s = opened.bundle.manifest.presence.max_wait_s + 0.05
    assert summary.late == int((latencies > limit_s).sum()) > 0
    assert summary.decisions == 60_000 and summary.subsets == {"acc+gyro": 30_000, "acc": 30_000}
    assert len(summary.transitions) == MOST_TRANSITIONS and summary.transitions[-1].index == 59_999
    assert summary.transitions_left_out == 60_000 - MOST_TRANSITIONS


def test_a_tally_of_no_decision_and_of_one(opened: Opened) -> None:
    tally = Tally(LiveCore(opened.model))
    assert summary_of(tally, opened).latency_s is None
    tally.decision(decided(0, latency_s=0.0))  # a clock may stand still
    spread = summary_of(tally, opened).latency_s
    assert spread is not None and spread.max == 0.0 and spread.p50 <= spread.p99 <= spread.max
