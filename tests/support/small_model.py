"""Make a small real model as a draft: ``python -m tests.support.small_model FOLDER``.

A process of its own, because of torch. Two modalities, random weights, float programs for LiteRT, ExecuTorch and ONNX
Runtime, with golden windows and every engine's own logits on them. Beside the draft, in ``FOLDER/programs``, lies a
program with two inputs that must not be mixed up: ``a``, ``b`` (1, 3) give ``difference`` = a - b (1, 3) and
``joined`` = [a, b, a] (1, 9); and, as .pte only, ``rounded`` that rounds ``x`` (1, 3) to multiples of 0.5 with
quantised kernels outside any delegate.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from armlet_runtime.bundle.manifest import MANIFEST_SCHEMA, EnginePrograms, GoldenRef, Manifest, ProgramRef
from armlet_runtime.bundle.manifest_file import encode_manifest
from armlet_runtime.install import check_command
from armlet_runtime.modalities import Modality
from armlet_runtime.windows import Normalisation, WindowSpec

NAMES = ("acc", "gyro")
SAMPLES, TOKEN, EMBEDDING, LABELS, GOLDEN, BANK = 50, 16, 12, 4, 5, 24
SUFFIXES = {"litert": "tflite", "executorch": "pte", "onnx": "onnx"}


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (1, 5), stride=(1, 2))
        self.project = nn.Linear(8 * 23, TOKEN)

    def forward(self, window: Tensor) -> Tensor:
        x = torch.relu(self.conv(window.view(1, 3, 1, SAMPLES)))
        token: Tensor = self.project(x.view(1, 8 * 23))
        return token


class Aggregator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(len(NAMES) * TOKEN, EMBEDDING)
        self.head = nn.Linear(EMBEDDING, LABELS)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        embedding = torch.relu(self.mix(tokens))
        return self.head(embedding), embedding


class TwoInputs(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a - b, torch.cat([a, b, a], dim=1)


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        ops = torch.ops.quantized_decomposed
        whole = ops.quantize_per_tensor(x, 0.5, 0, -128, 127, torch.int8)
        rounded: Tensor = ops.dequantize_per_tensor(whole, 0.5, 0, -128, 127, torch.int8)
        return rounded


def lower_quantised_kernels(path: Path) -> None:
    import executorch.kernels.quantized  # noqa: F401  (the operators' out variants)
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(Rounded().eval(), (torch.randn(1, 3),))
    path.write_bytes(to_edge_transform_and_lower(exported).to_executorch().buffer)


def lower(model: nn.Module, example: tuple[Tensor, ...], stem: Path, inputs: list[str], outputs: list[str]) -> None:
    """Write ``stem`` as .tflite, .pte and .onnx."""
    import litert_torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    model.eval()
    litert_torch.convert(model, example).export(str(stem.with_suffix(".tflite")))
    exported = torch.export.export(model, example)
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    stem.with_suffix(".pte").write_bytes(lowered.buffer)
    torch.onnx.export(
        model, example, str(stem.with_suffix(".onnx")), input_names=inputs, output_names=outputs,
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


def npy(array: np.ndarray, kind: type = np.float32) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array.astype(kind))
    return buffer.getvalue()


def manifest() -> Manifest:
    window, token = {"window": (1, 3, SAMPLES)}, {"token": (1, TOKEN)}
    tokens = {"tokens": (1, len(NAMES) * TOKEN)}
    results = {"logits": (1, LABELS), "embedding": (1, EMBEDDING)}
    return Manifest(
        schema=MANIFEST_SCHEMA,
        name="small",
        version="1",
        created="2026-01-01T00:00:00Z",
        made_with={"torch": str(torch.__version__)},
        modalities=(Modality("acc", ("x", "y", "z"), "g", 50.0), Modality("gyro", ("x", "y", "z"), "rad/s", 50.0)),
        window=WindowSpec(length_s=1.0, hop_s=0.5),
        normalisation={
            "acc": Normalisation((0.1, -0.2, 0.9), (0.5, 0.4, 0.3)),
            "gyro": Normalisation((0.0, 0.0, 0.0), (1.5, 1.0, 2.0)),
        },
        labels=("lying", "sitting", "standing", "walking"),
        token_dim=TOKEN,
        embedding_dim=EMBEDDING,
        engines={
            engine: EnginePrograms(
                {name: ProgramRef(f"programs/{name}.{suffix}", window, token, "fp32") for name in NAMES},
                ProgramRef(f"programs/aggregator.{suffix}", tokens, results, "fp32"),
            )
            for engine, suffix in SUFFIXES.items()
        },
        mask_tokens="mask_tokens.npy",
        golden=GoldenRef(
            {name: f"golden/{name}.npy" for name in NAMES}, {engine: f"golden/{engine}.npy" for engine in SUFFIXES}
        ),
        certificate="certificate.json",
        sbom="sbom.json",
        bank="bank.npy",
    )


def main(folder: Path) -> None:
    torch.manual_seed(7)
    random = np.random.default_rng(7)
    for sub in ("programs", "golden"):
        (folder / sub).mkdir(parents=True)
    for name in NAMES:
        lower(Encoder(), (torch.randn(1, 3, SAMPLES),), folder / "programs" / name, ["window"], ["token"])
        (folder / "golden" / f"{name}.npy").write_bytes(npy(random.standard_normal((GOLDEN, 3, SAMPLES))))
    tokens = torch.randn(1, len(NAMES) * TOKEN)
    lower(Aggregator(), (tokens,), folder / "programs" / "aggregator", ["tokens"], ["logits", "embedding"])
    pair = (torch.randn(1, 3), torch.randn(1, 3))
    lower(TwoInputs(), pair, folder / "programs" / "two", ["a", "b"], ["difference", "joined"])
    lower_quantised_kernels(folder / "programs" / "rounded.pte")
    (folder / "mask_tokens.npy").write_bytes(npy(random.standard_normal((len(NAMES), TOKEN))))
    bank = npy(random.standard_normal((BANK, len(NAMES) * TOKEN)), np.float16)
    (folder / "bank.npy").write_bytes(bank)
    (folder / "manifest.json").write_bytes(encode_manifest(manifest()))
    (folder / "sbom.json").write_text(json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "components": []}))

    np.savez(folder / "input.npz", **{name: np.load(folder / "golden" / f"{name}.npy") for name in NAMES})
    rows = []
    for engine in SUFFIXES:
        proof = (folder, folder / "input.npz", folder / f"{engine}.npz", "--engine", engine)
        subprocess.run(check_command("export_proof", *proof), check=True)
        with np.load(folder / f"{engine}.npz") as proof:
            (folder / "golden" / f"{engine}.npy").write_bytes(npy(proof["logits"]))
        for subset in ("acc+gyro", "acc", "gyro"):
            rows.append(
                {"subset": subset, "engine": engine, "macro_f1": 0.5, "macro_f1_pytorch": 0.5}
                | {"max_distance": 1e-6, "mean_distance": 1e-7, "agreement": 1.0}
            )
    certificate = {"data": "random numbers", "people": ["nobody"], "windows": GOLDEN, "rows": rows}
    (folder / "certificate.json").write_text(json.dumps(certificate))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
