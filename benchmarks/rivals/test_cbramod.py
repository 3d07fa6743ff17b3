"""CBraMod against braindecode's on the same weights, the same machine and in the same run, calls taking turns.

``pytest benchmarks/rivals/test_cbramod.py -s`` prints the ratios; what they were is in ``README.md`` beside this file.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
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
def test_at_least_as_fast_as_braindecode(batch: int, channels: int, patches: int, what: str) -> None:
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

    slow, fast = race(lambda: call(theirs, flat), lambda: call(ours, values))
    print(
        f"\nCBraMod {batch} x {channels} x {patches} {what}: braindecode {slow * 1e3:.1f} ms of CPU, "
        f"armlet {fast * 1e3:.1f} ms, {slow / fast:.2f} times as fast"
    )
    assert slow / fast > 1 - NOISE
