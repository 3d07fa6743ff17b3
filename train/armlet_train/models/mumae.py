"""The model of Mu-MAE, ``kind = "mumae"`` (Liu, Liu: arXiv 2408.04243); its pretraining is a method.

A window of every stream is cut into the same number of spans of time, and each span becomes one token.
As a model of armlet, an encoder embeds the spans of one stream, and its token is the spans' embeddings, flattened. The
aggregator is the joint transformer; then the pretrained multimodal representation (the mean of the joint tokens) asks
each stream's features by cross-attention what to add to it; and a linear map makes the embedding.

The published code (github.com/lxhit/mu-mae, 67335d1) differs from its paper and has faults. Here, instead:

- Nothing there tells a token which stream it comes from (all sensors share one table of positions). Here every stream
  has a learned embedding beside the fixed sine-cosine positions.
- Its attention in the fusion runs over the samples of an episode, so that the answer to one query depends on the
  others, and supports attend to queries. Here it runs over the spans of one window.
- Its sensor features come through a ``view`` where a transpose is meant, which mixes axes with time. Here features are
  the embedded spans.
- Its transformer is a ViT-base (768 wide, 12 layers, 12 heads) with decoders of 384 x 4 layers x 6 heads. Here sizes
  are the recipe's; armlet's own recipes are for a board.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from armlet_runtime.errors import RecipeError
from armlet_runtime.modalities import Modality

from .. import distributed
from ..recipes import MuMaeModel, VideoRecipe
from .base import Aggregator, ArmletModel, Encoder

VARIANCE_EPS = 1e-6
"""Added to a span's variance before its target is divided by the root of it, and of the layer norms (MAE's value)."""


def sine_cosine(places: int, width: int) -> Tensor:
    """(places, width) fixed positions: sines, then cosines, of falling frequency (Vaswani et al., 2017)."""
    rates = 10000 ** (-torch.arange(width // 2) / (width // 2))
    angles = torch.arange(places)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Attention(nn.Module):
    """Multi-head attention of (B, N, width) queries over (B, K, width) keys, in plain matrix products.

    Heads are explicit and nothing but reshape, transpose, product and softmax is used, so that every engine can run it.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Build the four linear maps."""
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, visible: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            queries: (B, N, width).
            keys: (B, K, width).
            visible: (B, K) bool, keys that can be attended to; all if not given.

        Returns:
            (B, N, width).
        """
        _, count, width = queries.shape
        size = width // self.heads
        query = self.query(queries).reshape(-1, count, self.heads, size).transpose(1, 2)
        key = self.key(keys).reshape(-1, keys.shape[1], self.heads, size).permute(0, 2, 3, 1)
        value = self.value(keys).reshape(-1, keys.shape[1], self.heads, size).transpose(1, 2)
        scores = query @ key * size**-0.5
        if visible is not None:
            # Not -inf: a window with no stream at all would give NaN.
            scores = scores.masked_fill(~visible[:, None, None, :], torch.finfo(scores.dtype).min)
        mixed = scores.softmax(dim=3) @ value
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(-1, count, width))
        return result


class Block(nn.Module):
    """A transformer layer, normalised before each half; ReLU, which has an integer kernel everywhere, for GELU."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        """Build it; the inner width is four times ``width``, as in every ViT."""
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, VARIANCE_EPS)
        self.attention = Attention(width, heads)
        self.norm_inner = nn.LayerNorm(width, VARIANCE_EPS)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = distributed.Dropout(dropout)

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, N, width) to the same; ``visible`` (B, N) as in :class:`Attention`."""
        normal = self.norm_attention(tokens)
        tokens = tokens + self.dropout(self.attention(normal, normal, visible))
        result: Tensor = tokens + self.dropout(self.outer(torch.relu(self.inner(self.norm_inner(tokens)))))
        return result


