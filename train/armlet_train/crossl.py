"""CroSSL: self-supervised pretraining by masking whole modalities in latent space (Deldari et al., WSDM 2024).

Each window gives two views: augmented apart, encoded, and with different modalities hidden in each. The aggregator and
an expander map what is left to one vector a view, and VICReg (Bardes et al., ICLR 2022) pulls the two together while it
keeps the vectors varied and their components uncorrelated. So the tokens of any subset learn to say what the others
would have said.

Differences from the published code: the two masks of a pair are never empty and never the same (there, more than half
of the pairs at the default ratio are), a hidden token is a learned one (``mask = "zero"`` gives the published zeros),
each view is augmented, and the second view is a window close in time to the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armlet_runtime.errors import RunError
from armlet_runtime.windows import Normalisation

from . import checkpoints
from .augment import Augment
from .data import Corpus
from .models import ArmletModel
from .recipes import ModelRecipe, PretrainRecipe

STAGE = 1


class EpochReport(msgspec.Struct, frozen=True):
    """One epoch's mean losses."""

    epoch: int
    loss: float
    similarity: float
    variance: float
    covariance: float


def mask_pairs(modalities: int) -> Tensor:
    """All ordered pairs of two different non-empty masks: (pairs, 2, modalities) bool, true = visible."""
    masks = [mask for mask in product([True, False], repeat=modalities) if any(mask)]
    return torch.tensor([[first, second] for first in masks for second in masks if first != second])


def vicreg(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """VICReg's three terms for two batches of vectors (B, D), B > 1.

    Returns:
        Invariance (mean squared distance), variance (hinge at a standard deviation of 1, mean of both views) and
        covariance (squared off-diagonal covariances over D, sum of both views).
    """
    similarity = F.mse_loss(first, second)
    variance = first.new_zeros(())
    covariance = first.new_zeros(())
    for view in (first, second):
        centred = view - view.mean(dim=0)
        deviation = torch.sqrt(centred.var(dim=0) + 1e-4)  # 1e-4 as published: a slope at zero variance
        variance = variance + F.relu(1 - deviation).mean() / 2
        matrix = centred.T @ centred / (len(view) - 1)
        off_diagonal = matrix.pow(2).sum() - matrix.diagonal().pow(2).sum()
        covariance = covariance + off_diagonal / view.shape[1]
    return similarity, variance, covariance


class Pretraining(nn.Module):
    """A model with the expander that VICReg needs and that is thrown away afterwards."""

    def __init__(self, model: ArmletModel, recipe: PretrainRecipe, sizes: ModelRecipe) -> None:
        """Put an expander on the model's embedding."""
        super().__init__()
        self.model = model
        self.zero_mask = recipe.mask == "zero"
        self.expander = nn.Sequential(
            nn.Linear(sizes.embedding_dim, recipe.projection_dim),
            nn.ReLU(),
            nn.Linear(recipe.projection_dim, recipe.projection_dim),
        )

    def view(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """(B, projection_dim) of tokens (B, modalities, token_dim) of which only ``visible`` ones are seen."""
        masked = tokens * visible[:, :, None] if self.zero_mask else self.model.mask(tokens, visible)
        _, embedding = self.model.aggregator(masked.flatten(1))
        vector: Tensor = self.expander(embedding)
        return vector


def pretrain(
    model: ArmletModel,
    corpus: Corpus,
    normalisation: dict[str, Normalisation],
    recipe: PretrainRecipe,
    sizes: ModelRecipe,
    device: torch.device,
    folder: Path,
    report: Callable[[EpochReport], None],
    advance: Callable[[int, int], None],
) -> None:
    """Pretrain ``model`` in place; a second call with the same arguments goes on from the last checkpoint.

    Args:
        model: Fresh from its seed.
        corpus: Training people's recordings; labels are not looked at.
        normalisation: Of the training people.
        recipe: Numbers.
        sizes: The model's, for the expander.
        device: CPU or one GPU; on a GPU the step runs in bfloat16 where that is safe.
        folder: For checkpoints.
        report: Called after each epoch.
        advance: Called after each step with steps done and steps in all.

    Raises:
        RunError: The loss became infinite.
    """
    starts = corpus.starts(labelled=False, every=1)
    steps = len(corpus.starts(labelled=False, every=corpus.stride)) // recipe.batch
    signals = {name: torch.from_numpy(signal).to(device) for name, signal in corpus.signals.items()}
    span = torch.arange(corpus.length, device=device)
    augment = Augment(recipe.augment, normalisation)
    pairs = mask_pairs(len(model.modalities))

    torch.manual_seed(recipe.seed)
    training = Pretraining(model, recipe, sizes).to(device)
    optimiser = torch.optim.AdamW(training.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    expected = checkpoints.fingerprint(recipe, corpus.wearers, checkpoints.state_digest(model))
    path = folder / "pretrain.pt"
    state = checkpoints.load_checkpoint(path, expected)
    first_epoch = 0
    if state is not None:
        training.load_state_dict(state["training"])
        optimiser.load_state_dict(state["optimiser"])
        first_epoch = state["epoch"]

    for epoch in range(first_epoch, recipe.epochs):
        order = checkpoints.seed_epoch(recipe.seed, epoch, STAGE)
        training.train()
        sums = torch.zeros(4, device=device)
        for step in range(steps):
            set_learning_rate(optimiser, recipe.learning_rate, epoch * steps + step, recipe.epochs * steps)
            chosen = order.choice(starts, recipe.batch)
            # One after the other: the first view's windows, then the second's.
            chosen = np.concatenate([chosen, corpus.neighbours(chosen, recipe.neighbour_s, order)])
            index = torch.from_numpy(chosen).to(device)[:, None] + span
            views = augment({name: signal[index].transpose(1, 2) for name, signal in signals.items()})
            masks = pairs[torch.from_numpy(order.integers(0, len(pairs), recipe.batch))].to(device)
            # Both views go through the encoders as one batch: one pass, and batch statistics over both.
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                tokens = training.model.tokens(views)
                vectors = training.view(tokens, torch.cat([masks[:, 0], masks[:, 1]]))
            first, second = vectors.float().chunk(2)
            similarity, variance, covariance = vicreg(first, second)
            loss = recipe.similarity * similarity + recipe.variance * variance + recipe.covariance * covariance
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            sums += torch.stack([loss, similarity, variance, covariance]).detach()
            advance(epoch * steps + step + 1, recipe.epochs * steps)
        means = (sums / steps).tolist()
        if not math.isfinite(means[0]):
            raise RunError("pretraining lost its way (infinite loss); lower [pretrain] learning_rate in the recipe")
        checkpoints.save(
            path,
            {
                "fingerprint": expected,
                "epoch": epoch + 1,
                "training": training.state_dict(),
                "optimiser": optimiser.state_dict(),
            },
        )
        report(EpochReport(epoch, *means))
    model.to("cpu").eval()


def set_learning_rate(optimiser: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Linear warm-up over the first twentieth of the steps, then half a cosine down to zero."""
    warm_up = max(1, steps // 20)
    rate = peak * min(1.0, (step + 1) / warm_up) * 0.5 * (1 + float(np.cos(np.pi * step / steps)))
    for group in optimiser.param_groups:
        group["lr"] = rate
