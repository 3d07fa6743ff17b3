"""Lowering: programs for the engines, and the look into each finished file that tells whether it is what it claims.

A clean export has been seen to leave layers in float without a word. So a program is judged by its own bytes: which
operators it has, on which types they run, and how much of its weights is int8.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from armlet_runtime.errors import ExportError

from .graphs import capture, weighted_nodes
from .quantise import WEIGHT_MAX, LayerRanges, Range, convert, layer_ranges

ONNX_OPSET = 18
"""What ONNX Runtime has had since 1.14 (2023), so also the Jetson builds; torch 2.13 exports it without conversion."""


@dataclass(frozen=True)
class Signature:
    """Names and shapes of a program's input and outputs, as the manifest promises them."""

    input: str
    input_shape: tuple[int, ...]
    outputs: dict[str, tuple[int, ...]]

    def example(self) -> Tensor:
        """An input of that shape."""
        return torch.zeros(self.input_shape)


@dataclass(frozen=True)
class Lowered:
    """A finished program.

    Attributes:
        data: The file.
        precision: ``int8`` or ``fp32``.
        operators: Operator name to how often it occurs.
        int8_weight_share: Share of the weight values (biases not counted) that are stored as int8.
        delegates: ``.pte`` only: delegates that the whole program runs in; 1 means that nothing is outside.
    """

    data: bytes
    precision: str
    operators: dict[str, int]
    int8_weight_share: float
    delegates: int | None = None


# ---------------------------------------------------------------------------------------------------- ExecuTorch

_XNN_INTEGER = {"xnn_datatype_qint8"}
_XNN_INTEGER_WEIGHT = {"xnn_datatype_qcint8"}
_XNN_LAYOUT = {"XNNConvert", "XNNStaticReshape", "XNNStaticTranspose", "XNNCopy"}
_XNN_WEIGHTED = {"XNNConv2d", "XNNDepthwiseConv2d", "XNNFullyConnected"}


def to_executorch(prepared: fx.GraphModule, signature: Signature) -> Lowered:
    """An int8 ``.pte``, the whole of it in one XNNPACK delegate.

    Args:
        prepared: Trained graph from :func:`armlet_export.quantise.prepare`.
        signature: The program's input and outputs; a ``.pte`` has no names, so their order is what counts.

    Raises:
        ExportError: A part of the program is outside the delegate, or stayed in float.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(convert(prepared), (signature.example(),))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    return inspect_executorch(bytes(lowered.to_executorch().buffer))


def inspect_executorch(data: bytes) -> Lowered:
    """Look into a ``.pte`` that should be int8.

    Raises:
        ExportError: It is not one XNNPACK delegate with int8 operators only.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(data).program
    (plan,) = program.execution_plan
    instructions = [type(item.instr_args).__name__ for chain in plan.chains for item in chain.instructions]
    if instructions != ["DelegateCall"] or [delegate.id for delegate in plan.delegates] != ["XnnpackBackend"]:
        outside = ", ".join(sorted({operator.name for operator in plan.operators})) or "several delegates"
        raise ExportError(
            f"the .pte is not one XNNPACK delegate: {outside} outside of it; see armlet_export.graphs for rewrites"
        )
    graph = _xnnpack_graph(program.backend_delegate_data[plan.delegates[0].processed.index].data)

    types: dict[int, tuple[str, int]] = {}
    for value in graph["xvalues"]:
        tensor = value["xvalue_union"]
        tensor = tensor.get("tensor_value", tensor)
        types[tensor["id_out"]] = (tensor["datatype"], int(np.prod(tensor["dims"])))
    operators: dict[str, int] = {}
    weights = int8_weights = 0
    for node in graph["xnodes"]:
        kind, union = node["xnode_union_type"], node["xnode_union"]
        operators[kind] = operators.get(kind, 0) + 1
        if kind in _XNN_WEIGHTED:
            datatype, size = types[union["filter_id"]]
            weights += size
            int8_weights += size * (datatype in _XNN_INTEGER_WEIGHT)
        if kind in _XNN_LAYOUT:
            continue
        ends = [types[union[end]][0] for end in ("input_id", "input1_id", "input2_id", "output_id") if end in union]
        if not set(ends) <= _XNN_INTEGER:
            raise ExportError(f"the .pte should be int8, and its {kind} runs on {', '.join(ends)}")
    return _int8("pte", data, operators, weights, int8_weights, delegates=1)


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

_FLOAT32, _INT8 = 0, 9  # schema.fbs of TFLite, enum TensorType
_TFLITE_WEIGHTED = {"CONV_2D": "conv2d", "DEPTHWISE_CONV_2D": "conv2d", "FULLY_CONNECTED": "linear"}
_TFLITE_MEAN = {"MEAN": "mean"}
# They move values and compute nothing: input and output share one range.
_TFLITE_MOVES = {"RESHAPE", "TRANSPOSE", "PAD", "SQUEEZE", "EXPAND_DIMS"}