class Transformer(nn.Module):
    """Layers and a last norm: (B, N, width) to the same."""

    def __init__(self, width: int, depth: int, heads: int, dropout: float = 0.0) -> None:
        """Build ``depth`` layers."""
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, VARIANCE_EPS)

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Run; ``visible`` (B, N) as in :class:`Attention`."""
        for block in self.blocks:
            tokens = block(tokens, visible)
        result: Tensor = self.norm(tokens)
        return result


class SpanEncoder(Encoder):
    """One stream's window (B, channels, samples), normalised, to its token: the embeddings of its spans, flattened.

    Attributes:
        spans: Spans in a window.
        places: Pieces that a span is made of: 1, but for video.
        values: Numbers in one piece.
    """

    positions: Tensor

    def __init__(self, recipe: MuMaeModel, modality: Modality, length: int) -> None:
        """Build the embedding.

        Raises:
            RecipeError: The window cannot be cut into the recipe's spans.
        """
        super().__init__()
        if length % recipe.spans:
            raise RecipeError(
                f"[model] spans = {recipe.spans} do not divide the {length} samples that a window of {modality.name} "
                "has; change spans or [data] window_s"
            )
        self.spans, self.places = recipe.spans, 1
        self.length = length // recipe.spans
        self.values = self.length * len(modality.channels)
        self.embed = nn.Conv2d(len(modality.channels), recipe.width, (1, self.length), (1, self.length))
        self.stream = nn.Parameter(0.02 * torch.randn(recipe.width))
        self.register_buffer("positions", sine_cosine(recipe.spans, recipe.width), persistent=False)

    def pieces(self, window: Tensor) -> Tensor:
        """(B, pieces, values) of a window: the target of a decoder. Pieces of one span lie next to each other."""
        count, channels, _ = window.shape
        return window.reshape(count, channels, self.spans, self.length).transpose(1, 2).flatten(2)

    def embedded(self, window: Tensor) -> Tensor:
        """(B, pieces, width): embedded pieces with positions and the stream's own embedding."""
        embedded: Tensor = self.embed(window.unsqueeze(2)).flatten(2).transpose(1, 2)
        return embedded + (self.positions + self.stream)

    def features(self, window: Tensor) -> Tensor:
        """(B, spans * width): for one stream alone there is nothing beyond its token."""
        return self.forward(window)

    def forward(self, window: Tensor) -> Tensor:
        """(B, spans * width)."""
        return self.embedded(window).flatten(1)


