"""Lowering: a part of a model in one precision becomes a program for an engine.

Precisions:

- ``int8``: weights and the ends of the layers as quantisation-aware training left them
(:mod:`armlet_export.quantise.fake_quant`);
- ``dynamic``: int8 weights, each layer's input rounded by the range that it has in that call;
- ``fp16``: weights stored as fp16 and computed with in float32;
- ``fp32``: float32.

Every finished file is looked into (:mod:`armlet_export.backends.programs`) before it counts as made.
"""

from __future__ import annotations

import copy
import logging
import re
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from armlet_runtime.errors import ExportError

from ..quantise import WEIGHT_MAX, LayerRanges, Range, capture, convert, dynamic, layer_ranges, rewrite
from .programs import (
    FLOAT32,
    TFLITE_WEIGHTED,
    Program,
    TfliteFile,
    TfliteOperator,
    check_precision,
    look_at_onnx,
    look_at_tflite,
    read_pte,
    read_tflite,
)

ONNX_OPSET = 18
"""What ONNX Runtime has had since 1.14 (2023), so also the Jetson builds; torch 2.13 exports it without conversion."""

STATE, NEXT_STATE = "state", "next_state"
"""Names of what an incremental encoder takes over, and leaves."""

PRECISIONS = ("int8", "dynamic", "fp16", "fp32")
"""By the size of the file, smallest first; ``dynamic`` has the bytes of ``int8`` and takes longer."""