class _Named(nn.Module):
    """A captured graph under the names of its signature, as litert-torch takes them from arguments and dict keys."""

    def __init__(self, graph: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.program = graph
        self.names = tuple(signature.outputs)

    def _outputs(self, value: Tensor) -> dict[str, Tensor]:
        result = self.program(value)
        return dict(zip(self.names, result if isinstance(result, tuple) else (result,), strict=True))


class _Encoder(_Named):
    def forward(self, window: Tensor) -> dict[str, Tensor]:
        return self._outputs(window)


class _Aggregator(_Named):
    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return self._outputs(tokens)


_NAMED: dict[str, type[_Named]] = {"window": _Encoder, "tokens": _Aggregator}


def to_litert(module: nn.Module, prepared: fx.GraphModule, signature: Signature) -> Lowered:
    """An int8 ``.tflite`` with float32 input and outputs.

    litert-torch cannot convert the PT2E graph to integer kernels. So the float module is converted with the trained
    weights, and ai-edge-quantizer rounds it with the ranges that training learnt, weights' scales included; it measures
    nothing itself. Both integer programs therefore hold the same integers.

    Args:
        module: The float module that ``prepared`` was made from; it is not changed.
        prepared: Trained graph from :func:`armlet_export.quantise.prepare`.
        signature: The program's input and outputs.

    Raises:
        ExportError: A layer of the converted file cannot be matched with a trained one, or stayed in float.
    """
    from ai_edge_quantizer import qtyping, quantizer, recipe

    trained = capture(module, signature.example())
    parameters = dict(prepared.named_parameters())
    trained.load_state_dict({name: parameters[name] for name in trained.state_dict()})
    float_data = _convert_litert(trained, signature)

    tool = quantizer.Quantizer(float_data, recipe.static_wi8_ai8())
    for side in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        tool.update_quantization_recipe(".*", side, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
    ranges = _tensor_ranges(float_data, trained, layer_ranges(prepared))
    result = tool.quantize(ranges, enable_progress_report=False)
    return inspect_litert(_keep_integer(bytes(result.quantized_model)))


def _convert_litert(graph: fx.GraphModule, signature: Signature) -> bytes:
    import litert_torch

    named = _NAMED[signature.input](graph, signature).eval()
    converted = litert_torch.convert(named, sample_kwargs={signature.input: signature.example()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        converted.export(str(path))
        return path.read_bytes()


def _keep_integer(data: bytes) -> bytes:
    """Feed operators from int8 values, not from their float copies.

    Where an output of the program is also the input of a layer (the embedding is that of the head), ai-edge-quantizer
    0.10 gives the layer the dequantised copy, and the layer does not run as int8.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(data)
    (subgraph,) = model.subgraphs
    source = {
        int(operator.outputs[0]): int(operator.inputs[0])
        for operator in subgraph.operators
        if flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex) == "DEQUANTIZE"
    }
    for operator in subgraph.operators:
        operator.inputs = [source.get(int(index), int(index)) for index in operator.inputs]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


@dataclass(frozen=True)
class _Operator:
    kind: str
    inputs: list[int]
    outputs: list[int]


@dataclass(frozen=True)
class _TfliteFile:
    """The parts of a ``.tflite`` file that are looked at here. Tensors go by index."""

    operators: list[_Operator]
    names: list[str]
    types: list[int]
    shapes: list[list[int]]
    constants: dict[int, bytes]
    scales: list[NDArray[np.float32] | None]
    zero_points: list[NDArray[np.int64] | None]
    inputs: list[int]
    outputs: list[int]


def read_tflite(data: bytes) -> _TfliteFile:
    """Read a ``.tflite`` file of one subgraph."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(data)
    (subgraph,) = model.subgraphs

    def array(values: Any, dtype: type) -> Any:
        return None if values is None or len(values) == 0 else np.asarray(values, dtype)

    quantisation = [tensor.quantization for tensor in subgraph.tensors]
    return _TfliteFile(
        operators=[
            _Operator(
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


def _tensor_ranges(data: bytes, trained: fx.GraphModule, layers: Sequence[LayerRanges]) -> dict[str, dict[str, Any]]:
    """For ai-edge-quantizer: tensor name to the range that training learnt for it.

    Layers are matched in the order in which they run, and the match is checked by the bias, which the converter leaves
    as it is.
    """
    file = read_tflite(data)
    operators = [operator for operator in file.operators if operator.kind in _TFLITE_WEIGHTED | _TFLITE_MEAN]
    found = [(_TFLITE_WEIGHTED | _TFLITE_MEAN)[operator.kind] for operator in operators]
    expected = [layer.operator for layer in layers]
    if found != expected:
        raise ExportError(f"litert-torch made the layers {found} of {expected}, which trained ranges do not fit")

    biases = {str(node.args[1].target): node.args[2] for node, _ in weighted_nodes(trained)}  # type: ignore[union-attr]
    parameters = dict(trained.named_parameters())
    activations: dict[int, Range] = {}
    ranges: dict[str, dict[str, Any]] = {}
    for operator, layer in zip(operators, layers, strict=True):
        _join(file, activations, operator.inputs[0], layer.input)
        _join(file, activations, operator.outputs[0], layer.output)
        if layer.weight is None or layer.weight_scale is None:
            continue
        bias = biases[layer.weight]
        if isinstance(bias, fx.Node):
            wanted = parameters[str(bias.target)].detach().numpy()
            if not np.array_equal(np.frombuffer(file.constants[operator.inputs[2]], np.float32), wanted):
                raise ExportError(f"the layer of '{layer.weight}' is another one in the file that litert-torch made")
        weight = operator.inputs[1]
        scale = layer.weight_scale.double().numpy().reshape(-1, *[1] * (len(file.shapes[weight]) - 1))
        # In float64, so that the division by 127 gives the trained float32 scale again.
        ranges[file.names[weight]] = {"min": -WEIGHT_MAX * scale, "max": WEIGHT_MAX * scale}

    spread = True
    while spread:
        before = len(activations)
        for operator in file.operators:
            if operator.kind in _TFLITE_MOVES:
                source, target = operator.inputs[0], operator.outputs[0]
                for one, other in ((source, target), (target, source)):
                    if one in activations:
                        _join(file, activations, other, activations[one])
        spread = len(activations) > before

    for index in {index for operator in file.operators for index in (*operator.inputs, *operator.outputs)}:
        if index in file.constants or file.types[index] != _FLOAT32:
            continue
        if index not in activations:
            raise ExportError(f"training learnt no range for the tensor '{file.names[index]}'")
        shape = [1] * len(file.shapes[index])
        ranges[file.names[index]] = {
            "min": np.full(shape, activations[index].low),
            "max": np.full(shape, activations[index].high),
        }
    return ranges


def _join(file: _TfliteFile, activations: dict[int, Range], index: int, wanted: Range) -> None:
    if activations.setdefault(index, wanted) != wanted:
        raise ExportError(f"the tensor '{file.names[index]}' would need two ranges, {activations[index]} and {wanted}")


def inspect_litert(data: bytes) -> Lowered:
    """Look into a ``.tflite`` that should be int8 inside, with float32 at its ends.

    Raises:
        ExportError: An operator runs on float, or the ends are not float32.
    """
    file = read_tflite(data)
    operators: dict[str, int] = {}
    weights = int8_weights = 0
    for operator in file.operators:
        operators[operator.kind] = operators.get(operator.kind, 0) + 1
        if operator.kind in _TFLITE_WEIGHTED:
            weight = operator.inputs[1]
            size = int(np.prod(file.shapes[weight]))
            weights += size
            int8_weights += size * (file.types[weight] == _INT8)
        if operator.kind in ("QUANTIZE", "DEQUANTIZE"):
            continue
        if any(file.types[index] != _INT8 for index in (operator.inputs[0], *operator.outputs)):
            raise ExportError(f"the .tflite should be int8, and its {operator.kind} runs on another type")
    if any(file.types[index] != _FLOAT32 for index in (*file.inputs, *file.outputs)):
        raise ExportError("the .tflite should take and give float32")
    return _int8("tflite", data, operators, weights, int8_weights)


def _int8(
    kind: str, data: bytes, operators: dict[str, int], weights: int, int8_weights: int, delegates: int | None = None
) -> Lowered:
    if not weights or int8_weights != weights:
        raise ExportError(f"the .{kind} should be int8, and {weights - int8_weights} of its {weights} weights are not")
    return Lowered(data, "int8", operators, int8_weights / weights, delegates)


# ---------------------------------------------------------------------------------------------------------- ONNX


def to_onnx(module: nn.Module, signature: Signature) -> Lowered:
    """An fp32 ``.onnx`` of opset :data:`ONNX_OPSET` from the float module.

    Raises:
        ExportError: The exporter's file is not well-formed.
    """
    import onnx

    graph = capture(module, signature.example())
    exported = torch.onnx.export(
        graph,
        (signature.example(),),
        dynamo=True,
        input_names=[signature.input],
        output_names=list(signature.outputs),
        opset_version=ONNX_OPSET,
        verbose=False,
    )
    assert exported is not None
    model = exported.model_proto
    _strip_notes(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the ONNX exporter made a file that is not well-formed: {error}") from error
    operators: dict[str, int] = {}
    for node in model.graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return Lowered(model.SerializeToString(), "fp32", operators, 0.0)


def _strip_notes(model: Any) -> None:
    """Take out the exporter's notes: source lines and paths of the machine that it ran on."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        if "metadata_props" in part.DESCRIPTOR.fields_by_name:
            del part.metadata_props[:]
