"""The model of CroSSL's paper, ``kind = "crossl"`` (Deldari et al., WSDM 2024); its pretraining is a method."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from armlet_runtime.modalities import Modality

from .. import distributed
from ..recipes import CrosslModel
from .aggregator import set_mask_policy
from .base import Aggregator, ArmletModel, Encoder

NORM_EPS = 1e-3
"""Of the layer norms; Keras's default, with which the paper's models were trained."""


INIT_STD = 0.05
"""Standard deviation of the normal distribution that convolutions begin with; Keras's ``RandomNormal``."""


class CrosslBlock(nn.Module):
    """Convolution that keeps the length, layer norm over channels, PReLU with a slope a channel, dropout.

    An even kernel has one more zero on the right than on the left, as Keras pads.
    """

    def __init__(self, before: int, channels: int, kernel: int, dropout: float) -> None:
        """Build the layers."""
        super().__init__()
        self.padding = ((kernel - 1) // 2, kernel // 2)
        self.convolution = nn.Conv1d(before, channels, kernel)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.activation = nn.PReLU(channels, init=0.0)  # Keras's slopes begin at zero
        self.dropout = distributed.Dropout(dropout)
        nn.init.normal_(self.convolution.weight, std=INIT_STD)
        assert self.convolution.bias is not None
        nn.init.zeros_(self.convolution.bias)

    def forward(self, window: Tensor) -> Tensor:
        """(B, before, samples) to (B, channels, samples)."""
        convolved = self.convolution(F.pad(window, self.padding))
        normal = self.norm(convolved.transpose(1, 2)).transpose(1, 2)
        active: Tensor = self.dropout(self.activation(normal))
        return active


class CrosslEncoder(Encoder):
    """The paper's encoder: three blocks of C/4, C/2 and C channels, and the average over time as the token."""

    def __init__(self, recipe: CrosslModel, modality: Modality) -> None:
        """Build the blocks."""
        super().__init__()
        size = recipe.token_dim
        widths = [len(modality.channels), size // 4, size // 2, size]
        self.blocks = nn.Sequential(
            *[
                CrosslBlock(before, after, kernel, recipe.dropout)
                for before, after, kernel in zip(widths[:-1], widths[1:], recipe.kernels, strict=True)
            ]
        )

    def features(self, window: Tensor) -> Tensor:
        """(B, C): the token itself, as the paper's own probe has it."""
        return self.forward(window)

    def forward(self, window: Tensor) -> Tensor:
        """Encode a batch."""
        token: Tensor = self.blocks(window).mean(dim=2)
        return token


class CrosslAggregator(Aggregator):
    """The paper's aggregator: Dense 64 with ReLU, Dense P with ReLU, Dense P, layer norm; and a linear head on it.

    The paper draws the head on the aggregator. (Its published code puts one on the encoders instead, and leaves the
    aggregator out.)
    """

    def __init__(self, recipe: CrosslModel, modalities: int, labels: int) -> None:
        """Build the layers for that many modalities and labels."""
        super().__init__()
        self.embedding_dim = recipe.embedding_dim
        self.projector = nn.Sequential(
            nn.Linear(modalities * recipe.token_dim, recipe.hidden_dim),
            nn.ReLU(),
            nn.Linear(recipe.hidden_dim, recipe.embedding_dim),
            nn.ReLU(),
            nn.Linear(recipe.embedding_dim, recipe.embedding_dim),
            nn.LayerNorm(recipe.embedding_dim, eps=NORM_EPS),
        )
        self.head = nn.Linear(recipe.embedding_dim, labels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregate a batch."""
        embedding = self.projector(tokens)
        return self.head(embedding), embedding


def build(recipe: CrosslModel, modalities: Sequence[Modality], labels: int) -> ArmletModel:
    """The paper's model, its mask tokens zeros for ever."""
    encoders = {modality.name: CrosslEncoder(recipe, modality) for modality in modalities}
    aggregator = CrosslAggregator(recipe, len(modalities), labels)
    model = ArmletModel([modality.name for modality in modalities], encoders, recipe.token_dim, aggregator)
    set_mask_policy(model, "zero")
    return model
