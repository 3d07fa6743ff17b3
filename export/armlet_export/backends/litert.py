"""The LiteRT backend: programs are ``.tflite`` files with float32 inputs and outputs.

Undocumented behaviour that is relied on here, with the versions in which it was seen:

- litert-torch 0.10.0 names inputs after the arguments of ``forward`` and outputs after the keys of its result
  (:class:`_Named`); an engine refuses a program with other names.
- litert-torch 0.10.0 keeps the bits of weights and the order of means, by which trained ranges find their layers in the
  file (:func:`_matched`, :func:`_static`); a layer that is not found is an error.
- ai-edge-quantizer 0.10.0 addresses operators by the names of their outputs (:func:`_quantise_operator`); an operator
  that it misses stays in float, which :func:`check_precision` refuses.
- ai-edge-litert 2.3.0 lists the operators of a loaded program (:func:`delegates`).

Files are edited in :mod:`armlet_export.backends.tflite_file`.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from armlet_runtime.errors import ExportError

from ..quantise import WEIGHT_MAX, LayerRanges, Range, capture, layer_ranges, weighted_nodes
from .base import LoweredPart, Part, Signature, library_changed
from .program import check_precision
from .tflite_file import FLOAT32, WEIGHTED, Operator, TfliteFile, keep_integer, read, read_tflite, without_copies

LITERT_TORCH, AI_EDGE_LITERT = "0.10.0", "2.3.0"
"""The versions whose undocumented behaviour this module knows."""

# They move values and compute nothing: input and output share one range.
_MOVES = {"RESHAPE", "TRANSPOSE", "PAD", "SQUEEZE", "EXPAND_DIMS"}
# So do these in an incremental encoder, where they cut and join columns of one layer only.
_CUTS_AND_JOINS = {"SLICE", "STRIDED_SLICE", "CONCATENATION"}


class _Named(nn.Module):
    """A captured graph whose inputs and outputs have the names of a signature.

    litert-torch takes the names of inputs from the arguments of ``forward``, hence one subclass for each set of inputs.
    It writes the qualified name of the class into the names of tensors; the module's part of it is fixed, so that the
    bytes of a file do not change when this code moves.
    """

    __module__ = "armlet_export.lower"

    def __init__(self, graph: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.program = graph
        self.names = tuple(signature.outputs)

    def _outputs(self, *values: Tensor) -> dict[str, Tensor]:
        result = self.program(*values)
        return dict(zip(self.names, result if isinstance(result, tuple) else (result,), strict=True))


class _Encoder(_Named):
    __module__ = _Named.__module__

    def forward(self, window: Tensor) -> dict[str, Tensor]:
        return self._outputs(window)


class _Aggregator(_Named):
    __module__ = _Named.__module__

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return self._outputs(tokens)


class _Step(_Named):
    __module__ = _Named.__module__

    def forward(self, window: Tensor, state: Tensor) -> dict[str, Tensor]:
        return self._outputs(window, state)


_NAMED: dict[tuple[str, ...], type[_Named]] = {
    ("window",): _Encoder,
    ("window", "state"): _Step,
    ("tokens",): _Aggregator,
}


def lower(part: Part) -> LoweredPart:
    """The ``.tflite`` program of a part.

    litert-torch cannot convert the PT2E graph to integer kernels. So for int8 the float module is converted with the
    trained weights, and ai-edge-quantizer rounds it with the ranges that training learnt, weights' scales included; it
    measures nothing itself. Both integer programs therefore hold the same integers.

    Raises:
        ExportError: A layer of the converted file cannot be matched with a trained layer, or stayed in float.
    """
    from ai_edge_quantizer import quantizer

    graph = capture(part.module, *part.signature.examples())
    if part.precision == "int8":
        parameters = dict(part.trained.named_parameters())
        graph.load_state_dict(
            {name: parameters[name] for name, _ in graph.named_parameters() if name in parameters}, strict=False
        )
    data = _converted(graph, part.signature)
    tool = quantizer.Quantizer(data)
    if part.precision == "int8":
        moves = _MOVES | _CUTS_AND_JOINS if part.signature.is_incremental else _MOVES
        data = _static(tool, data, graph, layer_ranges(part.trained), moves)
    elif part.precision != "fp32":
        data = _weights_only(tool, data, graph, part.precision)
    file = read_tflite(data)
    if any(file.types[index] != FLOAT32 for index in (*file.inputs, *file.outputs)):
        raise ExportError("the .tflite file has inputs or outputs that are not float32")
    program = read(data)
    check_precision(program, part.precision, part.layers)
    return LoweredPart(data, part.precision, program)


def _converted(graph: fx.GraphModule, signature: Signature) -> bytes:
    """The fp32 ``.tflite`` of a captured graph."""
    import litert_torch

    named = _NAMED[tuple(signature.inputs)](graph, signature).eval()
    examples = dict(zip(signature.inputs, signature.examples(), strict=True))
    converted = litert_torch.convert(named, sample_kwargs=examples)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        converted.export(str(path))
        return without_copies(path.read_bytes())


def _matched(file: TfliteFile, graph: fx.GraphModule, names: Sequence[str]) -> dict[int, str]:
    """Which operators (by position) are the layers with these weights.

    The converter drops the names of layers, so they are matched by the bytes of their weights, which litert-torch
    0.10.0 only reorders (TFLite wants channels last). Layers with equal weights are taken in the order of the graph.

    Raises:
        ExportError: A trained layer is missing in the file, or was changed.
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
    tensor_names: dict[int, str] = {}
    for place, operator in enumerate(file.operators):
        if operator.kind in WEIGHTED:
            candidates = waiting.get(file.constants.get(operator.inputs[1], b""), [])
            free = [name for name in candidates if name not in tensor_names.values()]
            if free:
                tensor_names[place] = free[0]
    missing = set(names) - set(tensor_names.values())
    if missing:
        raise library_changed(
            "litert-torch",
            LITERT_TORCH,
            f"the weights of {', '.join(sorted(missing))} are not in the converted .tflite file, so their trained "
            "ranges cannot be applied",
        )
    return tensor_names