@dataclass(frozen=True)
class Signature:
    """Names and shapes of a program's inputs and outputs, as the manifest promises them.

    ``state`` is the shape of the second input of a step program, see :mod:`armlet_export.streaming`.
    """

    input: str
    input_shape: tuple[int, ...]
    outputs: dict[str, tuple[int, ...]]
    state: tuple[int, ...] | None = None

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Every input's name and shape, in the program's order."""
        return {self.input: self.input_shape} | ({STATE: self.state} if self.state is not None else {})

    @property
    def is_incremental(self) -> bool:
        """Whether it is that of an encoder which gives a state to go on from."""
        return NEXT_STATE in self.outputs

    def example(self) -> Tensor:
        """An input of that shape."""
        return torch.zeros(self.input_shape)

    def examples(self) -> tuple[Tensor, ...]:
        """One for every input."""
        return tuple(torch.zeros(shape) for shape in self.inputs.values())


@dataclass(frozen=True)
class Part:
    """An encoder or the aggregator, as it is to be lowered.

    Attributes:
        module: The float module.
        signature: Its input and outputs; a ``.pte`` has no names, so their order is what counts.
        precision: One of :data:`PRECISIONS`.
        prepared: Its trained graph from :func:`armlet_export.quantise.fake_quant.prepare`; for ``int8`` only.
    """

    module: nn.Module
    signature: Signature
    precision: str
    prepared: fx.GraphModule | None = None

    def reference(self) -> nn.Module:
        """The PyTorch module that the program must agree with, rounding simulated."""
        if self.precision == "int8":
            assert self.prepared is not None
            return self.prepared
        if self.precision == "dynamic":
            return dynamic(self.module, self.signature.example())
        if self.precision == "fp16":
            return _rounded_to_fp16(self.module)
        return self.module

    @property
    def layers(self) -> int:
        """How many layers with weights were trained to be int8."""
        return sum(layer.weight is not None for layer in layer_ranges(self.prepared)) if self.prepared else 0

    @property
    def trained(self) -> fx.GraphModule:
        """The prepared graph of an int8 part."""
        assert self.prepared is not None
        return self.prepared


def _rounded_to_fp16(module: nn.Module) -> nn.Module:
    rounded = copy.deepcopy(module)
    for parameter in rounded.parameters():
        if parameter.ndim > 1:  # weights; biases stay float32
            parameter.data = parameter.data.half().float()
    return rounded


@dataclass(frozen=True)
class Lowered:
    """A finished program: its file, its precision, and what was seen in it."""

    data: bytes
    precision: str
    program: Program


def lower_part(engine: str, part: Part) -> Lowered:
    """A program for ``litert``, ``executorch`` or ``onnx``.

    Raises:
        ExportError: The engine has no program of that precision, or what was made is not what was asked for.
    """
    return {"litert": to_litert, "executorch": to_executorch, "onnx": to_onnx}[engine](part)


# ---------------------------------------------------------------------------------------------------- ExecuTorch


def to_executorch(part: Part) -> Lowered:
    """A ``.pte``, the whole of it in one XNNPACK delegate.

    Raises:
        ExportError: A part of the program is outside the delegate, or stayed in float.
    """
    if part.precision == "fp16":
        raise ExportError(
            "executorch has no fp16 program with float32 ends (XNNPACK's delegate converts no types): take int8, "
            "dynamic or fp32 in [export] precision, or leave executorch out with --engine"
        )
    examples = part.signature.examples()
    if part.precision == "int8":
        graph = convert(part.trained)
    elif part.precision == "dynamic":
        graph = dynamic(part.module, *examples)
    else:
        graph = capture(part.module, *examples)
    try:
        data, reasons = _delegated(graph, examples)
    except Exception as error:
        if part.precision != "dynamic":
            raise
        raise ExportError(
            "executorch cannot lower this part with dynamic int8 (ExecuTorch 1.5 has it for linear layers only): take "
            "int8 or fp32 in [export] precision"
        ) from error
    program = read_pte(data, reasons)
    check_precision(program, part.precision, part.layers)
    return Lowered(data, part.precision, program)


def _delegated(graph: fx.GraphModule, examples: tuple[Tensor, ...]) -> tuple[bytes, dict[str, str]]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    # Once more for one window: what was open in training (the batch) is a number now, and some nodes do nothing.
    program = torch.export.export(graph, examples)
    fixed = program.module(check_guards=False)
    assert isinstance(fixed, fx.GraphModule)
    rewrite(fixed)
    _keep_apart(fixed)
    with _partitioner_reasons() as reasons:
        edge = to_edge_transform_and_lower(torch.export.export(fixed, examples), partitioner=[XnnpackPartitioner()])
        # Inputs are read where the caller has them: nothing is copied, and no memory planned for them. Outputs are
        # planned, for executorch-numpy-runtime 1.4.0 ends the process if they are not.
        planning = MemoryPlanningPass(alloc_graph_input=False)
        return bytes(edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning)).buffer), reasons


def _keep_apart(graph: fx.GraphModule) -> None:
    """Write a ReLU as ``(x + |x|) / 2`` where ``x`` is wanted, too: ExecuTorch 1.5 puts it into the layer of both."""
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.relu.default and len(node.args[0].users) > 1:
            with graph.graph.inserting_before(node):
                size = graph.graph.call_function(torch.ops.aten.abs.default, node.args)
                both = graph.graph.call_function(torch.ops.aten.add.Tensor, (node.args[0], size))
                half = graph.graph.call_function(torch.ops.aten.mul.Tensor, (both, 0.5))
            node.replace_all_uses_with(half)
            graph.graph.erase_node(node)
    graph.recompile()


@contextmanager
def _partitioner_reasons() -> Iterator[dict[str, str]]:
    """Operator to why the partitioner left it outside of the delegate, which it says only in its log."""
    reasons: dict[str, str] = {}

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found = re.search(
                r"(?:target|node)[^\n]*?aten\.?_?([a-z0-9_]+?)(?:_copy)?(?:\.\w+)?\b.*?(?:due to|reason:?)\s*(.+)",
                record.getMessage(),
                re.S,
            )
            if found:
                reasons[found[1]] = " ".join(found[2].split())

    logger = logging.getLogger("executorch.exir.backend.utils")
    handler, level, passes_on = Keep(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield reasons
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = passes_on


# -------------------------------------------------------------------------------------------------------- LiteRT

# They move values and compute nothing: input and output share one range.
_TFLITE_MOVES = {"RESHAPE", "TRANSPOSE", "PAD", "SQUEEZE", "EXPAND_DIMS"}
# So do these, in an incremental encoder, where all that is cut and joined is columns of one layer.
_TFLITE_CUTS_AND_JOINS = {"SLICE", "STRIDED_SLICE", "CONCATENATION"}


class _Named(nn.Module):
    """A captured graph under the names of its signature, as litert-torch takes them from arguments and dict keys."""

    def __init__(self, graph: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.program = graph
        self.names = tuple(signature.outputs)

    def _outputs(self, *values: Tensor) -> dict[str, Tensor]:
        result = self.program(*values)
        return dict(zip(self.names, result if isinstance(result, tuple) else (result,), strict=True))


class _Encoder(_Named):
    def forward(self, window: Tensor) -> dict[str, Tensor]:
        return self._outputs(window)


class _Aggregator(_Named):
    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return self._outputs(tokens)


class _Step(_Named):
    def forward(self, window: Tensor, state: Tensor) -> dict[str, Tensor]:
        return self._outputs(window, state)


_NAMED: dict[tuple[str, ...], type[_Named]] = {
    ("window",): _Encoder,
    ("window", "state"): _Step,
    ("tokens",): _Aggregator,
}


def to_litert(part: Part) -> Lowered:
    """A ``.tflite`` with float32 input and outputs.

    litert-torch cannot convert the PT2E graph to integer kernels. So for int8 the float module is converted with the
    trained weights, and ai-edge-quantizer rounds it with the ranges that training learnt, weights' scales included; it
    measures nothing itself. Both integer programs therefore hold the same integers.

    Raises:
        ExportError: A layer of the converted file cannot be matched with a trained one, or stayed in float.
    """
    from ai_edge_quantizer import quantizer

    graph = capture(part.module, *part.signature.examples())
    if part.precision == "int8":
        parameters = dict(part.trained.named_parameters())
        graph.load_state_dict(
            {name: parameters[name] for name, _ in graph.named_parameters() if name in parameters}, strict=False
        )
    data = convert_litert(graph, part.signature)
    tool = quantizer.Quantizer(data)
    if part.precision == "int8":
        moves = _TFLITE_MOVES | _TFLITE_CUTS_AND_JOINS if part.signature.is_incremental else _TFLITE_MOVES
        data = _static(tool, data, graph, layer_ranges(part.trained), moves)
    elif part.precision != "fp32":
        data = _weights_only(tool, data, graph, part.precision)
    file = read_tflite(data)
    if any(file.types[index] != FLOAT32 for index in (*file.inputs, *file.outputs)):
        raise ExportError("the .tflite should take and give float32")
    program = look_at_tflite(data)
    check_precision(program, part.precision, part.layers)
    return Lowered(data, part.precision, program)


def convert_litert(graph: fx.GraphModule, signature: Signature) -> bytes:
    """The fp32 ``.tflite`` of a captured graph."""
    import litert_torch

    named = _NAMED[tuple(signature.inputs)](graph, signature).eval()
    examples = dict(zip(signature.inputs, signature.examples(), strict=True))
    converted = litert_torch.convert(named, sample_kwargs=examples)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        converted.export(str(path))
        return _without_copies(path.read_bytes())


def _without_copies(data: bytes) -> bytes:
    """Each layer once.

    Where the values before a ReLU are wanted, too (an embedding that is an output), litert-torch computes the layer
    twice, once with the ReLU in it. Such a copy becomes a RELU of the first.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(data)
    (subgraph,) = model.subgraphs
    layers: dict[tuple[object, ...], list[Any]] = defaultdict(list)
    for operator in subgraph.operators:
        kind = flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
        if kind in TFLITE_WEIGHTED:
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


