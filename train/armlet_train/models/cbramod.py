"""CBraMod: an encoder of many-channel biosignals by patches and criss-cross attention (Wang et al., ICLR 2025).

The state dict is interchangeable with the published state dict: the same 211 names and shapes (4,924,000 values), see
:func:`armlet_train.models.cbramod_encoder.load_state`. The published constants are the defaults of
:class:`armlet_train.recipes.CBraModSizes`: patches of 200 samples, which are 1 s at 200 Hz, in units of 100 µV. The
same architecture with other constants encodes ECG.

The outputs equal those of the published model but are computed faster: the spectrum is one matrix product with constant
cosines and sines (which also lets the model be exported), the positions' kernel is cut to the rows and columns that can
meet anything but padding, projections of float32 on a CPU run as 1 x 1 convolutions, and dropout draws 16 bits a value.

A channel that is removed and one that is set to zero give different outputs, and each changes the tokens of every other
channel: the group norms take their statistics over all channels, the positions are a convolution across channels, and
attention reads zeros like any other values. Hence armlet gives an absent modality no place in an encoder: each modality
has an encoder of its own, and the mask token of :class:`armlet_train.models.base.ArmletModel` replaces its token.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import distributed
from ..recipes import CBraModSizes

PUBLISHED = CBraModSizes()
"""Of the published weights."""


WORTH = 10_000_000
"""Multiplications from which :func:`linear` takes the way that has more to prepare."""


class CBraMod(nn.Module):
    """Patches (B, channels, patches, patch samples) to their reconstructions, of the same shape.

    :meth:`features` gives what the encoder knows of each patch, (B, channels, patches, width).
    """

    def __init__(self, sizes: CBraModSizes = PUBLISHED) -> None:
        """Build with the published initialisation: He, by fan-out, for every linear layer but the input projections."""
        super().__init__()
        self.sizes = sizes
        self.patch_embedding = PatchEmbedding(sizes)
        self.encoder = Encoder(sizes)
        self.proj_out = nn.Sequential(nn.Linear(sizes.width, sizes.patch))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, channels, patches, width); ``mask`` (B, channels, patches) bool is true where a patch is hidden."""
        features: Tensor = self.encoder(self.patch_embedding(patches, mask))
        return features

    def forward(self, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reconstruct all patches from those that ``mask`` does not hide."""
        reconstructed: Tensor = self.proj_out(self.features(patches, mask))
        return reconstructed


class PatchEmbedding(nn.Module):
    """Each patch by its shape in time and its spectrum, plus its place among channels and patches."""

    fourier: Tensor

    def __init__(self, sizes: CBraModSizes) -> None:
        super().__init__()
        kernel = sizes.positions
        self.positional_encoding = nn.Sequential(
            nn.Conv2d(sizes.width, sizes.width, kernel, padding=(kernel[0] // 2, kernel[1] // 2), groups=sizes.width)
        )
        # Frozen at zero, as published; the paper saw no gain from learning it.
        self.mask_encoding = nn.Parameter(torch.zeros(sizes.patch), requires_grad=False)
        maps, stride = sizes.maps, sizes.stride
        self.proj_in = nn.Sequential(
            nn.Conv2d(1, maps, (1, 2 * stride - 1), (1, stride), (0, stride - 1)),
            nn.GroupNorm(sizes.groups, maps),
            nn.GELU(),
            nn.Conv2d(maps, maps, (1, 3), padding=(0, 1)),
            nn.GroupNorm(sizes.groups, maps),
            nn.GELU(),
            nn.Conv2d(maps, maps, (1, 3), padding=(0, 1)),
            nn.GroupNorm(sizes.groups, maps),
            nn.GELU(),
        )
        self.spectral_proj = nn.Sequential(nn.Linear(sizes.patch // 2 + 1, sizes.width), Dropout(sizes.dropout))
        self.register_buffer("fourier", fourier(sizes.patch).float(), persistent=False)

    def forward(self, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, channels, patches, width) of patches (B, channels, patches, samples); see :meth:`CBraMod.features`."""
        batch, channels, count, _ = patches.shape
        if mask is not None:
            patches = torch.where(mask[..., None], self.mask_encoding, patches)
        # An image of one row a patch: the kernels never leave a row, the group norms average over all of them.
        shape: Tensor = self.proj_in(patches.reshape(batch, 1, channels * count, -1))
        embedded = shape.transpose(1, 2).reshape(batch, channels, count, -1) + self._spectrum(patches)
        return embedded + self._positions(embedded)

    def _spectrum(self, patches: Tensor) -> Tensor:
        cosine, sine = linear(patches, self.fourier, None).chunk(2, dim=-1)
        # The summand, far below what float32 resolves, keeps the gradient finite for a patch of zeros.
        magnitude = torch.sqrt(cosine.square() + sine.square() + 1e-14)
        projection, dropout = self.spectral_proj
        assert isinstance(projection, nn.Linear)
        spectrum: Tensor = dropout(linear(magnitude, projection.weight, projection.bias))
        return spectrum

    def _positions(self, embedded: Tensor) -> Tensor:
        convolution = self.positional_encoding[0]
        assert isinstance(convolution, nn.Conv2d)
        image = embedded.permute(0, 3, 1, 2)
        if torch.compiler.is_compiling():
            # An exported program wants a weight that is not computed.
            placed: Tensor = convolution(image)
            return placed.permute(0, 2, 3, 1)
        # Of 19 rows, only 2 C - 1 can meet one of C channels, the rest meet padding; and so along the patches.
        weight = convolution.weight
        rows = min(weight.shape[2] // 2, embedded.shape[1] - 1)
        columns = min(weight.shape[3] // 2, embedded.shape[2] - 1)
        row, column = weight.shape[2] // 2 - rows, weight.shape[3] // 2 - columns
        weight = weight[:, :, row : row + 2 * rows + 1, column : column + 2 * columns + 1]
        placed = F.conv2d(image, weight, convolution.bias, padding=(rows, columns), groups=convolution.groups)
        return placed.permute(0, 2, 3, 1)


def fourier(patch: int) -> Tensor:
    """(2 * bins, patch) float64: cosines and sines of the discrete Fourier transform, over the number of samples."""
    angles = 2 * math.pi / patch * torch.outer(torch.arange(patch // 2 + 1), torch.arange(patch)).double()
    return torch.cat([angles.cos(), angles.sin()]) / patch


class Encoder(nn.Module):
    """The layers, one after the other; no norm at the end."""

    def __init__(self, sizes: CBraModSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, channels, patches, width) to the same."""
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens


class Layer(nn.Module):
    """Pre-norm: half of the width attends across the channels of a patch, half across the patches of a channel."""

    def __init__(self, sizes: CBraModSizes) -> None:
        super().__init__()
        self.self_attn_s = Attention(sizes.width // 2, sizes.heads // 2, sizes.dropout)
        self.self_attn_t = Attention(sizes.width // 2, sizes.heads // 2, sizes.dropout)
        self.linear1 = nn.Linear(sizes.width, sizes.feedforward)
        self.linear2 = nn.Linear(sizes.feedforward, sizes.width)
        self.norm1 = nn.LayerNorm(sizes.width)
        self.norm2 = nn.LayerNorm(sizes.width)
        self.dropout = Dropout(sizes.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, channels, patches, width) to the same."""
        spatial, temporal = self.norm1(tokens).chunk(2, dim=3)
        attended = torch.cat([self.self_attn_s(spatial, along=1), self.self_attn_t(temporal, along=2)], dim=3)
        tokens = tokens + self.dropout(attended)
        hidden = F.gelu(linear(self.norm2(tokens), self.linear1.weight, self.linear1.bias))
        out: Tensor = self.dropout(linear(self.dropout(hidden), self.linear2.weight, self.linear2.bias))
        return tokens + out


class Attention(nn.Module):
    """Multi-head self-attention along one axis of a grid, with the parameters of ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor, along: int) -> Tensor:
        """(B, channels, patches, width) to the same; attends along channels (1) or patches (2)."""
        batch, channels, patches, width = tokens.shape
        if tokens.shape[along] == 1 and not self.training:
            # Alone, each attends to itself, whatever the query and the key.
            value = linear(tokens, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
            return linear(value, self.out_proj.weight, self.out_proj.bias)
        projected = linear(tokens, self.in_proj_weight, self.in_proj_bias)
        # Query, key and value: each (B * the other axis, heads, the axis attended along, width of a head).
        parts = projected.reshape(batch, channels, patches, 3, self.heads, -1)
        parts = parts.transpose(1, 2) if along == 1 else parts
        query, key, value = parts.permute(3, 0, 1, 4, 2, 5).flatten(1, 2).unbind()
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
        attended = self.dropout(scores.softmax(3)) @ value
        merged = attended.transpose(1, 2).reshape(batch, parts.shape[1], parts.shape[2], self.heads, -1)
        merged = merged.transpose(1, 2) if along == 1 else merged
        return linear(merged.reshape(tokens.shape), self.out_proj.weight, self.out_proj.bias)


class Dropout(distributed.Dropout):
    """Dropout that draws 16 random bits a value on a CPU, several times as fast as PyTorch's one double a value."""

    def forward(self, input: Tensor) -> Tensor:
        """Set each value to zero with probability ``p``, and scale the rest."""
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        return input * distributed.rows(lambda count: self._kept(count, input), input.shape[0])

    def _kept(self, count: int, like: Tensor) -> Tensor:
        shape = (count, *like.shape[1:])
        size = math.prod(shape)
        words = torch.empty((size + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.int16)[:size].view(shape) >= round(self.p * 2**16) - 2**15
        return kept.to(like.dtype).mul_(1 / (1 - self.p))


def linear(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``; for large float32 inputs on a CPU by way of a 1 x 1 convolution.

    A linear layer goes to the CPU's BLAS, which with PyTorch's builds is MKL, and MKL leaves AVX-512 unused on other
    makers' CPUs. Convolutions go to oneDNN, which uses it: measured on an AMD EPYC, half of the time for 1,280 tokens.
    """
    if torch.compiler.is_compiling():  # and when exporting: a graph for any batch knows no number of rows
        return F.linear(values, weight, bias)
    # A matrix even where the values are half of wider rows: neither way copies such rows before it multiplies them.
    rows = values.reshape(-1, weight.shape[1])
    count = rows.shape[0]
    images = next((images for images in range(17, 65) if count % images == 0), None)
    if images is None or rows.numel() * weight.shape[0] < WORTH or not rows.is_cpu:
        return F.linear(rows, weight, bias).reshape(*values.shape[:-1], -1)
    # Channels last, so that nothing is moved; PyTorch takes oneDNN from 17 images on.
    pixels = rows.view(images, 1, count // images, -1).permute(0, 3, 1, 2)
    mapped = F.conv2d(pixels, weight[:, :, None, None], bias)
    return mapped.permute(0, 2, 3, 1).reshape(*values.shape[:-1], -1)
