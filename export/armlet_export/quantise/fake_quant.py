"""Quantisation: which values become int8, with which ranges, the same for every integer format.

A prepared graph (torchao PT2E, for training) has a fake quantiser at each value that the integer programs round:

- weights of convolutions and linear layers: int8 in [-127, 127], symmetric, one scale for each output channel: its
  largest weight / 127, always that of the present weights (no average over steps, so a scale never lags behind them);
- what goes into and comes out of these layers (after a ReLU that follows): int8 in [-128, 127] with a scale and a zero
  point, from a moving average of the ranges seen in training. An operator that only moves values shares the range of
  its input; a mean of such values has one of its own, since a mean of many values spreads far less than they do. The
  range of a program's input can be set instead, see :func:`set_input_range`.

All else stays float32 inside an int8 program: norms, softmax, GELU, products of activations, sums of residuals. No
engine has integer kernels for all of them, and their share of weights is nil. The annotation is decided here and not
by an engine's own quantiser, so that every format rounds at the same places.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import FakeQuantize, MovingAveragePerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationConfig,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from armlet_runtime.errors import ExportError

from .capture import capture, weighted_nodes, without_modes
from .graph_builder import MOVES, aten

ACTIVATION_MIN, ACTIVATION_MAX = -128, 127
WEIGHT_MAX = 127

# Smallest scale of a weight, for a channel of zeros; far below any channel that does something.
_SMALLEST_WEIGHT_SCALE = 2.0**-24


@dataclass(frozen=True)
class Range:
    """How one activation is rounded: ``q = clamp(round(x / scale) + zero_point, -128, 127)``."""

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The smallest value that it can hold."""
        return (ACTIVATION_MIN - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The largest value that it can hold."""
        return (ACTIVATION_MAX - self.zero_point) * self.scale


@dataclass(frozen=True)
class LayerRanges:
    """One convolution, linear layer or mean of a graph, with the learnt ranges around it.

    Attributes:
        operator: ``conv2d``, ``linear`` or ``mean``.
        weight: Name of the weight in the graph; None for ``mean``.
        weight_scale: (output channels,) scales of the weight; None for ``mean``, and where it stays in float.
        input: Range of the operator's input; None for a float ``mean``.
        output: Range of its output, after a ReLU that follows; None for a float ``mean``.
    """

    operator: str
    weight: str | None
    weight_scale: Tensor | None
    input: Range | None
    output: Range | None


class _Quantizer(Quantizer):  # type: ignore[misc]
    """Marks the layers with weights, the means of their outputs, and what only moves these.

    In an incremental encoder (``is_incremental``) also what cuts and joins them.
    """

    def __init__(self, config: QuantizationConfig, is_incremental: bool = False) -> None:
        super().__init__()
        self._config = config
        self._moves = MOVES | {aten.slice.Tensor} if is_incremental else MOVES
        self._joins = {aten.cat.default} if is_incremental else set()

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        config = self._config
        for node, _ in weighted_nodes(model):
            weight = {node.args[1]: config.weight}
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                input_qspec_map={node.args[0]: config.input_activation} | weight, _annotated=True
            )
            if config.output_activation is None:
                continue
            last = node
            users = list(node.users)
            if len(users) == 1 and users[0].target in (aten.relu.default, aten.relu_.default):
                last = users[0]
                last.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)
            last.meta[Q_ANNOTATION_KEY].output_qspec = config.output_activation
        for node in model.graph.nodes:
            source = node.args[0] if node.args else None
            if node.target in self._joins:
                assert isinstance(source, (list, tuple))
                first = next(part for part in source if Q_ANNOTATION_KEY in part.meta)
                shared = SharedQuantizationSpec(first)
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    dict.fromkeys(source, shared), shared, _annotated=True
                )
                continue
            known = source.meta.get(Q_ANNOTATION_KEY) if isinstance(source, fx.Node) else None
            if known is None or known.output_qspec is None:
                continue
            if node.target in self._moves:
                shared = SharedQuantizationSpec(source)
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({source: shared}, shared, _annotated=True)
            elif node.target is aten.mean.dim:
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    {source: config.input_activation}, config.output_activation, _annotated=True
                )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to find: :func:`layer_ranges_nodes` looks at the prepared graph."""


def _config() -> QuantizationConfig:
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    # Not torch's fused fake quantiser: for weights it rounds in steps of |smallest| / 128 where that is larger than
    # largest / 127, and the programs then hold other integers than were trained (seen: 0.3 steps of the logits).
    weight = replace(
        config.weight,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, eps=_SMALLEST_WEIGHT_SCALE
        ),
    )
    return replace(config, weight=weight)


