"""Recordings that the bridge's tests play, and small real bundles that they deploy."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from armlet_runtime.bundle import keys
from armlet_runtime.bundle.bundle_writer import write_bundle
from armlet_runtime.bundle.manifest import EnginePrograms, GoldenRef, Manifest, ProgramRef
from armlet_runtime.modalities import Modality
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.golden_run import run_subsets
from armlet_runtime.signals.recording import Recording, Stream
from armlet_runtime.windows import Normalisation, WindowSpec

UNITS = {"acc": "g", "gyro": "rad/s", "mag": "uT"}


@dataclass(frozen=True)
class Fault:
    """What an encoder does wrong, and with which windows.

    Attributes:
        kind: ``crash`` (it divides the least integer by -1, which ends the process with SIGFPE), ``nan``, or ``slow``.
        when: ``golden``: with the first golden window; ``live``: with a window of the live loop that is none of the
            golden ones; ``strong``: where the acceleration is 3 g to 1000 g.
    """

    kind: str
    when: str


@pytest.fixture
def make_recording() -> Callable[..., Recording]:
    """A recording whose channel x counts the samples (in 1/1000 of the unit), so that a lost one shows."""

    def make(seconds: float, names: tuple[str, ...] = ("acc", "gyro"), rate_hz: float = 50.0) -> Recording:
        count = round(seconds * rate_hz)
        times_ns = (np.arange(count) * 1e9 / rate_hz).astype(np.int64)
        streams = {}
        for name in names:
            values = np.zeros((count, 3), np.float32)
            values[:, 0] = np.arange(count) % 1000 / 1000
            streams[name] = Stream(Modality(name, ("x", "y", "z"), UNITS[name], rate_hz), times_ns, values)
        return Recording("counting", "nobody", streams=streams)

    return make


@pytest.fixture
def recording(make_recording: Callable[..., Recording]) -> Recording:
    """Two seconds of acc and gyro."""
    return make_recording(2.0)


@pytest.fixture
def signing_key(tmp_path: Path) -> Path:
    """A new key; its public half lies beside it with ``.pub`` added."""
    path = tmp_path / "signing.key"
    keys.generate(path)
    return path


@pytest.fixture
def make_bundle(tmp_path: Path, signing_key: Path) -> Callable[..., Path]:
    """A small real bundle: two encoders and an aggregator as ONNX programs with random weights by ``seed``."""

    def make(
        seed: int = 0,
        golden_error: float = 0.0,
        key: Path = signing_key,
        release: int = 0,
        hop_s: float = 0.5,
        fault: Fault | None = None,
    ) -> Path:
        return small_bundle(tmp_path, key, seed, golden_error, release, hop_s, fault)

    return make


def small_bundle(
    folder: Path,
    key: Path,
    seed: int = 0,
    golden_error: float = 0.0,
    release: int = 0,
    hop_s: float = 0.5,
    fault: Fault | None = None,
) -> Path:
    """Make a bundle as of :func:`make_bundle` in a folder."""
    rng = np.random.default_rng(seed)
    channels, samples, tokens, labels = 3, 8, 4, 3
    modalities = tuple(Modality(name, ("x", "y", "z"), UNITS[name], 8.0) for name in ("acc", "gyro"))
    members: dict[str, bytes] = {}
    encoders = {}
    for modality in modalities:
        member = f"onnx/{modality.name}.onnx"
        weight = rng.normal(size=(channels * samples, tokens)).astype(np.float32)
        members[member] = _linear("window", (1, channels, samples), {"token": weight})
        encoders[modality.name] = ProgramRef(member, {"window": (1, channels, samples)}, {"token": (1, tokens)}, "fp32")
    weights = {
        "logits": rng.normal(size=(2 * tokens, labels)).astype(np.float32),
        "embedding": rng.normal(size=(2 * tokens, tokens)).astype(np.float32),
    }
    members["onnx/aggregator.onnx"] = _linear("tokens", (1, 2 * tokens), weights)
    aggregator = ProgramRef(
        "onnx/aggregator.onnx",
        {"tokens": (1, 2 * tokens)},
        {"logits": (1, labels), "embedding": (1, tokens)},
        "fp32",
    )
    members["mask_tokens.npy"] = _npy(rng.normal(size=(2, tokens)))
    members["certificate.json"] = b'{"data": "random numbers", "people": ["nobody"], "windows": 5, "rows": []}'
    members["sbom.json"] = b"{}"
    windows = {m.name: rng.normal(size=(5, channels, samples)).astype(np.float32) for m in modalities}
    for name, array in windows.items():
        members[f"golden/{name}.npy"] = _npy(array)
    manifest = Manifest(
        schema=1,
        name="toy",
        version=f"0.{seed}",
        created="2026-01-01T00:00:00+00:00",
        made_with={"armlet": "0.1.0"},
        modalities=modalities,
        window=WindowSpec(1.0, hop_s),
        normalisation={m.name: Normalisation((0.0,) * 3, (1.0,) * 3) for m in modalities},
        labels=("sit", "stand", "walk"),
        token_dim=tokens,
        embedding_dim=tokens,
        engines={"onnx": EnginePrograms(encoders, aggregator)},
        mask_tokens="mask_tokens.npy",
        golden=GoldenRef({name: f"golden/{name}.npy" for name in windows}, {"onnx": "golden/onnx.npy"}),
        certificate="certificate.json",
        sbom="sbom.json",
        release=release,
    )
    logits, _ = run_subsets(BundleModel(manifest, members.__getitem__, "onnx"), windows)
    members["golden/onnx.npy"] = _npy(logits + golden_error)
    if fault is not None:
        weight = np.random.default_rng(seed).normal(size=(channels * samples, tokens)).astype(np.float32)
        members["onnx/acc.onnx"] = _faulty((1, channels, samples), weight, fault, windows["acc"])
    path = folder / f"toy-{seed}-{golden_error}-{key.name}-{release}-{hop_s}-{fault}.armlet"
    write_bundle(path, manifest, members, [keys.load_private(key)])
    return path


def _npy(array: NDArray[np.floating]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array.astype(np.float32))
    return buffer.getvalue()


def _faulty(shape: tuple[int, ...], weight: NDArray[np.float32], fault: Fault, golden: NDArray[np.float32]) -> bytes:
    """An encoder as of :func:`_linear`, with a fault that shows when its window's first number lies in an interval."""
    from onnx import TensorProto, helper, numpy_helper

    half = shape[2] // 2  # the live loop's second window begins in the middle of the first golden one
    at = {"golden": float(golden[0, 0, 0]), "live": float(golden[0, 0, half])}.get(fault.when)
    low, high = (3.0, 1000.0) if at is None else (at - 1e-4, at + 1e-4)
    node = helper.make_node
    nodes = [
        node("Flatten", ["window"], ["flat"]),
        node("Slice", ["flat", "starts", "ends", "axes"], ["first"]),
        node("Greater", ["first", "low"], ["above"]),
        node("Less", ["first", "high"], ["below"]),
        node("And", ["above", "below"], ["hit"]),
        node("Cast", ["hit"], ["one_if_hit"], to=TensorProto.INT64),
        node("Squeeze", ["one_if_hit"], ["hits"]),
    ]
    constants = {
        "starts": np.array([0]), "ends": np.array([1]), "axes": np.array([1]),
        "low": np.array([[low]], np.float32), "high": np.array([[high]], np.float32),
        "one": np.array(1), "two": np.array(2), "least": np.array(-(2**63)), "zero": np.array(0, np.float32),
        "turns": np.array(2_500_000), "yes": np.array(True), "token.weight": weight,
    }  # fmt: skip
    if fault.kind == "crash":
        nodes += [node("Mul", ["hits", "two"], ["twice"]), node("Sub", ["one", "twice"], ["divisor"])]
        nodes += [node("Div", ["least", "divisor"], ["wrong"]), node("Cast", ["wrong"], ["odd"], to=TensorProto.FLOAT)]
        nodes += [node("Mul", ["odd", "zero"], ["nothing"])]
    elif fault.kind == "nan":
        nodes += [node("Cast", ["hits"], ["odd"], to=TensorProto.FLOAT), node("Sub", ["zero", "odd"], ["minus"])]
        nodes += [node("Sqrt", ["minus"], ["nothing"])]
    else:
        count = helper.make_tensor_value_info("count", TensorProto.INT64, ())
        going, on = (helper.make_tensor_value_info(name, TensorProto.BOOL, ()) for name in ("going", "on"))
        was, is_ = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ()) for name in ("was", "is"))
        body = helper.make_graph(
            [node("Identity", ["going"], ["on"]), node("Mul", ["was", "was"], ["is"])],
            "b",
            [count, going, was],
            [on, is_],
        )
        nodes += [
            node("Mul", ["hits", "turns"], ["trips"]),
            node("Loop", ["trips", "yes", "zero"], ["nothing"], body=body),
        ]
    nodes += [node("MatMul", ["flat", "token.weight"], ["right"]), node("Add", ["right", "nothing"], ["token"])]
    graph = helper.make_graph(
        nodes,
        "faulty",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("token", TensorProto.FLOAT, (1, weight.shape[1]))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def _linear(name: str, shape: tuple[int, ...], weights: dict[str, NDArray[np.float32]]) -> bytes:
    """An ONNX program: the input flattened, times a matrix for each output."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Flatten", [name], ["flat"])]
    nodes += [helper.make_node("MatMul", ["flat", f"{output}.weight"], [output]) for output in weights]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, (1, w.shape[1])) for out, w in weights.items()],
        [numpy_helper.from_array(weight, f"{output}.weight") for output, weight in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data
