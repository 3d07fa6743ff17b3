"""The model section of a recipe: a struct for each kind."""

from __future__ import annotations

from typing import Literal

import msgspec


class ModelRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """What kind of model, and its sizes; each kind has a struct (:func:`armlet_train.models.build.build_model`)."""


class ConvModel(ModelRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="conv"):
    """Armlet's own small model, :class:`armlet_train.models.conv.ConvEncoder`.

    Attributes:
        channels: Of each convolution.
        kernels: Samples that each spans.
        strides: Samples from step to step of each.
        token_dim: Width of a token.
        hidden_dim: Width between the tokens and the embedding.
        embedding_dim: Width of the embedding.
        dropout: Before the embedding.
        mask: Replacement of an absent token; see :func:`armlet_train.methods.masks.set_mask_policy`.
    """

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    token_dim: int
    hidden_dim: int
    embedding_dim: int
    dropout: float
    mask: Literal["zero", "token", "presence", "attention"] = "token"

    @property
    def flagged(self) -> bool:
        """Whether the last element of a token is a flag of its presence."""
        return self.mask in ("presence", "attention")

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.kernels) == len(self.strides) > 0:
            raise ValueError("channels, kernels and strides must have one entry for each layer")


class CrosslModel(ModelRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="crossl"):
    """The model of CroSSL's paper, :class:`armlet_train.models.crossl.CrosslEncoder`; the defaults are the published
    ones.

    Attributes:
        kernels: Of the three convolutions, whose channels are a quarter, a half and the whole of ``token_dim``.
        token_dim: Width of a token, a multiple of 4.
        hidden_dim: Of the aggregator's first layer.
        embedding_dim: Width of the embedding.
        dropout: After each convolution.
    """

    kernels: tuple[int, int, int] = (24, 16, 8)
    token_dim: int = 96
    hidden_dim: int = 64
    embedding_dim: int = 32
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.token_dim < 4 or self.token_dim % 4:
            raise ValueError("token_dim must be a multiple of 4")


class CBraModSizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One CBraMod encoder, see :mod:`armlet_train.models.cbramod`. The defaults are those of the published weights.

    Attributes:
        patch: Samples of a patch; the published weights take 1 s at 200 Hz.
        stride: Samples from step to step of the first convolution, whose kernel is twice as long less one.
        maps: Of the convolutions; ``maps * patch / stride`` is the width of the encoder.
        groups: Of the group norms.
        layers: Of criss-cross attention.
        heads: Half of them attend across channels, half across patches.
        feedforward: Hidden width of each layer's two linear maps.
        positions: Channels and patches that the convolution for positions reaches over; odd.
        dropout: In training.
        weights: File of weights to start from, such as the published ``pretrained_weights.pth``; they take microvolts
            at 200 Hz, and ``[data] scale`` must divide by 100. Dual-masked pretraining does not change such an encoder.
    """

    patch: int = 200
    stride: int = 25
    maps: int = 25
    groups: int = 5
    layers: int = 12
    heads: int = 8
    feedforward: int = 800
    positions: tuple[int, int] = (19, 7)
    dropout: float = 0.1
    weights: str | None = None

    @property
    def width(self) -> int:
        """Of what stands for a patch."""
        return self.maps * self.patch // self.stride

    def __post_init__(self) -> None:
        if min(self.patch, self.stride, self.maps, self.groups, self.layers, self.heads, self.feedforward) < 1:
            raise ValueError("patch, stride, maps, groups, layers, heads and feedforward must be at least 1")
        if self.patch % self.stride:
            raise ValueError(f"patch ({self.patch}) must be divisible by stride ({self.stride})")
        if self.maps % self.groups:
            raise ValueError(f"maps ({self.maps}) must be divisible by groups ({self.groups})")
        if self.heads % 2 or self.width % self.heads:
            raise ValueError(f"heads must be even and divide the width, maps * patch / stride = {self.width}")
        if not all(reach % 2 for reach in self.positions):
            raise ValueError("positions must be two odd numbers")


class CBraModModel(ModelRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="cbramod"):
    """A CBraMod encoder a modality, fused by concatenation; see :mod:`armlet_train.models.cbramod`.

    Attributes:
        encoders: Modality to the sizes of its encoder.
        pool: How a window's patches become one token: their ``mean``, or all of them side by side (``flat``), each
            followed by a linear map.
        token_dim: Width of a token.
        embedding_dim: Width between the concatenated tokens and the head.
        dropout: Before the head.
    """

    encoders: dict[str, CBraModSizes]
    pool: Literal["mean", "flat"]
    token_dim: int
    embedding_dim: int
    dropout: float


Fusion = Literal["cross-attention", "concatenation"]


class VideoRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A stream of pictures: its channels are colours x height x width, in this order.

    Attributes:
        height: Pixels.
        width: Pixels.
        patch: Side of the square patches, in pixels; the published code has 16, in pictures of 224 x 224.
        colours: Values of a pixel.
    """

    height: int
    width: int
    patch: int = 16
    colours: int = 3


class MuMaeModel(ModelRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="mumae"):
    """Spans of every stream through one joint transformer, fused by cross-attention; see
    :mod:`armlet_train.models.mumae`.

    Attributes:
        spans: Spans that a window of every stream is cut into; 16 as published (of 8 samples there).
        width: Of a span's embedding, and of the joint transformer; published: 768.
        depth: Layers of the joint transformer; published: 12.
        heads: Of every attention; published: 12.
        fusion: How streams come together: by ``cross-attention``, or by plain ``concatenation`` of their means.
        queries: Queries to each stream in the cross-attention; published: 1.
        embedding_dim: Width of the embedding; published: 768.
        dropout: In the joint transformer, and before the embedding.
        video: Streams that are video.
    """

    spans: int = 16
    width: int
    depth: int
    heads: int
    fusion: Fusion
    queries: int = 1
    embedding_dim: int
    dropout: float
    video: dict[str, VideoRecipe] = {}
