"""The ONNX Runtime backend: programs are ``.onnx`` files; in int8 they have QuantizeLinear and DequantizeLinear nodes.

Relied on here and documented nowhere: which nodes the exporter of torch 2.13.0 writes around an integer layer
(:func:`_round_biases`; another pattern is an error), and which pattern of biases ONNX Runtime 1.20 to 1.32 fuses into
integer kernels (a test looks at its optimised graph).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from armlet_runtime.errors import ExportError

from ..quantise import capture, convert
from .base import LoweredPart, Part, library_changed, rounded_to_fp16
from .program import Node, Program, Value, check_precision

TORCH = "2.13.0"
"""The version of torch whose exporter this module knows."""

OPSET = 18
"""What ONNX Runtime has had since 1.14 (2023), so also the Jetson builds; torch 2.13 exports it without conversion."""

_ONNX_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
_ONNX_WEIGHTED = {"Conv", "Gemm", "MatMul", "ConvInteger", "MatMulInteger"}


def lower(part: Part) -> LoweredPart:
    """The ``.onnx`` program of a part, of opset :data:`OPSET`.

    Raises:
        ExportError: The exporter's file is not well-formed, or stayed in float.
    """
    import onnx

    examples = part.signature.examples()
    if part.precision == "int8":
        graph: nn.Module = convert(part.trained)
    elif part.precision == "fp16":
        graph = capture(rounded_to_fp16(part.module), *examples)
    else:
        graph = capture(part.module, *examples)
    exported = torch.onnx.export(
        graph,
        examples,
        dynamo=True,
        input_names=list(part.signature.inputs),
        output_names=list(part.signature.outputs),
        opset_version=OPSET,
        verbose=False,
    )
    assert exported is not None
    model = exported.model_proto
    _strip_notes(model)
    if part.precision == "int8":
        _round_biases(model)
        _part_zero_points(model)
    elif part.precision == "fp16":
        _store_as_fp16(model)
    elif part.precision == "dynamic":
        model = _dynamic_onnx(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the ONNX exporter of torch wrote a malformed file: {error}") from error
    data = model.SerializeToString()
    program = read(data)
    check_precision(program, part.precision, part.layers)
    return LoweredPart(data, part.precision, program)


def _round_biases(model: Any) -> None:
    """Store the biases of integer layers as int32, in steps of input scale times weight scale.

    With a float bias ONNX Runtime leaves the layer in float.

    Raises:
        ExportError: The exporter wrote a bias that is not a stored tensor.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    stored = {item.name: item for item in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    for node in list(graph.node):
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        ends: list[Any] = [made.get(name) for name in node.input[:2]]
        if any(end is None or end.op_type != "DequantizeLinear" for end in ends):
            continue
        if node.input[2] not in stored:
            problem = f"the bias of {node.name or node.output[0]} is computed, so ONNX Runtime would leave it in float"
            raise library_changed("torch", TORCH, problem)
        source, weight = (numpy_helper.to_array(stored[end.input[1]]).astype(np.float64) for end in ends)
        bias = numpy_helper.to_array(stored[node.input[2]])
        scale = np.broadcast_to((source * weight).astype(np.float32).reshape(-1), bias.shape)
        rounded = np.clip(np.rint(bias / scale.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
        name = f"{node.output[0]}_bias"
        graph.initializer.append(numpy_helper.from_array(rounded, f"{name}_int32"))
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(scale), f"{name}_scale"))
        graph.initializer.append(numpy_helper.from_array(np.zeros(bias.shape, np.int32), f"{name}_zero"))
        place = list(graph.node).index(node)
        graph.node.insert(
            place,
            helper.make_node("DequantizeLinear", [f"{name}_int32", f"{name}_scale", f"{name}_zero"], [name], axis=0),
        )
        graph.node[place + 1].input[2] = name
    used = {name for node in graph.node for name in node.input}
    for item in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(item)


def _part_zero_points(model: Any) -> None:
    """Give each weight a zero point of its own; the exporter joins equal zero points.

    On x86 processors without VNNI ONNX Runtime makes unsigned weights of the signed ones, and their zero points with
    them (``session.x64quantprecision``). Version 1.32 does not load a program where two weights share a zero point.
    """
    from onnx import TensorProto

    graph = model.graph
    stored = {item.name: item for item in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored or len(node.input) < 3:
            continue
        if node.input[2] in taken:
            own = TensorProto()
            own.CopyFrom(stored[node.input[2]])
            own.name = node.input[2] = f"{node.output[0]}_zero"
            graph.initializer.append(own)
        taken.add(node.input[2])


def _store_as_fp16(model: Any) -> None:
    """Store weights as fp16, each with a ``Cast`` to float32 behind it."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    for item in list(graph.initializer):
        values = numpy_helper.to_array(item)
        if values.dtype != np.float32 or values.ndim < 2:
            continue
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue  # a constant of a graph rewrite, not a weight
        name = item.name
        item.CopyFrom(numpy_helper.from_array(half, f"{name}_fp16"))
        graph.node.insert(0, helper.make_node("Cast", [f"{name}_fp16"], [name], to=TensorProto.FLOAT))


def _dynamic_onnx(model: Any) -> Any:
    """The model with its linear layers in dynamic int8, but for those that compute the mean of their input."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del model.graph.value_info[:]  # shapes of before, which the quantiser's own would contradict
    narrow = {item.name for item in model.graph.initializer if 1 in item.dims}
    behind = {node.output[0] for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in narrow}
    means = [node.name for node in model.graph.node if not (narrow | behind).isdisjoint(node.input)]
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder) / "float.onnx", Path(folder) / "dynamic.onnx"
        onnx.save(model, given)
        quantize_dynamic(
            given, got, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8,
            nodes_to_exclude=means,
        )  # fmt: skip
        return onnx.load(got)


def _strip_notes(model: Any) -> None:
    """Remove the exporter's notes: source lines and paths of this machine."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        if "metadata_props" in part.DESCRIPTOR.fields_by_name:
            del part.metadata_props[:]


def read(data: bytes) -> Program:
    """The contents of an ``.onnx`` file."""
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
