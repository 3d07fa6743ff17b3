"""Files of TFLite's format, read and edited with the flatbuffer tools that ai-edge-litert ships.

The tools (``ai_edge_litert.tools.flatbuffer_utils``) are not documented; they are known from ai-edge-litert 2.3.0. The
edits make good what litert-torch 0.10.0 and ai-edge-quantizer 0.10.0 do; where a later version no longer does it, they
find nothing to edit, and what is left in float is refused by :func:`armlet_export.backends.program.check_precision`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.errors import ExportError

from .program import Node, Program, Value

FLOAT32, INT8 = 0, 9  # schema.fbs of TFLite, enum TensorType
_TYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 9: "int8"}
WEIGHTED = {"CONV_2D": "conv2d", "DEPTHWISE_CONV_2D": "conv2d", "FULLY_CONNECTED": "linear"}


@dataclass(frozen=True)
class Operator:
    """An operator of a ``.tflite`` file; tensors go by index."""

    kind: str
    inputs: list[int]
    outputs: list[int]


@dataclass(frozen=True)
class TfliteFile:
    """The parts of a ``.tflite`` file that are looked at here. Tensors go by index."""

    operators: list[Operator]
    names: list[str]
    types: list[int]
    shapes: list[list[int]]
    constants: dict[int, bytes]
    scales: list[NDArray[np.float32] | None]
    zero_points: list[NDArray[np.int64] | None]
    inputs: list[int]
    outputs: list[int]


def _subgraph(model: Any) -> Any:
    if len(model.subgraphs) != 1:
        raise ExportError(f"the .tflite file has {len(model.subgraphs)} subgraphs; exactly one is supported")
    return model.subgraphs[0]


def read_tflite(data: bytes) -> TfliteFile:
    """Read a ``.tflite`` file.

    Raises:
        ExportError: The file has more than one subgraph.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(data)
    subgraph = _subgraph(model)

    def array(values: Any, dtype: type) -> Any:
        return None if values is None or len(values) == 0 else np.asarray(values, dtype)

    quantisation = [tensor.quantization for tensor in subgraph.tensors]
    return TfliteFile(
        operators=[
            Operator(
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


def read(data: bytes) -> Program:
    """The contents of a ``.tflite`` file."""
    file = read_tflite(data)
    values = {
        str(index): Value(_TYPES.get(kind, f"type {kind}"), tuple(file.shapes[index]), index in file.constants)
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
        weighted = operator.kind in WEIGHTED or operator.kind == "BATCH_MATMUL"
        weight = str(inputs[1]) if weighted and inputs[1] in file.constants else None
        nodes.append(
            Node(operator.kind, tuple(map(str, inputs)), tuple(str(index) for index in operator.outputs), weight)
        )
    return Program("tflite", tuple(nodes), values)


def without_copies(data: bytes) -> bytes:
    """The file with each layer once.

    Where the values before a ReLU are used, too (an embedding that is an output), litert-torch 0.10.0 computes the
    layer twice, once with the ReLU fused into it. Such a copy becomes a RELU of the first.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(data)
    subgraph = _subgraph(model)
    layers: dict[tuple[object, ...], list[Any]] = defaultdict(list)
    for operator in subgraph.operators:
        kind = flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
        if kind in WEIGHTED:
            buffers = [subgraph.tensors[index].buffer if index >= 0 else -1 for index in operator.inputs[1:]]
            shape = tuple(map(int, subgraph.tensors[operator.outputs[0]].shape))
            layers[(kind, int(operator.inputs[0]), tuple(buffers), shape)].append(operator)
    kinds = schema.ActivationFunctionType
    relus: dict[int, int] = {}
    for same in layers.values():
        plain = [layer for layer in same if layer.builtinOptions.fusedActivationFunction == kinds.NONE]
        copies = [layer for layer in same if layer.builtinOptions.fusedActivationFunction == kinds.RELU]
        if len(plain) != 1 or len(copies) != 1 or plain[0] is copies[0]:
            continue
        first = min(subgraph.operators.index(layer) for layer in same)
        before, after = int(plain[0].outputs[0]), int(copies[0].outputs[0])
        subgraph.operators.remove(plain[0])
        subgraph.operators.remove(copies[0])
        subgraph.operators[first:first] = [plain[0], copies[0]]
        relus[after] = before
    if not relus:
        return data
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
    model.operatorCodes.append(code)
    for operator in subgraph.operators:
        before = relus.get(int(operator.outputs[0]), -1)
        if before >= 0:
            operator.opcodeIndex = len(model.operatorCodes) - 1
            operator.inputs, operator.builtinOptions = [before], None
            operator.builtinOptionsType = schema.BuiltinOptions.NONE
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def keep_integer(data: bytes) -> bytes:
    """The file with integer operators fed from int8 values, not from float copies of them, and with float outputs.

    Where an output of the program is also the input of a layer (the embedding is that of the head), ai-edge-quantizer
    0.10.0 feeds the layer the dequantised copy, and the layer does not run as int8. If the output is a float value, it
    makes the layer's int8 copy of it the output.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(data)
    subgraph = _subgraph(model)
    types = [tensor.type for tensor in subgraph.tensors]
    source: dict[str, dict[int, int]] = {"DEQUANTIZE": {}, "QUANTIZE": {}}
    for operator in subgraph.operators:
        kind = flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
        if kind in source:
            source[kind][int(operator.outputs[0])] = int(operator.inputs[0])
    for operator in subgraph.operators:
        if types[int(operator.outputs[0])] != FLOAT32:
            operator.inputs = [source["DEQUANTIZE"].get(int(index), int(index)) for index in operator.inputs]
    floats = source["QUANTIZE"]
    subgraph.outputs = [floats.get(int(index), int(index)) for index in subgraph.outputs]
    for signature in model.signatureDefs:
        for output in signature.outputs:
            output.tensorIndex = floats.get(int(output.tensorIndex), int(output.tensorIndex))
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
