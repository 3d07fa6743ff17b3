"""Small modules of the kinds that recipes are made of, to be lowered in tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norms(nn.Module):
    """Convolutions with batch, layer and group norm, PReLU and GELU; mean and deviation over time."""

    shape = (1, 3, 64)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 16, 8, padding="same")  # an even kernel: more padding on the right
        self.batch = nn.BatchNorm1d(16)
        self.layer = nn.LayerNorm(16)
        self.slope = nn.PReLU(16)
        self.second = nn.Conv1d(16, 32, 5, stride=2, padding=2)
        self.group = nn.GroupNorm(4, 32)
        self.token = nn.Linear(64, 8)
        vary(self)

    def forward(self, window: Tensor) -> Tensor:
        values = self.layer(self.batch(self.first(window)).transpose(1, 2)).transpose(1, 2)
        values = F.gelu(self.group(self.second(self.slope(values))))
        token: Tensor = self.token(torch.cat([values.mean(-1), values.std(-1)], 1))
        return token


class Plain(nn.Module):
    """Nested convolutions with ReLU and padding "same", a global average, and an embedding that feeds the head."""

    shape = (1, 3, 32)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Conv1d(3, 8, 4, padding="same", bias=False), nn.BatchNorm1d(8), nn.ReLU()),
            nn.Sequential(nn.Sequential(nn.Conv1d(8, 12, 3, padding="same"), nn.ReLU())),
        )
        self.embedding, self.head = nn.Linear(12, 10), nn.Linear(10, 3)
        vary(self)
        with torch.no_grad():
            self.embedding.weight[0] = 0.0  # a dead channel
            self.head.weight[1, 2] = -2.0  # a channel whose largest weight is negative

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        values = F.avg_pool1d(self.layers(window), 32).flatten(1)
        embedding = torch.relu(self.embedding(values))
        return self.head(embedding), embedding


class EqualWidths(nn.Module):
    """Layers with the same number of outputs, whose weights' zero points are equal, so that an exporter joins them."""

    shape = (1, 3, 32)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 16, 5, padding=2), nn.Conv1d(16, 16, 5, padding=2)
        self.token = nn.Linear(16, 16)
        vary(self)

    def forward(self, window: Tensor) -> Tensor:
        values = torch.relu(self.second(torch.relu(self.first(window))))
        token: Tensor = self.token(values.mean(-1))
        return token


class Embedded(nn.Module):
    """An embedding that is an output as it is, and goes through a ReLU to the head."""

    shape = (1, 24)

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(24, 10), nn.Linear(10, 3)
        vary(self)

    def activated(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(values), values

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        values, embedding = self.activated(self.embedding(tokens))
        return self.head(values), embedding


class EmbeddedByElu(Embedded):
    """An embedding that no layer ends in, an output and the head's input at once."""

    def activated(self, values: Tensor) -> tuple[Tensor, Tensor]:
        values = F.elu(values)
        return values, values


class Gated(nn.Module):
    """A recurrent layer, which no engine here takes."""

    shape = (1, 2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(4, 6, batch_first=True)

    def forward(self, window: Tensor) -> Tensor:
        every: Tensor = self.layer(window)[0]
        return every[:, -1]


class Perceptron(nn.Module):
    """Linear layers alone."""

    shape = (1, 24)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(24, 32), nn.LayerNorm(32), nn.Linear(32, 8)
        vary(self)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.second(F.gelu(self.norm(self.first(tokens))))
        return out


class Attention(nn.Module):
    """A transformer over tokens with a class token, positions, packed projections and an attention of its own."""

    shape = (1, 64)

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu", norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.embed, self.packed, self.head = nn.Linear(16, 32), nn.Linear(32, 96), nn.Linear(32, 6)
        self.first, self.positions = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(torch.zeros(1, 5, 32))
        vary(self)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        count = tokens.shape[0]
        values = self.embed(tokens.reshape(count, 4, 16))
        values = self.layers(torch.cat([self.first.expand(count, -1, -1), values], 1) + self.positions)
        query, key, value = self.packed(values).chunk(3, -1)
        values = values + torch.softmax(query @ key.transpose(1, 2) * 0.2, -1) @ value
        return self.head(values[:, 0]), values.mean(1)


class CrissCross(nn.Module):
    """CBraMod's shape (convolutions with group norm, a spectrum, depthwise positions, criss-cross attention)."""

    shape = (1, 4, 600)

    def __init__(self, width: int = 40, layers: int = 1, maps: int = 5, patch: int = 200) -> None:
        super().__init__()
        self.patch, self.width = patch, width
        self.conv = nn.Sequential(
            nn.Conv2d(1, maps, (1, 49), (1, 25), (0, 24)), nn.GroupNorm(5, maps), nn.GELU(),
            nn.Conv2d(maps, maps, (1, 3), padding=(0, 1)), nn.GroupNorm(5, maps), nn.GELU(),
        )  # fmt: skip
        self.spectrum = nn.Linear(patch // 2 + 1, width)
        self.positions = nn.Conv2d(width, width, (5, 3), padding=(2, 1), groups=width)
        self.layers = nn.ModuleList(_CrissCrossLayer(width) for _ in range(layers))
        self.token = nn.Linear(width, 16)
        vary(self)

    def forward(self, window: Tensor) -> Tensor:
        batch, channels, length = window.shape
        patches = length // self.patch
        raw = window.reshape(batch, 1, channels * patches, self.patch)
        values = self.conv(raw).permute(0, 2, 1, 3).reshape(batch, channels, patches, self.width)
        spectrum = torch.fft.rfft(raw.reshape(batch, channels, patches, self.patch), dim=-1, norm="forward").abs()
        values = values + self.spectrum(spectrum)
        values = values + self.positions(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        for layer in self.layers:
            values = layer(values)
        token: Tensor = self.token(values.mean((1, 2)))
        return token


class _CrissCrossLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.MultiheadAttention(half, 4, batch_first=True)
        self.along = nn.MultiheadAttention(half, 4, batch_first=True)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, values: Tensor) -> Tensor:
        batch, channels, patches, width = values.shape
        half = width // 2
        normal = self.first(values)
        across = normal[..., :half].transpose(1, 2).reshape(batch * patches, channels, half)
        along = normal[..., half:].reshape(batch * channels, patches, half)
        across = self.across(across, across, across, need_weights=False)[0]
        along = self.along(along, along, along, need_weights=False)[0]
        across = across.reshape(batch, patches, channels, half).transpose(1, 2)
        values = values + torch.cat([across, along.reshape(batch, channels, patches, half)], -1)
        out: Tensor = values + self.narrow(F.gelu(self.wide(self.second(values))))
        return out


def vary(module: nn.Module) -> None:
    """Give norms, slopes and running statistics values that are not the neutral ones they begin with."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.PReLU)):
                for parameter in part.parameters():
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert part.running_mean is not None and part.running_var is not None
                part.running_mean.normal_(generator=draw)
                part.running_var.uniform_(0.5, 2.0, generator=draw)
        for parameter in module.parameters(recurse=False):
            parameter.normal_(generator=draw)
    module.eval()