def prepare(module: nn.Module, *examples: Tensor, is_incremental: bool = False) -> fx.GraphModule:
    """Capture a module and put fake quantisers into it; its parameters are copies, named as the module's.

    Args:
        module: Module of tensors, without batch normalisation (folded before).
        examples: Its inputs, of any batch size.
        is_incremental: Whether it is one of :mod:`armlet_export.streaming`, whose values are cut and joined as int8.

    Raises:
        ExportError: The module cannot be captured, or has a layer that would stay in float.
    """
    graph = capture(module, *examples, any_batch=True)
    prepared = prepare_qat_pt2e(graph, _Quantizer(_config(), is_incremental))
    layer_ranges_nodes(prepared)
    return without_modes(prepared)


def dynamic(module: nn.Module, *examples: Tensor) -> fx.GraphModule:
    """A graph with int8 weights whose layers round their inputs by the range of each call.

    Raises:
        ExportError: The module cannot be captured.
    """
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    prepared = prepare_pt2e(capture(module, *examples, any_batch=True), _Quantizer(config))
    prepared(*(example.expand(2, *example.shape[1:]) for example in examples))
    converted: fx.GraphModule = convert_pt2e(prepared, fold_quantize=True)
    return without_modes(converted)


def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """The graph with int8 weights and explicit quantise and dequantise nodes; ``prepared`` is not changed."""
    converted: fx.GraphModule = convert_pt2e(copy.deepcopy(prepared), fold_quantize=True)
    return converted


def with_ranges_of(prepared: fx.GraphModule, trained: fx.GraphModule) -> fx.GraphModule:
    """Give a prepared graph the weights and ranges of a trained graph with the same layers; the graph itself.

    Raises:
        ExportError: The graphs have other layers.
    """
    own, theirs = dict(prepared.named_parameters()), dict(trained.named_parameters())
    mine, learnt = layer_ranges_nodes(prepared), layer_ranges_nodes(trained)
    if own.keys() != theirs.keys() or [node.target for node, _, _ in mine] != [node.target for node, _, _ in learnt]:
        raise ExportError("an incremental encoder has other layers than the trained encoder")
    with torch.no_grad():
        for name, value in theirs.items():
            own[name].copy_(value)
    for (node, *ends), (other, *other_ends) in zip(mine, learnt, strict=True):
        if node.target is not aten.mean.dim:
            ends, other_ends = [*ends, _weight(node)], [*other_ends, _weight(other)]
        for quantiser, source in zip(ends, other_ends, strict=True):
            state = trained.get_submodule(str(source.target)).state_dict()
            prepared.get_submodule(str(quantiser.target)).load_state_dict(state)
    learn_ranges(prepared, False)
    return prepared


def _weight(layer: fx.Node) -> fx.Node:
    """The fake quantiser of a layer's weight."""
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)
    return weight


def fake_quantisers(module: nn.Module) -> Iterable[FakeQuantize]:
    """All fake quantisers in a module."""
    return (part for part in module.modules() if isinstance(part, FakeQuantize))


def learn_ranges(module: nn.Module, learn: bool) -> None:
    """Whether the ranges of activations follow what passes through; those of weights always do."""
    for quantiser in fake_quantisers(module):
        quantiser.enable_observer(learn or quantiser.is_per_channel)


