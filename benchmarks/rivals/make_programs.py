"""Programs of one model, made in different ways: ``python -m benchmarks.rivals.make_programs FOLDER``.

``programs.py`` loads them. A process of its own, because of torch. The weights are random (speed does not hang on
them), the ranges come from random windows. Two models, as a researcher writes them, with Conv1d, BatchNorm1d and a
mean over time:

- ``conv``: the sizes of the recipe ``hapt``;
- ``attention``: the same encoders, and an aggregator with an ``nn.TransformerEncoderLayer`` over the tokens.

For each, armlet's own export of encoders and aggregator (int8 and fp32 .pte, int8 and dynamic int8 .tflite), and the
plain export of the whole model in one program, by the recipe of ExecuTorch's documentation for XNNPACK: PT2E with
XNNPACKQuantizer, then ``to_edge_transform_and_lower`` with XnnpackPartitioner.

``null.*`` has one operator on one number.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from armlet_export.backends import Part, Signature, lower_part
from armlet_export.quantise import learn_ranges, prepare

from .programs import CHANNELS, EMBEDDING, LABELS, MODALITIES, SAMPLES, TOKEN

CALIBRATION = 20
SUFFIXES = {"executorch": "pte", "litert": "tflite"}
SIGNATURES = {
    "encoder": Signature("window", (1, CHANNELS, SAMPLES), {"token": (1, TOKEN)}),
    "aggregator": Signature(
        "tokens", (1, len(MODALITIES) * TOKEN), {"logits": (1, LABELS), "embedding": (1, EMBEDDING)}
    ),
}


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = CHANNELS
        for channels, kernel in ((32, 9), (64, 5), (96, 5)):
            layers += [
                nn.Conv1d(before, channels, kernel, stride=2, padding=kernel // 2),
                nn.BatchNorm1d(channels),
                nn.ReLU(),
            ]
            before = channels
        self.layers = nn.Sequential(*layers)
        self.token = nn.Linear(before, TOKEN)

    def forward(self, window: Tensor) -> Tensor:
        token: Tensor = self.token(self.layers(window).mean(-1))
        return token


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(len(MODALITIES) * TOKEN, 128)
        self.embedding = nn.Linear(128, EMBEDDING)
        self.head = nn.Linear(EMBEDDING, LABELS)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        embedding = torch.relu(self.embedding(torch.relu(self.hidden(tokens))))
        return self.head(embedding), embedding


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(TOKEN, 4, 2 * TOKEN, batch_first=True)
        self.embedding = nn.Linear(TOKEN, EMBEDDING)
        self.head = nn.Linear(EMBEDDING, LABELS)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.layer(tokens.reshape(tokens.shape[0], len(MODALITIES), TOKEN)).mean(1)
        embedding = torch.relu(self.embedding(mixed))
        return self.head(embedding), embedding


class Whole(nn.Module):
    """The model in one piece."""

    def __init__(self, encoders: dict[str, nn.Module], aggregator: nn.Module) -> None:
        super().__init__()
        self.encoders, self.aggregator = nn.ModuleDict(encoders), aggregator

    def forward(self, *windows: Tensor) -> tuple[Tensor, Tensor]:
        tokens = [encoder(window) for encoder, window in zip(self.encoders.values(), windows, strict=True)]
        result: tuple[Tensor, Tensor] = self.aggregator(torch.cat(tokens, dim=1))
        return result


def folded(encoder: Encoder) -> Encoder:
    """Batch normalisation in the convolutions before it, as armlet's export has it."""
    result = copy.deepcopy(encoder)
    layers: list[nn.Module] = []
    for layer in encoder.layers:
        if isinstance(layer, nn.BatchNorm1d):
            convolution = layers.pop()
            assert isinstance(convolution, nn.Conv1d)
            layers.append(nn.utils.fusion.fuse_conv_bn_eval(convolution, layer))
        else:
            layers.append(layer)
    result.layers = nn.Sequential(*layers)
    return result


def armlets(module: nn.Module, signature: Signature, stem: str, folder: Path) -> None:
    prepared = prepare(module, signature.example())
    learn_ranges(prepared, True)
    with torch.no_grad():
        for _ in range(CALIBRATION):
            prepared(torch.randn(32, *signature.input_shape[1:]))
    for engine, precision in (
        ("executorch", "int8"), ("executorch", "fp32"), ("litert", "int8"), ("litert", "dynamic"),
    ):  # fmt: skip
        made = lower_part(engine, Part(module, signature, precision, prepared if precision == "int8" else None))
        (folder / f"{stem}_{precision}.{SUFFIXES[engine]}").write_bytes(made.data)


def plain(model: nn.Module) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def windows() -> tuple[Tensor, ...]:
        return tuple(torch.randn(1, CHANNELS, SAMPLES) for _ in MODALITIES)

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(model, windows()).module(), quantizer)
    for _ in range(CALIBRATION):
        prepared(*windows())
    exported = torch.export.export(convert_pt2e(prepared), windows())
    return bytes(to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)


class Null(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    signature = Signature("window", (1, 1), {"token": (1, 1)})
    for engine, suffix in {**SUFFIXES, "onnx": "onnx"}.items():
        (folder / f"null.{suffix}").write_bytes(lower_part(engine, Part(Null(), signature, "fp32")).data)
    kinds: dict[str, Callable[[], nn.Module]] = {"conv": Dense, "attention": Attention}
    for kind, make in kinds.items():
        encoders: dict[str, Encoder] = {name: Encoder().eval() for name in MODALITIES}
        for encoder in encoders.values():
            for layer in encoder.layers:
                if isinstance(layer, nn.BatchNorm1d):
                    layer.running_mean = 0.1 * torch.randn(layer.num_features)
                    layer.running_var = 0.5 + torch.rand(layer.num_features)
        aggregator = make().eval()
        for name, encoder in encoders.items():
            armlets(folded(encoder), SIGNATURES["encoder"], f"{kind}_{name}", folder)
        armlets(aggregator, SIGNATURES["aggregator"], f"{kind}_aggregator", folder)
        (folder / f"{kind}_plain_int8.pte").write_bytes(plain(Whole(dict(encoders), aggregator).eval()))


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # the converters talk
        main(Path(sys.argv[1]))
