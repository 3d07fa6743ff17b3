"""The training loop: one for pretraining and fine-tuning, on a CPU, a GPU, or many processes.

A training is an :class:`Objective`, its batches, and a recipe. On a GPU the step runs in bfloat16 where that is safe,
compiled if the training is long enough to pay for it; nothing in a step waits for the device. Many processes (started
by ``torchrun``) share each batch and end with the weights of one, see :mod:`armlet_train.distributed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from armlet_runtime.errors import RunError

from .. import distributed
from ..methods import Objective
from ..recipes import TrainingRecipe
from . import checkpoints

COMPILE_STEPS = 2000
"""A training on a GPU of at least that many steps is compiled, which takes about a minute."""

Batches = Callable[[np.random.Generator, int], Iterator[tuple[Any, ...]]]
"""From the order of an epoch's data and the first step wanted to what the objective takes, step by step."""


@contextmanager
def no_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show no progress: what a training reports to by default."""
    yield lambda done, total: None


def train(
    objective: Objective,
    batches: Batches,
    steps: int,
    recipe: TrainingRecipe,
    stage: int,
    device: torch.device,
    keeper: checkpoints.Keeper,
    end_epoch: Callable[[int, dict[str, float]], None],
    advance: Callable[[int, int], None],
) -> None:
    """Train ``objective`` in place; a second call with the same arguments goes on from the last checkpoint.

    Args:
        objective: Fresh from its seed, on any device; afterwards on ``device``.
        batches: Its batches.
        steps: In an epoch.
        recipe: Numbers.
        stage: Tells trainings with the same seed apart.
        device: CPU or GPU.
        keeper: Of the checkpoints.
        end_epoch: Called in every process after each epoch with its number and the mean of each term.
        advance: Called after each step with steps done and steps in all.

    Raises:
        RunError: The loss is not finite.
    """
    objective.to(device)
    optimiser = make_optimiser(objective, recipe, device)
    all_steps = recipe.epochs * steps
    done = 0
    sums: dict[str, Tensor] = {}
    resumed = keeper.load()
    if resumed is not None:
        objective.load_state_dict(resumed["objective"])
        optimiser.load_state_dict(resumed["optimiser"])
        done = resumed["done"]
        sums = {name: value.to(device) for name, value in resumed["sums"].items()}
    runner = make_runner(objective, device, compiled=device.type == "cuda" and all_steps >= COMPILE_STEPS)

    def state() -> dict[str, Any]:
        return {
            "objective": objective.state_dict(),
            "optimiser": optimiser.state_dict(),
            "done": done,
            "sums": sums,
            "random": checkpoints.random_state(device),
        }

    while done < all_steps:
        epoch, first = divmod(done, steps)
        objective.train()
        order = checkpoints.seed_epoch(recipe.seed, epoch, stage)
        stream = batches(order, first)
        if first and resumed is not None:
            checkpoints.set_random_state(resumed["random"], device)
        else:
            sums = {}
        for batch in stream:
            set_learning_rate(optimiser, recipe.learning_rate, done, all_steps)
            terms = take_step(runner, optimiser, batch, device, bfloat16=device.type == "cuda")
            objective.after_step(done)
            sums = {name: term.detach() + sums.get(name, 0.0) for name, term in terms.items()}
            done += 1
            advance(done, all_steps)
            if keeper.due() and done % steps:
                keeper.save(done, state())
        means = _means(sums, steps)
        if not math.isfinite(means["loss"]):
            raise RunError(f"the loss is not finite in epoch {epoch + 1}; lower learning_rate in the recipe")
        end_epoch(epoch, means)
        if keeper.due() or done == all_steps:
            keeper.save(done, state())


def make_optimiser(objective: Objective, recipe: TrainingRecipe, device: torch.device) -> torch.optim.Optimizer:
    """AdamW of what learns; on a GPU in one kernel."""
    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        learned, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=device.type == "cuda"
    )


def make_runner(objective: Objective, device: torch.device, compiled: bool) -> nn.Module:
    """What is called in place of ``objective``: compiled, and joined with the other processes if there are any."""
    runner: Any = torch.compile(objective) if compiled else objective
    if distributed.world() > 1:
        runner = DistributedDataParallel(
            runner,
            device_ids=[device] if device.type == "cuda" else None,
            # Statistics are those of the whole batch in every process already.
            forward_sync_buffers=False,
            find_unused_parameters=not objective.uses_all,
        )
    module: nn.Module = runner
    return module


def take_step(
    runner: nn.Module, optimiser: torch.optim.Optimizer, batch: tuple[Any, ...], device: torch.device, bfloat16: bool
) -> dict[str, Tensor]:
    """One step on a batch; gives the terms of the loss. The host does not wait for a GPU."""
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        terms: dict[str, Tensor] = runner(*batch)
    optimiser.zero_grad()
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return terms


def _means(sums: dict[str, Tensor], steps: int) -> dict[str, float]:
    """The one time in an epoch that the host waits for the device."""
    values = distributed.mean(torch.stack(list(sums.values())) / steps).tolist()
    return dict(zip(sums, values, strict=True))


def set_learning_rate(optimiser: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Linear warm-up over the first twentieth of the steps, then half a cosine down to zero."""
    warm_up = max(1, steps // 20)
    rate = peak * min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimiser.param_groups:
        group["lr"] = rate
