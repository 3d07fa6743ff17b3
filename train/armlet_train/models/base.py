"""Models: an encoder a modality, an aggregator over their tokens, a learned mask token for each.

Every method's model is an :class:`ArmletModel`, so fine-tuning, evaluation, export and the board need to know nothing
of the method. :func:`armlet_train.models.build.build_model` makes a model from a recipe.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


class Encoder(nn.Module, abc.ABC):
    """One modality's window to its token: (B, channels, samples) float32, normalised, to (B, token_dim).

    Attributes:
        uses_all: Whether every parameter takes part in a token; not so where some serve pretraining alone.
    """

    uses_all: bool = True

    @abc.abstractmethod
    def features(self, window: Tensor) -> Tensor:
        """(B, F): what a linear probe looks at."""

    @abc.abstractmethod
    def forward(self, window: Tensor) -> Tensor:
        """Encode a batch."""


class Aggregator(nn.Module, abc.ABC):
    """Tokens (B, modalities * token_dim) to logits (B, labels) and embedding (B, embedding_dim).

    Attributes:
        embedding_dim: Width of the embedding.
    """

    embedding_dim: int

    @abc.abstractmethod
    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregate a batch."""


class ArmletModel(nn.Module):
    """Encoders, mask tokens and aggregator.

    Attributes:
        modalities: Names, in the order of the tokens.
        encoders: By modality name.
        token_dim: Width of a token.
        mask_tokens: (modalities, token_dim); each replaces the token of an absent modality.
        aggregator: From tokens to logits and embedding.
        embedding_dim: Width of the embedding.
    """

    def __init__(
        self, modalities: Sequence[str], encoders: Mapping[str, Encoder], token_dim: int, aggregator: Aggregator
    ) -> None:
        """Put the parts together; mask tokens are small and random.

        Args:
            modalities: Names, in the order of the tokens.
            encoders: By modality name.
            token_dim: Width of a token.
            aggregator: Over the tokens of that many modalities.
        """
        super().__init__()
        self.modalities = list(modalities)
        self.encoders = nn.ModuleDict({name: encoders[name] for name in modalities})
        self.token_dim = token_dim
        self.mask_tokens = nn.Parameter(0.1 * torch.randn(len(self.modalities), token_dim))
        self.aggregator: nn.Module = aggregator
        self.embedding_dim = aggregator.embedding_dim

    def features(self, windows: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """(B, F) for linear probes: the aggregator's own features, or those of all encoders side by side.

        Args:
            windows: As in :meth:`forward`.
            present: (B, modalities) bool; features of an absent modality are zeros.
        """
        own: Callable[[Tensor], Tensor] | None = getattr(self.aggregator, "features", None)
        if own is not None:
            return own(self.mask(self.tokens(windows), present).flatten(1))
        parts = []
        for place, name in enumerate(self.modalities):
            encoder = self.encoders[name]
            assert isinstance(encoder, Encoder)
            parts.append(torch.where(present[:, place, None], encoder.features(windows[name]), 0.0))
        return torch.cat(parts, dim=1)

    def tokens(self, windows: Mapping[str, Tensor]) -> Tensor:
        """(B, modalities, token_dim) of windows that are all there."""
        return torch.stack([self.encoders[name](windows[name]) for name in self.modalities], dim=1)

    def mask(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Tokens (B, modalities, token_dim) with mask tokens where ``present`` (B, modalities) is false."""
        return torch.where(present[:, :, None], tokens, self.mask_tokens)

    def forward(self, windows: Mapping[str, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, labels) and embedding (B, embedding_dim).

        Args:
            windows: Modality name to (B, channels, samples), normalised; values of an absent modality do not matter.
            present: (B, modalities) bool.
        """
        result: tuple[Tensor, Tensor] = self.aggregator(self.mask(self.tokens(windows), present).flatten(1))
        return result


def fold_batchnorm(model: ArmletModel) -> ArmletModel:
    """A copy of a model whose batch norms are folded into their convolutions; the same function in evaluation mode."""
    folded = copy.deepcopy(model).eval()
    sequences = [(name, module) for name, module in folded.named_modules() if isinstance(module, nn.Sequential)]
    for name, sequence in sequences:
        layers: list[nn.Module] = []
        for layer in sequence:
            if isinstance(layer, nn.BatchNorm2d) and layers and isinstance(layers[-1], nn.Conv2d):
                convolution = layers.pop()
                assert isinstance(convolution, nn.Conv2d)
                layers.append(nn.utils.fusion.fuse_conv_bn_eval(convolution, layer))
            else:
                layers.append(layer)
        folded.set_submodule(name, nn.Sequential(*layers))
    return folded
