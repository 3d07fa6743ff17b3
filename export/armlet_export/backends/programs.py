"""A look into a finished program: what it computes, on which types, inside which delegate, and what that takes.

A clean export has been seen to leave layers in float, or outside the delegate, without a word. So a program is judged
by its own bytes. The three formats are read into one description (:class:`Program`), and every figure is counted there.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """An operator: names of the values that go in and out; ``weight`` is the one that holds its weights, if it has any.

    ``outside`` says why it runs outside of the delegate; empty if it runs inside.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight: str | None = None
    outside: str = ""


@dataclass(frozen=True)
class Program:
    """What is in a program's file.

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

        A float row that takes the mean of its input, as norms are computed, is none.
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


# ---------------------------------------------------------------------------------------------------- ExecuTorch

_XNN_TYPES = {
    "fp32": "float32", "fp16": "float16", "qint8": "int8", "quint8": "uint8", "qcint8": "int8", "qint32": "int32",
    "qcint32": "int32", "qdint8": "int8", "qpint8": "int8", "int32": "int32",
}  # fmt: skip
_XNN_INPUT = re.compile(r"input\d?_id|filter_id|bias_id|negative_slope_id")


def read_pte(data: bytes, reasons: Mapping[str, str] | None = None) -> Program:
    """Read a ``.pte`` file.

    Args:
        data: The file.
        reasons: Operator to why the partitioner left it outside, if that is known.

    Raises:
        ExportError: It has more than one method.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(data).program
    if len(program.execution_plan) != 1:
        raise ExportError(f"the .pte has {len(program.execution_plan)} methods, and one is run")
    (plan,) = program.execution_plan
    nodes: list[Node] = []
    values: dict[str, Value] = {}
    foreign = [delegate.id for delegate in plan.delegates if delegate.id != "XnnpackBackend"]
    for chain in plan.chains:
        for item in chain.instructions:
            call = item.instr_args
            kind = type(call).__name__
            if kind == "DelegateCall":
                index = plan.delegates[call.delegate_index].processed.index
                inner, known = _xnnpack_nodes(program.backend_delegate_data[index].data, f"d{call.delegate_index}.")
                nodes += inner
                values |= known
            elif kind == "KernelCall":
                name = plan.operators[call.op_index].name
                why = (reasons or {}).get(name.split("::")[-1].removesuffix("_copy"), "the partitioner left it there")
                nodes.append(Node(name, (), (), outside=why))
    for name in foreign:
        nodes.append(Node(name, (), (), outside="a delegate of another back end"))
    return Program("pte", tuple(nodes), values, len(plan.delegates), sum(plan.non_const_buffer_sizes))


def _xnnpack_nodes(blob: bytes, prefix: str) -> tuple[list[Node], dict[str, Value]]:
    graph = _xnnpack_graph(blob)
    values: dict[str, Value] = {}
    for item in graph["xvalues"]:
        tensor = item["xvalue_union"]
        tensor = tensor.get("tensor_value", tensor)
        kind = _XNN_TYPES.get(tensor["datatype"].removeprefix("xnn_datatype_"), tensor["datatype"])
        shape = tuple(tensor.get("dims") or ())
        values[f"{prefix}{tensor['id_out']}"] = Value(kind, shape, tensor.get("constant_buffer_idx", 0) != 0)
    nodes = []
    for item in graph["xnodes"]:
        union = item["xnode_union"]
        inputs = tuple(f"{prefix}{union[key]}" for key in union if _XNN_INPUT.fullmatch(key))
        weight = f"{prefix}{union['filter_id']}" if "filter_id" in union else None
        known = tuple(name for name in inputs if name in values)
        nodes.append(Node(item["xnode_union_type"], known, (f"{prefix}{union['output_id']}",), weight))
    return nodes, values


