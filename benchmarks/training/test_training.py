"""A step of training as this device does it, against the same recipe in eager float32, in turns in one process.

``pytest benchmarks/training/test_training.py`` on a GPU tells what bfloat16, compilation and one-kernel AdamW bring,
that nothing in a step waits for the device, which share of a step is work of the GPU, and how near that is to the
fastest matrix product seen in the same run. On a CPU, which trains in eager float32, it tells what bfloat16 would
bring there.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils.flop_counter import FlopCounterMode

from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label, Recording, Stream
from armlet_train.data import Augment, Corpus, Source, join_recordings, steps_per_epoch
from armlet_train.engine import finetune, pretrain, trainer
from armlet_train.methods import Objective, build_pretraining
from armlet_train.models import build_model
from armlet_train.recipes import PretrainRecipe, TrainingRecipe, find_recipe, load_recipe

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
RECIPE = load_recipe(find_recipe("hapt"))
assert isinstance(RECIPE.pretrain, PretrainRecipe)
PRETRAIN = RECIPE.pretrain
SAMPLES = 4 * 3600 * 50
TURNS, BLOCK = (10, 50) if CUDA else (5, 3)
"""Turns of each way to train, and steps in a turn, after one that is not counted."""
Goal = Callable[..., None]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Four hours of noise in the modalities of HAPT: 43 and 175 steps an epoch."""
    rng = np.random.default_rng(0)
    times = np.arange(SAMPLES, dtype=np.int64) * 20_000_000
    streams = {
        name: Stream(Modality(name, ("x", "y", "z"), unit, 50.0), times, rng.standard_normal((SAMPLES, 3), np.float32))
        for name, unit in (("acc", "g"), ("gyro", "rad/s"))
    }
    labels = [Label(0, SAMPLES * 20_000_000, RECIPE.data.labels[0])]
    return join_recordings([Recording("noise", "1", {}, streams, labels)], RECIPE.data)


@dataclass
class Training:
    """One way to train: called, it makes a step on the next batch."""

    objective: Objective
    runner: torch.nn.Module
    optimiser: torch.optim.Optimizer
    stream: Iterator[tuple[Any, ...]]
    bfloat16: bool

    def __call__(self) -> None:
        """A batch drawn, cut and augmented, and a step on it."""
        self.step(next(self.stream))

    def step(self, batch: tuple[Any, ...]) -> None:
        """A step on a batch."""
        trainer.take_step(self.runner, self.optimiser, batch, DEVICE, self.bfloat16)
        self.objective.after_step(0)


def make(stage: str, corpus: Corpus, bfloat16: bool, compiled: bool) -> Training:
    """A training of the recipe hapt, fresh from its seed."""
    torch.manual_seed(0)
    model = build_model(RECIPE.model, corpus.modalities, corpus.lengths, len(RECIPE.data.labels))
    source = Source(corpus, DEVICE)
    objective: Objective
    if stage == "pretrain":
        recipe: TrainingRecipe = PRETRAIN
        augment = Augment(recipe.augment, corpus.normalisation(), DEVICE)
        objective = method = build_pretraining(model, PRETRAIN)
        steps = steps_per_epoch(corpus, recipe.batch, labelled=False)

        def epoch(order: np.random.Generator) -> Iterator[tuple[Any, ...]]:
            return pretrain.epoch_batches(source, augment, PRETRAIN, method.views, steps, order, 0)
    else:
        recipe = RECIPE.finetune
        augment = Augment(recipe.augment, corpus.normalisation(), DEVICE)
        objective = finetune.Finetuning(model, RECIPE.finetune)

        def epoch(order: np.random.Generator) -> Iterator[tuple[Any, ...]]:
            return finetune.epoch_batches(source, augment, RECIPE.finetune, order, 0)

    stream = itertools.chain.from_iterable(epoch(np.random.default_rng(number)) for number in itertools.count())
    objective.to(DEVICE).train()
    optimiser = trainer.make_optimiser(objective, recipe, DEVICE)
    return Training(objective, trainer.make_runner(objective, DEVICE, compiled), optimiser, stream, bfloat16)


