"""Models: an encoder a modality, an aggregator over their tokens, a learned mask token for each.

Every method's model is an :class:`ArmletModel`, so fine-tuning, evaluation, export and the board need to know nothing
of the method. :func:`build` makes one from a recipe. Armlet's own small model (``kind = "conv"``) stands here: it is
made of what XNNPACK and LiteRT run in int8: 1 x k convolutions, linear layers, ReLU, an average over time. Batch norms
stand right after convolutions and are folded into them before quantisation.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armlet_runtime.modalities import Modality

from . import parallel
from .recipes import CBraModModel, ConvModel, CrosslModel, ModelRecipe, MuMaeModel


class Encoder(nn.Module, abc.ABC):
    """One modality's window to its token: (B, channels, samples) float32, normalised, to (B, token_dim)."""

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
        mask_tokens: (modalities, token_dim); what stands for an absent modality's token.
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
            windows: Modality name to (B, channels, samples), normalised; what stands for an absent one does not matter.
            present: (B, modalities) bool.
        """
        result: tuple[Tensor, Tensor] = self.aggregator(self.mask(self.tokens(windows), present).flatten(1))
        return result


def build(recipe: ModelRecipe, modalities: Sequence[Modality], lengths: Mapping[str, int], labels: int) -> ArmletModel:
    """A fresh model, its weights from PyTorch's generator.

    Args:
        recipe: What kind, and its sizes.
        modalities: In the order of the tokens.
        lengths: Modality name to samples of a window.
        labels: How many the classifier tells apart.

    Raises:
        RecipeError: The kind cannot be built for these modalities.
    """
    # The methods' modules build on this one.
    from . import cbramod, crossl, mumae

    match recipe:
        case ConvModel():
            return _build_conv(recipe, modalities, lengths, labels)
        case CrosslModel():
            return crossl.build(recipe, modalities, labels)
        case CBraModModel():
            return cbramod.build(recipe, modalities, lengths, labels)
        case MuMaeModel():
            return mumae.build(recipe, modalities, lengths, labels)
        case _:
            raise AssertionError(f"no builder for {type(recipe).__name__}")


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
                parallel.BatchNorm2d(channels),
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
        self.dropout = parallel.Dropout(recipe.dropout)
        self.embedding = nn.Linear(recipe.hidden_dim, recipe.embedding_dim)
        self.head = nn.Linear(recipe.embedding_dim, labels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregate a batch."""
        hidden = self.dropout(torch.relu(self.hidden(tokens)))
        embedding = torch.relu(self.embedding(hidden))
        return self.head(embedding), embedding


def _build_conv(
    recipe: ConvModel, modalities: Sequence[Modality], lengths: Mapping[str, int], labels: int
) -> ArmletModel:
    from .masking import AttentionAggregator, set_mask_policy

    encoders = {modality.name: ConvEncoder(recipe, modality, lengths[modality.name]) for modality in modalities}
    kind = AttentionAggregator if recipe.mask == "attention" else ConvAggregator
    aggregator = kind(recipe, len(modalities), labels)
    model = ArmletModel([modality.name for modality in modalities], encoders, recipe.token_dim, aggregator)
    set_mask_policy(model, recipe.mask)
    return model


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