def _xnnpack_graph(blob: bytes) -> dict[str, Any]:
    """The graph inside an XNNPACK delegate, as JSON of ExecuTorch's own schema for it."""
    from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = xnnpack_graph_serialize.XNNHeader.from_bytes(blob[: xnnpack_graph_serialize.XNNHeader.EXPECTED_LENGTH])
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(xnnpack_graph_serialize._get_schema_bytes())
        binary.write_bytes(blob[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(binary))
        text = binary.with_suffix(".json").read_text()
    # flatc writes the bounds of an unclamped layer as inf, which is not JSON.
    graph: dict[str, Any] = json.loads(re.sub(r":\s*(-?)inf\b", r": \1Infinity", text))
    return graph


# -------------------------------------------------------------------------------------------------------- LiteRT

FLOAT32, INT8 = 0, 9  # schema.fbs of TFLite, enum TensorType
_TFLITE_TYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 9: "int8"}
TFLITE_WEIGHTED = {"CONV_2D": "conv2d", "DEPTHWISE_CONV_2D": "conv2d", "FULLY_CONNECTED": "linear"}


@dataclass(frozen=True)
class TfliteOperator:
    """An operator of a ``.tflite`` file; tensors go by index."""

    kind: str
    inputs: list[int]
    outputs: list[int]


@dataclass(frozen=True)
class TfliteFile:
    """The parts of a ``.tflite`` file that are looked at here. Tensors go by index."""

    operators: list[TfliteOperator]
    names: list[str]
    types: list[int]
    shapes: list[list[int]]
    constants: dict[int, bytes]
    scales: list[NDArray[np.float32] | None]
    zero_points: list[NDArray[np.int64] | None]
    inputs: list[int]
    outputs: list[int]


def read_tflite(data: bytes) -> TfliteFile:
    """Read a ``.tflite`` file of one subgraph."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(data)
    (subgraph,) = model.subgraphs

    def array(values: Any, dtype: type) -> Any:
        return None if values is None or len(values) == 0 else np.asarray(values, dtype)

    quantisation = [tensor.quantization for tensor in subgraph.tensors]
    return TfliteFile(
        operators=[
            TfliteOperator(
                str(flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)),
                [int(index) for index in operator.inputs if index >= 0],
                [int(index) for index in operator.outputs],
            )
            for operator in subgraph.operators
        ],
        names=[tensor.name.decode() for tensor in subgraph.tensors],
        types=[tensor.type for tensor in subgraph.tensors],
        shapes=[
            [int(size) for size in tensor.shape] if tensor.shape is not None else [] for tensor in subgraph.tensors
        ],
        constants={
            index: bytes(model.buffers[tensor.buffer].data)
            for index, tensor in enumerate(subgraph.tensors)
            if model.buffers[tensor.buffer].data is not None and len(model.buffers[tensor.buffer].data)
        },
        scales=[array(item and item.scale, np.float32) for item in quantisation],
        zero_points=[array(item and item.zeroPoint, np.int64) for item in quantisation],
        inputs=[int(index) for index in subgraph.inputs],
        outputs=[int(index) for index in subgraph.outputs],
    )


def look_at_tflite(data: bytes) -> Program:
    """What is in a ``.tflite`` file."""
    file = read_tflite(data)
    values = {
        str(index): Value(_TFLITE_TYPES.get(kind, f"type {kind}"), tuple(file.shapes[index]), index in file.constants)
        for index, kind in enumerate(file.types)
    }
    stored = {  # fp16 weights pass through a DEQUANTIZE on their way
        operator.outputs[0]: operator.inputs[0]
        for operator in file.operators
        if operator.kind == "DEQUANTIZE" and operator.inputs[0] in file.constants
    }
    nodes = []
    for operator in file.operators:
        if operator.outputs[0] in stored:
            continue
        inputs = [stored.get(index, index) for index in operator.inputs]
        weighted = operator.kind in TFLITE_WEIGHTED or operator.kind == "BATCH_MATMUL"
        weight = str(inputs[1]) if weighted and inputs[1] in file.constants else None
        nodes.append(
            Node(operator.kind, tuple(map(str, inputs)), tuple(str(index) for index in operator.outputs), weight)
        )
    return Program("tflite", tuple(nodes), values)


# ---------------------------------------------------------------------------------------------------------- ONNX

_ONNX_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
_ONNX_WEIGHTED = {"Conv", "Gemm", "MatMul", "ConvInteger", "MatMulInteger"}


def look_at_onnx(data: bytes) -> Program:
    """What is in an ``.onnx`` file."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
    graph = model.graph
    values = {
        item.name: Value(_ONNX_TYPES.get(item.data_type, "?"), tuple(item.dims), True) for item in graph.initializer
    }
    for info in (*graph.input, *graph.output, *graph.value_info):
        tensor = info.type.tensor_type
        shape = tuple(size.dim_value for size in tensor.shape.dim)
        values.setdefault(info.name, Value(_ONNX_TYPES.get(tensor.elem_type, "?"), shape))
    made = {name: node for node in graph.node for name in node.output}

    def stored(name: str) -> str | None:
        """The initializer that a value comes from by conversions alone."""
        while name not in values or not values[name].constant:
            node = made.get(name)
            if node is None or node.op_type not in ("DequantizeLinear", "Transpose", "Cast", "Reshape"):
                return None
            name = node.input[0]
        return name

    nodes = []
    for node in graph.node:
        if node.output and stored(node.output[0]) is not None:
            continue
        weight = stored(node.input[1]) if node.op_type in _ONNX_WEIGHTED else None
        nodes.append(Node(node.op_type, tuple(filter(None, node.input)), tuple(node.output), weight))
    return Program("onnx", tuple(nodes), values)