def finish() -> None:
    """Wait for the GPU, if there is one."""
    if CUDA:
        torch.cuda.synchronize()


def step_times(ways: dict[str, Training]) -> dict[str, list[float]]:
    """Seconds a step of each way in each turn; the ways take turns, so that they meet the same disturbances."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, training in ways.items():
            training()
            finish()
            start = time.perf_counter()
            for _ in range(BLOCK):
                training()
            finish()
            times[name].append((time.perf_counter() - start) / BLOCK)
    return times


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_windows_a_second(stage: str, corpus: Corpus, benchmark: BenchmarkFixture, goal: Goal) -> None:
    ways = {"eager float32": make(stage, corpus, bfloat16=False, compiled=False)}
    ways["bfloat16"] = make(stage, corpus, bfloat16=True, compiled=False)
    if CUDA:
        ways["bfloat16, compiled"] = make(stage, corpus, bfloat16=True, compiled=True)
    times = step_times(ways)
    batch = (PRETRAIN if stage == "pretrain" else RECIPE.finetune).batch
    eager = np.array(times["eager float32"])
    for name, each in times.items():
        detail = f"{batch / np.median(each):.0f} windows a second on {device_name()}"
        goal(f"{stage}: time of a step, {name} / eager float32", float(np.median(np.array(each) / eager)), None, detail)
    trained_so = list(ways.values())[-1 if CUDA else 0]
    flops = count_flops(ways["eager float32"])
    seconds = float(np.median(list(times.values())[-1 if CUDA else 0]))
    share = flops / seconds / fastest_product()
    goal(f"{stage}: achieved / fastest matrix product here", share, None, f"{flops / 1e9:.2f} GFLOP a step")
    benchmark.pedantic(trained_so, rounds=BLOCK, warmup_rounds=1)  # type: ignore[no-untyped-call]


def count_flops(training: Training) -> int:
    """Floating-point operations of convolutions and matrix products in a step, there and back."""
    batch = next(training.stream)
    with FlopCounterMode(display=False) as counter:
        training.step(batch)
    return int(counter.get_total_flops())


def fastest_product() -> float:
    """Operations a second of the best of several square matrix products, in what this device trains in."""
    size, kind = (8192, torch.bfloat16) if CUDA else (1024, torch.float32)
    left, right = (torch.randn(size, size, device=DEVICE, dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        finish()
        start = time.perf_counter()
        left @ right
        finish()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def device_name() -> str:
    """As the report names it."""
    return torch.cuda.get_device_name(DEVICE) if CUDA else f"{torch.get_num_threads()} CPU threads"


@pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU: on a CPU there is nothing to wait for")
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_nothing_in_a_step_waits_for_the_gpu(stage: str, corpus: Corpus) -> None:
    training = make(stage, corpus, bfloat16=True, compiled=False)
    training()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            training()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU, whose kernels are timed")
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_share_of_a_step_that_is_not_gpu_work(
    stage: str, corpus: Corpus, benchmark: BenchmarkFixture, goal: Goal
) -> None:
    training = make(stage, corpus, bfloat16=True, compiled=True)
    for _ in range(20):
        training()
    wall = float(np.median(step_times({"so": training})["so"]))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(BLOCK):
            training()
        finish()
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / BLOCK
    goal(f"{stage}: share of a step that is not GPU work", 1 - busy / wall, None, f"{wall * 1e6:.0f} us a step")
    benchmark.pedantic(training, rounds=BLOCK)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_ways_to_train_learn_alike(stage: str, corpus: Corpus) -> None:
    """What is timed is a training: the loss of a bfloat16 step is that of a float32 step."""
    batch = next(make(stage, corpus, bfloat16=False, compiled=False).stream)
    losses = []
    for bfloat16 in (False, True):
        training = make(stage, corpus, bfloat16=bfloat16, compiled=False)
        torch.manual_seed(1)
        terms = trainer.take_step(training.runner, training.optimiser, batch, DEVICE, bfloat16)
        losses.append(float(terms["loss"].detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