def _matched(file: TfliteFile, graph: fx.GraphModule, names: Sequence[str]) -> dict[int, str]:
    """Which operators (by position) are the layers with these weights.

    They are told by the weights themselves, which the converter only reorders; equal ones go in the order of the graph.

    Raises:
        ExportError: A layer is not in the file as it was trained.
    """
    parameters = dict(graph.named_parameters())
    waiting: dict[bytes, list[str]] = defaultdict(list)
    for name in names:
        weight = parameters[name].detach().numpy()
        if weight.ndim == 4:  # TFLite: (out, height, width, in), and (1, height, width, channels) for a depthwise one
            waiting[np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).tobytes()].append(name)
            if weight.shape[1] == 1 and weight.shape[0] > 1:
                waiting[np.ascontiguousarray(weight.transpose(1, 2, 3, 0)).tobytes()].append(name)
        else:
            waiting[np.ascontiguousarray(weight).tobytes()].append(name)
    found: dict[int, str] = {}
    for place, operator in enumerate(file.operators):
        if operator.kind in TFLITE_WEIGHTED:
            candidates = waiting.get(file.constants.get(operator.inputs[1], b""), [])
            free = [name for name in candidates if name not in found.values()]
            if free:
                found[place] = free[0]
    missing = set(names) - set(found.values())
    if missing:
        raise ExportError(
            f"the layers of {', '.join(sorted(missing))} are others in the file that litert-torch made, which trained "
            "ranges do not fit"
        )
    return found


