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

from itertools import product
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import parallel
from .models import ArmletModel
from .pretraining import Pretraining
from .recipes import CrosslPretrain


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


class Crossl(Pretraining):
    """A model with the expander that VICReg needs."""

    views: ClassVar[int] = 2

    def __init__(self, model: ArmletModel, recipe: CrosslPretrain) -> None:
        """Put an expander on the model's embedding."""
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.expander = nn.Sequential(
            nn.Linear(model.embedding_dim, recipe.projection_dim),
            nn.ReLU(),
            nn.Linear(recipe.projection_dim, recipe.projection_dim),
        )
        self.register_buffer("pairs", mask_pairs(len(model.modalities)), persistent=False)

    def forward(self, views: tuple[dict[str, Tensor], ...], present: Tensor) -> dict[str, Tensor]:
        """VICReg's terms and their weighted sum, over the whole batch of all processes."""
        recipe = self.recipe
        # Both views go through the encoders as one batch: one pass, and batch statistics over both.
        both = {name: torch.stack([view[name] for view in views], dim=1).flatten(0, 1) for name in views[0]}
        visible = self._visible(present).flatten(0, 1)
        vectors = self.expander(self._embed(self.model.tokens(both), visible))
        with torch.autocast(vectors.device.type, enabled=False):
            first, second = parallel.gather(vectors.float().reshape(-1, 2, vectors.shape[1])).unbind(1)
            similarity, variance, covariance = vicreg(first, second)
        loss = recipe.similarity * similarity + recipe.variance * variance + recipe.covariance * covariance
        return {"loss": loss, "similarity": similarity, "variance": variance, "covariance": covariance}

    def _visible(self, present: Tensor) -> Tensor:
        """(B, 2, modalities): what each view sees; of a window with one modality both see that."""
        pairs = self.pairs
        assert isinstance(pairs, Tensor)
        chosen = parallel.rows(
            lambda count: torch.randint(len(pairs), (count,), device=present.device), present.shape[0]
        )
        visible = pairs[chosen] & present[:, None]
        return torch.where(visible.any(dim=2, keepdim=True), visible, present[:, None])

    def _embed(self, tokens: Tensor, visible: Tensor) -> Tensor:
        masked = tokens * visible[:, :, None] if self.recipe.mask == "zero" else self.model.mask(tokens, visible)
        embedding: Tensor = self.model.aggregator(masked.flatten(1))[1]
        return embedding