class VideoEncoder(Encoder):
    """A camera's window (B, colours * height * width, frames) to its token, of the same size as any other stream's.

    A piece is a *tubelet*: a square patch through the frames of one span. Pretraining works on all tubelets; the token
    holds their mean in each span, so that a camera takes as many places in the joint transformer as another stream.

    Attributes:
        spans: Spans in a window.
        places: Patches in a frame, so tubelets in a span.
        values: Numbers in a tubelet.
    """

    positions: Tensor

    def __init__(self, recipe: MuMaeModel, video: VideoRecipe, modality: Modality, frames: int) -> None:
        """Build the embedding.

        Raises:
            RecipeError: Frames or patches do not divide, or the stream has another number of channels.
        """
        super().__init__()
        wanted = video.colours * video.height * video.width
        if frames % recipe.spans or video.height % video.patch or video.width % video.patch:
            raise RecipeError(
                f"[model.video.{modality.name}]: {frames} frames of {video.height} x {video.width} cannot be cut into "
                f"{recipe.spans} spans and patches of {video.patch} x {video.patch}"
            )
        if len(modality.channels) != wanted:
            raise RecipeError(
                f"[model.video.{modality.name}]: the stream has {len(modality.channels)} channels, and colours x "
                f"height x width are {wanted}"
            )
        self.video = video
        self.spans, self.places = recipe.spans, (video.height // video.patch) * (video.width // video.patch)
        self.length = frames // recipe.spans
        self.values = self.length * video.colours * video.patch**2
        self.embed = nn.Linear(self.values, recipe.width)
        self.stream = nn.Parameter(0.02 * torch.randn(recipe.width))
        places = sine_cosine(recipe.spans * self.places, recipe.width)
        self.register_buffer("positions", places, persistent=False)

    def pieces(self, window: Tensor) -> Tensor:
        """(B, spans * places, values): tubelets, span after span."""
        patch, video = self.video.patch, self.video
        rows, columns = video.height // patch, video.width // patch
        cut = window.reshape(-1, video.colours, rows, patch, columns, patch, self.spans, self.length)
        return cut.permute(0, 6, 2, 4, 7, 1, 3, 5).reshape(-1, self.spans * self.places, self.values)

    def embedded(self, window: Tensor) -> Tensor:
        """(B, spans * places, width): embedded tubelets with positions and the stream's own embedding."""
        embedded: Tensor = self.embed(self.pieces(window)) + (self.positions + self.stream)
        return embedded

    def features(self, window: Tensor) -> Tensor:
        """(B, spans * width)."""
        return self.forward(window)

    def forward(self, window: Tensor) -> Tensor:
        """(B, spans * width)."""
        embedded = self.embedded(window)
        return embedded.reshape(-1, self.spans, self.places, embedded.shape[2]).mean(dim=2).flatten(1)


class CrossAttentionFusion(nn.Module):
    """The multimodal representation asks each stream's features: (B, width), (B, streams * spans, width) to features.

    One linear map a stream makes its queries (one there, ``queries`` here), keys and values are that stream's spans
    alone. What comes back is weighted by learned factors, element by element, as published.
    """

    def __init__(self, recipe: MuMaeModel, streams: int) -> None:
        """Build it for that many streams."""
        super().__init__()
        self.spans, self.queries, self.width = recipe.spans, recipe.queries, recipe.width
        self.ask = nn.ModuleList(nn.Linear(recipe.width, recipe.queries * recipe.width) for _ in range(streams))
        self.attend = nn.ModuleList(Attention(recipe.width, recipe.heads) for _ in range(streams))
        self.weights = nn.Parameter(torch.ones(streams * recipe.queries * recipe.width))
        self.size = streams * recipe.queries * recipe.width

    def forward(self, representation: Tensor, spans: Tensor) -> Tensor:
        """(B, streams * queries * width)."""
        attended = []
        for number, (ask, attend) in enumerate(zip(self.ask, self.attend, strict=True)):
            queries = ask(representation).reshape(-1, self.queries, self.width)
            features = spans[:, number * self.spans : (number + 1) * self.spans]
            attended.append(attend(queries, features).flatten(1))
        return torch.cat(attended, dim=1) * self.weights


class ConcatenationFusion(nn.Module):
    """The plain rival: the mean of each stream's features, side by side: (B, streams * width)."""

    def __init__(self, recipe: MuMaeModel, streams: int) -> None:
        """Note the sizes."""
        super().__init__()
        self.streams, self.spans = streams, recipe.spans
        self.size = streams * recipe.width

    def forward(self, _representation: Tensor, spans: Tensor) -> Tensor:
        """(B, streams * width)."""
        return spans.reshape(-1, self.streams, self.spans, spans.shape[2]).mean(dim=2).flatten(1)


class JointAggregator(Aggregator):
    """Tokens (B, streams * spans * width) to logits (B, labels) and embedding (B, embedding_dim)."""

    def __init__(self, recipe: MuMaeModel, streams: int, labels: int) -> None:
        """Build the layers for that many streams and labels."""
        super().__init__()
        self.width, self.embedding_dim = recipe.width, recipe.embedding_dim
        self.count = streams * recipe.spans
        self.joint = Transformer(recipe.width, recipe.depth, recipe.heads, recipe.dropout)
        fusion = CrossAttentionFusion if recipe.fusion == "cross-attention" else ConcatenationFusion
        self.fusion = fusion(recipe, streams)
        self.dropout = distributed.Dropout(recipe.dropout)
        self.embedding = nn.Linear(recipe.width + self.fusion.size, recipe.embedding_dim)
        self.head = nn.Linear(recipe.embedding_dim, labels)

    def features(self, tokens: Tensor) -> Tensor:
        """(B, F) for linear probes: mean and deviation, over the spans, of what the joint transformer makes of them."""
        joint = self.joint(tokens.reshape(-1, self.count, self.width))
        return torch.cat([joint.mean(dim=1), joint.std(dim=1)], dim=1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregate a batch."""
        spans = tokens.reshape(-1, self.count, self.width)
        representation = self.joint(spans).mean(dim=1)
        fused = torch.cat([representation, self.fusion(representation, spans)], dim=1)
        embedding = self.embedding(self.dropout(fused))
        return self.head(torch.relu(embedding)), embedding


def build(recipe: MuMaeModel, modalities: Sequence[Modality], lengths: Mapping[str, int], labels: int) -> ArmletModel:
    """A fresh model.

    Args:
        recipe: Sizes.
        modalities: In the order of the tokens.
        lengths: Modality name to samples of a window.
        labels: Number of classes.

    Raises:
        RecipeError: The windows cannot be cut by the recipe's numbers, or heads do not divide the width.
    """
    if recipe.width % (2 * recipe.heads):
        raise RecipeError(f"[model] width = {recipe.width} must be a multiple of 2 x heads ({2 * recipe.heads})")
    strange = set(recipe.video) - {modality.name for modality in modalities}
    if strange:
        raise RecipeError(f"[model.video] names {', '.join(sorted(strange))}, which is not among [data] modalities")
    encoders: dict[str, Encoder] = {}
    for modality in modalities:
        length, video = lengths[modality.name], recipe.video.get(modality.name)
        encoders[modality.name] = (
            VideoEncoder(recipe, video, modality, length) if video else SpanEncoder(recipe, modality, length)
        )
    aggregator = JointAggregator(recipe, len(modalities), labels)
    return ArmletModel([modality.name for modality in modalities], encoders, recipe.spans * recipe.width, aggregator)