def _static(
    tool: Any, data: bytes, graph: fx.GraphModule, layers: Sequence[LayerRanges], moves: Collection[str]
) -> bytes:
    """int8 with the ranges that training learnt, which operators of the kinds ``moves`` pass on."""
    from ai_edge_quantizer import qtyping

    file = read_tflite(data)
    by_weight = {layer.weight: layer for layer in layers if layer.weight is not None}
    means = [layer for layer in layers if layer.operator == "mean"]
    places = {place: by_weight[name] for place, name in _matched(file, graph, list(by_weight)).items()}
    found_means = [place for place, operator in enumerate(file.operators) if operator.kind == "MEAN"]
    if len(found_means) != len(means):
        raise ExportError(
            f"litert-torch made {len(found_means)} means of {len(means)}, which trained ranges do not fit"
        )
    places |= {place: layer for place, layer in zip(found_means, means, strict=True) if layer.input is not None}
    activations: dict[int, Range] = {}
    ranges: dict[str, dict[str, Any]] = {}
    for place, layer in places.items():
        operator = file.operators[place]
        assert layer.input is not None and layer.output is not None
        _join(file, activations, operator.inputs[0], layer.input)
        _join(file, activations, operator.outputs[0], layer.output)
        if layer.weight_scale is None:
            continue
        weight = operator.inputs[1]
        shape = [1] * len(file.shapes[weight])
        shape[-1 if operator.kind == "DEPTHWISE_CONV_2D" else 0] = -1
        scale = layer.weight_scale.double().numpy().reshape(shape)
        # In float64, so that the division by 127 gives the trained float32 scale again.
        ranges[file.names[weight]] = {"min": -WEIGHT_MAX * scale, "max": WEIGHT_MAX * scale}
    movers = [operator for operator in file.operators if operator.kind in moves]
    _spread(file, activations, movers)
    for index, known in activations.items():
        shape = [1] * len(file.shapes[index])
        ranges[file.names[index]] = {"min": np.full(shape, known.low), "max": np.full(shape, known.high)}
    for place, operator in enumerate(file.operators):
        is_moved = operator in movers and {*_moved(operator), operator.outputs[0]} <= activations.keys()
        if place in places or is_moved:
            _quantise_operator(tool, file, operator, qtyping.ComputePrecision.INTEGER, activation_bits=8)
    return _keep_integer(bytes(tool.quantize(ranges, enable_progress_report=False).quantized_model))


def _weights_only(tool: Any, data: bytes, graph: fx.GraphModule, precision: str) -> bytes:
    """``dynamic`` and ``fp16``."""
    from ai_edge_quantizer import qtyping

    from ..quantise import weighted_nodes

    file = read_tflite(data)
    for place in _matched(file, graph, list(dict.fromkeys(name for _, name in weighted_nodes(graph)))):
        wanted = qtyping.ComputePrecision.INTEGER if precision == "dynamic" else qtyping.ComputePrecision.FLOAT
        _quantise_operator(tool, file, file.operators[place], wanted)
    return bytes(tool.quantize(enable_progress_report=False).quantized_model)


def _quantise_operator(
    tool: Any, file: TfliteFile, operator: Any, precision: Any, activation_bits: int | None = None
) -> None:
    """Tell ai-edge-quantizer to round one operator, by the names of its outputs."""
    from ai_edge_quantizer import qtyping, quantizer

    integer = precision == qtyping.ComputePrecision.INTEGER
    scope = "".join(f"{file.names[index]};" for index in operator.outputs)
    tool.update_quantization_recipe(
        f"^{re.escape(scope)}$",
        qtyping.TFLOperationName(operator.kind),
        qtyping.OpQuantizationConfig(
            activation_tensor_config=(
                qtyping.TensorQuantizationConfig(num_bits=activation_bits, symmetric=False) if activation_bits else None
            ),
            weight_tensor_config=(
                qtyping.TensorQuantizationConfig(
                    num_bits=8, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE
                )
                if integer
                else qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
            ),
            compute_precision=precision,
            explicit_dequantize=not integer,
        ),
        quantizer.AlgorithmName.MIN_MAX_UNIFORM_QUANT if integer else quantizer.AlgorithmName.FLOAT_CASTING,
    )


