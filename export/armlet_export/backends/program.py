"""A finished program of any format: what it computes, on which types, inside which delegate, and what that takes.

A clean export has been seen to leave layers in float, or outside the delegate, without a word. So a program is judged
by its own bytes. Each backend reads its format into this one description, and every figure is counted here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from armlet_runtime.errors import ExportError

MIN_INT8_SHARE = 0.95
"""Smallest share of an int8 program's weight bytes that must be int8; what is left are a spectrum's sines."""

LAYOUT = frozenset(
    {
        *("XNNConvert", "XNNStaticReshape", "XNNStaticTranspose", "XNNCopy", "XNNStaticSlice"),
        *("QUANTIZE", "DEQUANTIZE", "RESHAPE", "TRANSPOSE", "PAD", "SQUEEZE", "EXPAND_DIMS", "SLICE", "CONCATENATION"),
        *("QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose", "Concat", "Slice", "Cast"),
        "DynamicQuantizeLinear",
    }
)
"""Operators that move or convert values and compute nothing."""

_SIZES = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1, "int32": 4, "int64": 8, "bool": 1}


@dataclass(frozen=True)
class Value:
    """A tensor: ``type`` (``float32``, ``int8``, ...), shape, and whether it is stored in the file."""

    type: str
    shape: tuple[int, ...]
    constant: bool = False

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return math.prod(self.shape) * _SIZES.get(self.type, 4)


@dataclass(frozen=True)
class Node:
    """An operator: names of its inputs and outputs; ``weight`` is the input that holds its weights, if it has any.

    ``outside`` is the reason why it runs outside of the delegate; empty if it runs inside.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight: str | None = None
    outside: str = ""


@dataclass(frozen=True)
class Program:
    """The contents of a program's file.

    Attributes:
        format: ``pte``, ``tflite`` or ``onnx``.
        nodes: In the order in which they run.
        values: By name.
        delegates: Delegates in the file (``.pte`` only; LiteRT delegates when it loads, ONNX Runtime has none).
        planned_bytes: Memory that the file itself plans for (``.pte`` only).
    """

    format: str
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    delegates: int | None = None
    planned_bytes: int | None = None

    @property
    def operators(self) -> dict[str, int]:
        """Operator to how often it occurs inside the delegate."""
        return dict(Counter(node.kind for node in self.nodes if not node.outside))

    @property
    def outside(self) -> dict[str, str]:
        """Operator outside of the delegate to why it is there."""
        return {node.kind: node.outside for node in self.nodes if node.outside}

    def weights(self) -> list[Value]:
        """The weights of convolutions, linear layers and products with constants, each once.

        A float row that computes the mean of its input (as norms do) is not counted.
        """
        return [
            self.values[name]
            for name in dict.fromkeys(node.weight for node in self.nodes if not self._is_mean(node))
            if name
        ]

    def _is_mean(self, node: Node) -> bool:
        return (
            node.weight is not None
            and "Conv" not in node.kind
            and self.values[node.outputs[0]].shape[-1:] == (1,)
            and self.values[node.weight].type == "float32"
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, biases not counted."""
        return sum(weight.bytes for weight in self.weights())

    @property
    def int8_weight_share(self) -> float:
        """Share of these bytes that are int8; 0 without weights."""
        total = self.weight_bytes
        return sum(weight.bytes for weight in self.weights() if weight.type == "int8") / total if total else 0.0

    @property
    def operations(self) -> int:
        """Multiplications with additions (MACs) of one run, in convolutions, linear layers and matrix products."""
        return sum(self._macs(node) for node in self.nodes)

    def _macs(self, node: Node) -> int:
        out = self.values.get(node.outputs[0]) if node.outputs else None
        if out is None:
            return 0
        size = math.prod(out.shape)
        if node.weight is not None:
            weight = self.values[node.weight]
            channels = out.shape[1] if self.format == "onnx" and "Conv" in node.kind else out.shape[-1]
            return size * math.prod(weight.shape) // channels
        if node.kind in ("XNNBatchMatrixMultiply", "BATCH_MATMUL", "MatMul"):
            return size * self.values[node.inputs[0]].shape[-1]
        return 0

    @property
    def live_bytes(self) -> int:
        """Largest sum of the activations that must be kept at once, in the order in which the operators run."""
        last = {name: place for place, node in enumerate(self.nodes) for name in (*node.inputs, *node.outputs)}
        alive: dict[str, int] = {}
        peak = 0
        for place, node in enumerate(self.nodes):
            for name in (*node.inputs, *node.outputs):
                value = self.values.get(name)
                if value is not None and not value.constant:
                    alive[name] = value.bytes
            peak = max(peak, sum(alive.values()))
            alive = {name: size for name, size in alive.items() if last[name] > place}
        return peak

    def float_nodes(self) -> list[Node]:
        """The operators that compute on floats, layout and conversion left out."""
        return [
            node
            for node in self.nodes
            if node.kind not in LAYOUT
            and any(self.values[name].type.startswith("float") for name in (*node.inputs, *node.outputs)
                    if name in self.values and not self.values[name].constant)
        ]  # fmt: skip


def check_precision(program: Program, precision: str, layers: int = 0) -> None:
    """Refuse a program that is not in the precision that was asked for.

    Args:
        program: Contents of its file.
        precision: The precision that was asked for.
        layers: How many layers were trained for int8.

    Raises:
        ExportError: A part is outside of the delegate, or an int8 program stayed in float.
    """
    if program.format == "pte" and (program.outside or program.delegates != 1):
        left = "; ".join(f"{kind}: {why}" for kind, why in program.outside.items()) or f"{program.delegates} delegates"
        raise ExportError(
            f"the .pte file is not one XNNPACK delegate ({left}); replace the operator in the model, or write a "
            "rewrite for it in armlet_export.quantise.graph_rewrites"
        )
    if precision not in ("int8", "dynamic"):
        return
    share = program.int8_weight_share
    if share < MIN_INT8_SHARE:
        kept = _kinds(node for node in program.nodes if node.weight and program.values[node.weight].type != "int8")
        raise ExportError(
            f"the .{program.format} file should be {precision}, but it stayed in float: {share:.1%} of its weight "
            f"bytes are int8, at least {MIN_INT8_SHARE:.0%} are required; in float are {kept}"
        )
    if precision == "int8":
        integer = [node for node in program.nodes if node.weight and program.values[node.weight].type == "int8"]
        if len(integer) < layers:
            raise ExportError(
                f"the .{program.format} file has {len(integer)} int8 layers, but {layers} were trained for int8"
            )
        for node in integer:
            ends = (node.inputs[0], node.outputs[0])
            floats = any(name in program.values and program.values[name].type.startswith("float") for name in ends)
            if floats and program.format != "onnx":  # there the integer kernel is made when the program is loaded
                raise ExportError(f"the .{program.format} file should be int8, but its {node.kind} runs on float")


def _kinds(nodes: Iterable[Node]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(node.kind for node in nodes).items()) or "none"
