"""CBraMod against braindecode's on the same weights, the same machine and in the same run, calls taking turns.

What the ratios were is in ``benchmarks/README.md``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from armlet_train.models import CBraMod
from tests.support import braindecode_cbramod

ROUNDS = 20

# What two runs on a busy machine differ by; no claim is finer than that.
NOISE = 0.05


def race(theirs: Callable[[], object], ours: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of each one's least disturbed call; they take turns, so what else the machine does meets both."""
    times = np.empty((2, ROUNDS))
    for call in (theirs, ours, theirs, ours):
        call()
    for number in range(ROUNDS):
        for which, call in enumerate((theirs, ours)):
            began = time.process_time()
            call()
            times[which, number] = time.process_time() - began
    return float(times[0].min()), float(times[1].min())


@pytest.mark.skipif(braindecode_cbramod.MISSING is not None, reason=str(braindecode_cbramod.MISSING))
@pytest.mark.parametrize("what", ["forward", "forward+backward"])
@pytest.mark.parametrize(("batch", "channels", "patches"), [(8, 16, 10), (1, 14, 10), (4, 1, 10)])
def test_speed_against_braindecodes(
    batch: int, channels: int, patches: int, what: str, benchmark: BenchmarkFixture, goal: Callable[..., None]
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    theirs: nn.Module = braindecode_cbramod.build(channels, patches)
    ours = CBraMod()
    ours.load_state_dict(theirs.state_dict())
    values = torch.randn(batch, channels, patches, 200)
    flat = values.flatten(2)
    training = what != "forward"
    theirs.train(training)
    ours.train(training)

    def call(model: nn.Module, given: torch.Tensor) -> None:
        with torch.set_grad_enabled(training):
            made = model(given)
            if training:
                model.zero_grad()
                made.square().mean().backward()

    slow, fast = benchmark.pedantic(  # type: ignore[no-untyped-call]
        race, (lambda: call(theirs, flat), lambda: call(ours, values))
    )
    figures = f"{fast * 1e3:.1f} / {slow * 1e3:.1f} ms of CPU"
    goal(f"CBraMod {batch} x {channels} x {patches} {what}: armlet / braindecode", fast / slow, 1 + NOISE, figures)