def _static(
    tool: Any, data: bytes, graph: fx.GraphModule, layers: Sequence[LayerRanges], moves: Collection[str]
) -> bytes:
    """The int8 file, with the ranges that training learnt; operators of the kinds ``moves`` pass them on."""
    from ai_edge_quantizer import qtyping

    file = read_tflite(data)
    by_weight = {layer.weight: layer for layer in layers if layer.weight is not None}
    means = [layer for layer in layers if layer.operator == "mean"]
    places = {place: by_weight[name] for place, name in _matched(file, graph, list(by_weight)).items()}
    found_means = [place for place, operator in enumerate(file.operators) if operator.kind == "MEAN"]
    if len(found_means) != len(means):
        raise library_changed(
            "litert-torch",
            LITERT_TORCH,
            f"the converted .tflite file has {len(found_means)} means, the trained graph {len(means)}, so their ranges "
            "cannot be applied",
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
    return keep_integer(bytes(tool.quantize(ranges, enable_progress_report=False).quantized_model))


def _weights_only(tool: Any, data: bytes, graph: fx.GraphModule, precision: str) -> bytes:
    """The file with only its weights rounded: ``dynamic`` and ``fp16``."""
    from ai_edge_quantizer import qtyping

    file = read_tflite(data)
    for place in _matched(file, graph, list(dict.fromkeys(name for _, name in weighted_nodes(graph)))):
        wanted = qtyping.ComputePrecision.INTEGER if precision == "dynamic" else qtyping.ComputePrecision.FLOAT
        _quantise_operator(tool, file, file.operators[place], wanted)
    return bytes(tool.quantize(enable_progress_report=False).quantized_model)


def _quantise_operator(
    tool: Any, file: TfliteFile, operator: Any, precision: Any, activation_bits: int | None = None
) -> None:
    """Have ai-edge-quantizer round one operator, which it addresses by the names of the operator's outputs."""
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


def _moved(operator: Operator) -> list[int]:
    """The values that an operator moves, without its indices."""
    return operator.inputs if operator.kind == "CONCATENATION" else operator.inputs[:1]


def _spread(file: TfliteFile, activations: dict[int, Range], moves: Sequence[Operator]) -> None:
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
        raise ExportError(f"tensor '{file.names[index]}' has two trained ranges, {activations[index]} and {wanted}")


def delegates(data: bytes) -> int:
    """How many parts of a program XNNPACK takes when LiteRT loads it on this machine; 1 if it takes the whole of it."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    try:
        operators = interpreter._get_ops_details()
    except AttributeError as error:
        problem = f"the operators of a loaded program cannot be listed ({error})"
        raise library_changed("ai-edge-litert", AI_EDGE_LITERT, problem) from error
    return [operator["op_name"] for operator in operators].count("DELEGATE")
