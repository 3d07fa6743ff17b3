"""Armlet's own small model (``kind = "conv"``), made of what XNNPACK and LiteRT run in int8.

That is 1 x k convolutions, linear layers, ReLU and an average over time. Batch norms stand right after convolutions and
are folded into them before quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armlet_runtime.modalities import Modality

from .. import distributed
from ..recipes import ConvModel
from .aggregator import AttentionAggregator, set_mask_policy
from .base import Aggregator, ArmletModel, Encoder


class ConvEncoder(Encoder):
    """Convolutions, an average over time, a linear map."""

    def __init__(self, recipe: ConvModel, modality: Modality, length: int) -> None:
        """Build the layers.

        Args:
            recipe: Sizes.
            modality: What comes in.
            length: Samples of a window.
        """
        super().__init__()
        layers: list[nn.Module] = []
        before = len(modality.channels)
        steps = length
        for channels, kernel, stride in zip(recipe.channels, recipe.kernels, recipe.strides, strict=True):
            padding = kernel // 2
            layers += [
                nn.Conv2d(before, channels, (1, kernel), (1, stride), (0, padding), bias=False),
                distributed.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            before = channels
            steps = (steps + 2 * padding - kernel) // stride + 1
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d((1, steps), count_include_pad=False)
        self.flagged = recipe.flagged
        self.token = nn.Linear(before, recipe.token_dim - recipe.flagged)

    def features(self, window: Tensor) -> Tensor:
        """(B, features): what each layer's channels do over time, rectified.

        Averages and deviations of all layers but the last, which hold best for people who were not seen; of the last
        the square roots of the averages, of which the token is a linear map. (Chosen by cross-validation over training
        and validation people.)
        """
        active, parts = window.unsqueeze(2), []
        for layer in self.layers:
            active = layer(active)
            if isinstance(layer, nn.ReLU):
                parts += [active.mean(dim=3), active.std(dim=3, correction=0)]
        return torch.cat([*parts[:-2], parts[-2].sqrt()], dim=1).flatten(1)

    def forward(self, window: Tensor) -> Tensor:
        """Encode a batch."""
        token: Tensor = self.token(self._pooled(window))
        return F.pad(token, (0, 1), value=1.0) if self.flagged else token

    def _pooled(self, window: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.layers(window.unsqueeze(2)))
        return pooled.flatten(1)


class ConvAggregator(Aggregator):
    """Two linear layers with ReLU, and a linear head."""

    def __init__(self, recipe: ConvModel, modalities: int, labels: int) -> None:
        """Build the layers for that many modalities and labels."""
        super().__init__()
        self.embedding_dim = recipe.embedding_dim
        self.hidden = nn.Linear(modalities * recipe.token_dim, recipe.hidden_dim)
        self.dropout = distributed.Dropout(recipe.dropout)
        self.embedding = nn.Linear(recipe.hidden_dim, recipe.embedding_dim)
        self.head = nn.Linear(recipe.embedding_dim, labels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregate a batch."""
        hidden = self.dropout(torch.relu(self.hidden(tokens)))
        embedding = torch.relu(self.embedding(hidden))
        return self.head(embedding), embedding


def build(recipe: ConvModel, modalities: Sequence[Modality], lengths: Mapping[str, int], labels: int) -> ArmletModel:
    """A fresh model; see :func:`armlet_train.models.build.build_model`."""
    encoders = {modality.name: ConvEncoder(recipe, modality, lengths[modality.name]) for modality in modalities}
    kind = AttentionAggregator if recipe.mask == "attention" else ConvAggregator
    aggregator = kind(recipe, len(modalities), labels)
    model = ArmletModel([modality.name for modality in modalities], encoders, recipe.token_dim, aggregator)
    set_mask_policy(model, recipe.mask)
    return model
