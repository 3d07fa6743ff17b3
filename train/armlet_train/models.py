"""Armlet's own small model: an encoder a modality, an aggregator over their tokens, a learned mask token for each.

It is made of what XNNPACK and LiteRT run in int8: 1 x k convolutions, linear layers, ReLU, an average over time. Batch
norms stand right after convolutions and are folded into them before quantisation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from armlet_runtime.modalities import Modality

from .recipes import ModelRecipe


class Encoder(nn.Module):
    """One modality's window to its token: (B, channels, samples) float32, normalised, to (B, token_dim)."""

    def __init__(self, recipe: ModelRecipe, modality: Modality, length: int) -> None:
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
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            before = channels
            steps = (steps + 2 * padding - kernel) // stride + 1
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d((1, steps), count_include_pad=False)
        self.token = nn.Linear(before, recipe.token_dim)

    def features(self, window: Tensor) -> Tensor:
        """(B, last of the recipe's channels): what the token is a linear map of."""
        pooled: Tensor = self.pool(self.layers(window.unsqueeze(2)))
        return pooled.flatten(1)

    def forward(self, window: Tensor) -> Tensor:
        """Encode a batch."""
        token: Tensor = self.token(self.features(window))
        return token


class Aggregator(nn.Module):
    """Tokens (B, modalities * token_dim) to logits (B, labels) and embedding (B, embedding_dim)."""

    def __init__(self, recipe: ModelRecipe, modalities: int, labels: int) -> None:
        """Build the layers for that many modalities and labels."""
        super().__init__()
        self.hidden = nn.Linear(modalities * recipe.token_dim, recipe.hidden_dim)
        self.dropout = nn.Dropout(recipe.dropout)
        self.embedding = nn.Linear(recipe.hidden_dim, recipe.embedding_dim)
        self.head = nn.Linear(recipe.embedding_dim, labels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregate a batch."""
        hidden = self.dropout(torch.relu(self.hidden(tokens)))
        embedding = torch.relu(self.embedding(hidden))
        return self.head(embedding), embedding


class ArmletModel(nn.Module):
    """Encoders, mask tokens and aggregator.

    Attributes:
        modalities: Names, in the order of the tokens.
        encoders: By modality name.
        mask_tokens: (modalities, token_dim); what stands for an absent modality's token.
        aggregator: From tokens to logits and embedding.
    """

    def __init__(self, recipe: ModelRecipe, modalities: Sequence[Modality], labels: int, length: int) -> None:
        """Build with PyTorch's default initialisation, mask tokens small and random.

        Args:
            recipe: Sizes.
            modalities: In the order of the tokens.
            labels: How many the classifier tells apart.
            length: Samples of a window.
        """
        super().__init__()
        self.modalities = [modality.name for modality in modalities]
        self.encoders = nn.ModuleDict({modality.name: Encoder(recipe, modality, length) for modality in modalities})
        self.mask_tokens = nn.Parameter(0.1 * torch.randn(len(modalities), recipe.token_dim))
        self.aggregator = Aggregator(recipe, len(modalities), labels)

    def encoder(self, name: str) -> Encoder:
        """The encoder of a modality."""
        encoder = self.encoders[name]
        assert isinstance(encoder, Encoder)
        return encoder

    def tokens(self, windows: Mapping[str, Tensor]) -> Tensor:
        """(B, modalities, token_dim) of windows that are all there."""
        return torch.stack([self.encoders[name](windows[name]) for name in self.modalities], dim=1)

    def mask(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Tokens (B, modalities, token_dim) with mask tokens where ``present`` (B, modalities) is false."""
        return torch.where(present[:, :, None], tokens, self.mask_tokens)

    def forward(self, windows: Mapping[str, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, labels) and embedding (B, embedding_dim).

        Args:
            windows: Modality name to (B, channels, samples), normalised; what stands for an absent one does not matter.
            present: (B, modalities) bool.
        """
        result: tuple[Tensor, Tensor] = self.aggregator(self.mask(self.tokens(windows), present).flatten(1))
        return result


def fold_batchnorm(model: ArmletModel) -> ArmletModel:
    """A copy of a model whose batch norms are folded into their convolutions; the same function in evaluation mode."""
    folded = copy.deepcopy(model).eval()
    for encoder in folded.encoders.values():
        assert isinstance(encoder, Encoder)
        layers: list[nn.Module] = []
        for layer in encoder.layers:
            if isinstance(layer, nn.BatchNorm2d):
                convolution = layers.pop()
                assert isinstance(convolution, nn.Conv2d)
                layers.append(nn.utils.fusion.fuse_conv_bn_eval(convolution, layer))
            else:
                layers.append(layer)
        encoder.layers = nn.Sequential(*layers)
    return folded
