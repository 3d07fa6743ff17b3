"""The training loop: one for pretraining and fine-tuning, on a CPU, a GPU, or many processes.

A training is an :class:`Objective`, its batches, and a recipe. On a GPU the step runs in bfloat16 where that is safe,
compiled if the training is long enough to pay for it; nothing in a step waits for the device. Many processes (started
by ``torchrun``) share each batch and end with the weights of one, see :mod:`armlet_train.parallel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from armlet_runtime.errors import RunError

from . import checkpoints, parallel
from .recipes import TrainingRecipe

COMPILE_STEPS = 2000
"""A training on a GPU of at least that many steps is compiled, which takes about a minute."""

Batches = Callable[[np.random.Generator, int], Iterator[tuple[Any, ...]]]
"""From the order of an epoch's data and the first step wanted to what the objective takes, step by step."""


class Objective(nn.Module):
    """What a training minimises: a model with what is needed to train it.

    ``forward`` takes a batch and gives scalar terms, of which ``loss`` is minimised and all are reported. It draws from
    PyTorch's generator and never waits for the device.
    """

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step number ``step``, counted from 0."""


def train(
    objective: Objective,
    batches: Batches,
    steps: int,
    recipe: TrainingRecipe,
    stage: int,
    device: torch.device,
    keeper: checkpoints.Keeper,
    end_epoch: Callable[[int, dict[str, float]], float],
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
        end_epoch: Called in every process after each epoch with its number and the mean of each term; gives the score
            by which the best checkpoint is chosen, higher is better.
        advance: Called after each step with steps done and steps in all.

    Raises:
        RunError: The loss became infinite.
    """
    objective.to(device)
    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        learned, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=device.type == "cuda"
    )
    all_steps = recipe.epochs * steps
    done, best = 0, -math.inf
    sums: dict[str, Tensor] = {}
    resumed = keeper.load()
    if resumed is not None:
        objective.load_state_dict(resumed["objective"])
        optimiser.load_state_dict(resumed["optimiser"])
        done, best = resumed["done"], resumed["best"]
        sums = {name: value.to(device) for name, value in resumed["sums"].items()}
    runner = _runner(objective, device, all_steps)

    def state() -> dict[str, Any]:
        return {
            "objective": objective.state_dict(),
            "optimiser": optimiser.state_dict(),
            "done": done,
            "best": best,
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
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                terms = runner(*batch)
            optimiser.zero_grad()
            terms["loss"].backward()
            optimiser.step()
            objective.after_step(done)
            sums = {name: term.detach() + sums.get(name, 0.0) for name, term in terms.items()}
            done += 1
            advance(done, all_steps)
            if keeper.due() and done % steps:
                keeper.save(done, state())
        means = _means(sums, steps)
        if not math.isfinite(means["loss"]):
            raise RunError("the training lost its way (infinite loss); lower its learning_rate in the recipe")
        score = end_epoch(epoch, means)
        if score > best:
            best = score
            keeper.save_best({"objective": objective.state_dict(), "epoch": epoch, "score": score})
        if keeper.due() or done == all_steps:
            keeper.save(done, state())


def _runner(objective: Objective, device: torch.device, steps: int) -> nn.Module:
    runner: Any = objective
    if device.type == "cuda" and steps >= COMPILE_STEPS:
        runner = torch.compile(objective)
    if parallel.world() > 1:
        runner = DistributedDataParallel(
            runner,
            device_ids=[device] if device.type == "cuda" else None,
            # Statistics are those of the whole batch in every process already.
            broadcast_buffers=False,
            # Pretraining leaves the classifier's head alone.
            find_unused_parameters=True,
        )
    module: nn.Module = runner
    return module


def _means(sums: dict[str, Tensor], steps: int) -> dict[str, float]:
    """The one time in an epoch that the host waits for the device."""
    values = parallel.mean(torch.stack(list(sums.values())) / steps).tolist()
    return dict(zip(sums, values, strict=True))


def set_learning_rate(optimiser: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Linear warm-up over the first twentieth of the steps, then half a cosine down to zero."""
    warm_up = max(1, steps // 20)
    rate = peak * min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimiser.param_groups:
        group["lr"] = rate