def look(data: bytes, kind: str) -> Program:
    """What is in a program's file; ``kind``: ``pte``, ``tflite`` or ``onnx``."""
    return {"pte": read_pte, "tflite": look_at_tflite, "onnx": look_at_onnx}[kind](data)


def check_precision(program: Program, precision: str, layers: int = 0) -> None:
    """Let pass a program that is what it was asked to be.

    Args:
        program: What is in its file.
        precision: What it should be.
        layers: How many layers were trained to be int8.

    Raises:
        ExportError: A part is outside of the delegate, or an int8 program stayed in float.
    """
    if program.format == "pte" and (program.outside or program.delegates != 1):
        left = "; ".join(f"{kind}: {why}" for kind, why in program.outside.items()) or f"{program.delegates} delegates"
        raise ExportError(
            f"the .pte is not one XNNPACK delegate ({left}); see armlet_export.quantise.graph_rewrites for rewrites"
        )
    if precision not in ("int8", "dynamic"):
        return
    share = program.int8_weight_share
    if share < MIN_INT8_SHARE:
        kept = _kinds(node for node in program.nodes if node.weight and program.values[node.weight].type != "int8")
        raise ExportError(
            f"the .{program.format} should be {precision}, and it stayed in float: {share:.1%} of its weight bytes are "
            f"int8, {MIN_INT8_SHARE:.0%} are asked for; in float are {kept}"
        )
    if precision == "int8":
        integer = [node for node in program.nodes if node.weight and program.values[node.weight].type == "int8"]
        if len(integer) < layers:
            raise ExportError(f"the .{program.format} has {len(integer)} int8 layers, and {layers} were trained to be")
        for node in integer:
            ends = (node.inputs[0], node.outputs[0])
            floats = any(name in program.values and program.values[name].type.startswith("float") for name in ends)
            if floats and program.format != "onnx":  # there the integer kernel is made when the program is loaded
                raise ExportError(f"the .{program.format} should be int8, and its {node.kind} runs on float")


def _kinds(nodes: Iterable[Node]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(node.kind for node in nodes).items()) or "none"