def _moved(operator: TfliteOperator) -> list[int]:
    """The values that an operator moves, without what says where to."""
    return operator.inputs if operator.kind == "CONCATENATION" else operator.inputs[:1]


def _spread(file: TfliteFile, activations: dict[int, Range], moves: Sequence[TfliteOperator]) -> None:
    """Give what only moves values the range that it moves: forwards, and backwards where nothing else reads it."""
    readers: dict[int, int] = defaultdict(int)
    for operator in file.operators:
        for index in operator.inputs:
            readers[index] += 1
    for operator in moves:
        target = operator.outputs[0]
        for source in _moved(operator):
            if source in activations:
                activations.setdefault(target, activations[source])
    for operator in reversed(moves):
        target = operator.outputs[0]
        for source in _moved(operator):
            if target in activations and source not in activations and readers[source] == 1:
                activations[source] = activations[target]


def _join(file: TfliteFile, activations: dict[int, Range], index: int, wanted: Range) -> None:
    if activations.setdefault(index, wanted) != wanted:
        raise ExportError(f"the tensor '{file.names[index]}' would need two ranges, {activations[index]} and {wanted}")


def _keep_integer(data: bytes) -> bytes:
    """Feed integer operators from int8 values, not from their float copies, and give float outputs as they are.

    Where an output of the program is also the input of a layer (the embedding is that of the head), ai-edge-quantizer
    0.10 gives the layer the dequantised copy, and the layer does not run as int8. If the output is a float value, it
    gives the layer's int8 copy of it as the output.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(data)
    (subgraph,) = model.subgraphs
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


# ---------------------------------------------------------------------------------------------------------- ONNX


def to_onnx(part: Part) -> Lowered:
    """An ``.onnx`` of opset :data:`ONNX_OPSET`; int8 as QDQ: QuantizeLinear and DequantizeLinear around the layers.

    Raises:
        ExportError: The exporter's file is not well-formed, or stayed in float.
    """
    import onnx

    examples = part.signature.examples()
    if part.precision == "int8":
        graph: nn.Module = convert(part.trained)
    elif part.precision == "fp16":
        graph = capture(_rounded_to_fp16(part.module), *examples)
    else:
        graph = capture(part.module, *examples)
    exported = torch.onnx.export(
        graph,
        examples,
        dynamo=True,
        input_names=list(part.signature.inputs),
        output_names=list(part.signature.outputs),
        opset_version=ONNX_OPSET,
        verbose=False,
    )
    assert exported is not None
    model = exported.model_proto
    _strip_notes(model)
    if part.precision == "int8":
        _round_biases(model)
    elif part.precision == "fp16":
        _store_as_fp16(model)
    elif part.precision == "dynamic":
        model = _dynamic_onnx(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the ONNX exporter made a file that is not well-formed: {error}") from error
    data = model.SerializeToString()
    program = look_at_onnx(data)
    check_precision(program, part.precision, part.layers)
    return Lowered(data, part.precision, program)


def _round_biases(model: Any) -> None:
    """Biases of integer layers as int32 in steps of input scale times weight scale.

    With a float bias ONNX Runtime would leave the layer in float.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    stored = {item.name: item for item in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    for node in list(graph.node):
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or node.input[2] not in stored:
            continue
        ends: list[Any] = [made.get(name) for name in node.input[:2]]
        if any(end is None or end.op_type != "DequantizeLinear" for end in ends):
            continue
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


def _store_as_fp16(model: Any) -> None:
    """Weights as fp16, each with a ``Cast`` to float32 behind it."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    for item in list(graph.initializer):
        values = numpy_helper.to_array(item)
        if values.dtype != np.float32 or values.ndim < 2:
            continue
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue  # a constant of a rewrite, which is no weight
        name = item.name
        item.CopyFrom(numpy_helper.from_array(half, f"{name}_fp16"))
        graph.node.insert(0, helper.make_node("Cast", [f"{name}_fp16"], [name], to=TensorProto.FLOAT))


def _dynamic_onnx(model: Any) -> Any:
    """Linear layers in integers, those apart that take the mean of their input."""
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
    """Take out the exporter's notes: source lines and paths of the machine that it ran on."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        if "metadata_props" in part.DESCRIPTOR.fields_by_name:
            del part.metadata_props[:]