def input_quantiser(prepared: fx.GraphModule) -> FakeQuantize | None:
    """The fake quantiser of a prepared graph's input; None if no layer takes the input directly."""
    for _, before, _ in layer_ranges_nodes(prepared):
        source = before.args[0]
        while isinstance(source, fx.Node) and source.target in MOVES:
            source = source.args[0]
        if isinstance(source, fx.Node) and source.op == "placeholder":
            quantiser = prepared.get_submodule(str(before.target))
            assert isinstance(quantiser, FakeQuantize)
            return quantiser
    return None


def set_input_range(prepared: fx.GraphModule, limit: float) -> None:
    """Round the input of a prepared graph within ``-limit`` to ``limit``; what is beyond is clipped."""
    quantiser = input_quantiser(prepared)
    if quantiser is None:
        return
    observer = quantiser.activation_post_process
    observer.min_val, observer.max_val = torch.tensor(-limit), torch.tensor(limit)
    quantiser.scale, quantiser.zero_point = observer.calculate_qparams()
    quantiser.disable_observer()


def output_range(prepared: fx.GraphModule) -> Range | None:
    """The range of a prepared graph's first output; None if it is float."""
    (output,) = (node for node in prepared.graph.nodes if node.op == "output")
    first = output.args[0]
    while isinstance(first, (list, tuple)):
        first = first[0]
    while isinstance(first, fx.Node) and first.target in MOVES:
        first = first.args[0]
    return _range(prepared, first) if _is_quantiser(prepared, first) else None


def layer_ranges_nodes(prepared: fx.GraphModule) -> list[tuple[fx.Node, fx.Node, fx.Node]]:
    """The operators that must be integer, with the fake quantisers (nodes) of their inputs and outputs.

    Raises:
        ExportError: A layer with weights has no fake quantiser at its input, weight or output.
    """
    weighted = {node for node, _ in weighted_nodes(prepared)}
    nodes = []
    for node in prepared.graph.nodes:
        before = node.args[0] if node.args else None
        is_mean = node.target is aten.mean.dim and _is_quantiser(prepared, before)
        if node not in weighted and not is_mean:
            continue
        users = list(node.users)
        if len(users) == 1 and users[0].target in (aten.relu.default, aten.relu_.default):
            users = list(users[0].users)
        quantised = _is_quantiser(prepared, before) and len(users) == 1 and _is_quantiser(prepared, users[0])
        if node in weighted:
            quantised = quantised and _is_quantiser(prepared, node.args[1])
        if not quantised or not isinstance(before, fx.Node):
            raise ExportError(f"the layer '{node.name}' would stay in float: it got no int8 form")
        nodes.append((node, before, users[0]))
    return nodes


def _is_quantiser(graph: fx.GraphModule, node: object) -> bool:
    return (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and isinstance(graph.get_submodule(str(node.target)), FakeQuantize)
    )


def layer_ranges(prepared: fx.GraphModule) -> list[LayerRanges]:
    """Every layer and mean in the order in which they run, those that rewrites put in apart.

    Raises:
        ExportError: A layer would stay in float.
    """
    weights = dict(weighted_nodes(prepared))
    integer = {node: (before, after) for node, before, after in layer_ranges_nodes(prepared)}
    ranges = []
    for node in prepared.graph.nodes:
        if node in integer:
            before, after = (_range(prepared, quantiser) for quantiser in integer[node])
            scale = _qparams(prepared, node.args[1])[0] if node in weights else None
            ranges.append(LayerRanges(str(node.target).split(".")[1], weights.get(node), scale, before, after))
        elif node.target is aten.mean.dim:
            ranges.append(LayerRanges("mean", None, None, None, None))
    return ranges


def _range(prepared: fx.GraphModule, node: fx.Node) -> Range:
    scale, zero_point = _qparams(prepared, node)
    return Range(float(scale), int(zero_point))


def _qparams(graph: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    quantiser: Any = graph.get_submodule(str(node.target))
    with torch.no_grad():
        scale, zero_point = quantiser.calculate_qparams()
    return scale.detach().clone(), zero_point.detach().clone()
