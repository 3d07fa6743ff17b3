"""Quantisation: which values become int8, with which ranges, the same for every integer format.

A prepared graph (torchao PT2E, for training) has a fake quantiser at each value that the integer programs round:

- weights: int8 in [-127, 127], symmetric, one scale for each output channel: its largest weight / 127, always that of
  the present weights (no average over steps, so a scale never lags behind its weights);
- activations: int8 in [-128, 127] with a scale and a zero point, from a moving average of the ranges seen in training.
  An operator that only moves values shares the range of its input; a mean has one of its own, since a mean of many
  values spreads far less than they do. The range of a program's input can be set instead, see :func:`set_input_range`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import propagate_annotation
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import FusedMovingAvgObsFakeQuantize, MovingAveragePerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationConfig
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from armlet_runtime.errors import ExportError

from .graphs import aten, capture, weighted_nodes, without_modes

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
    """The learnt ranges around one operator.

    Attributes:
        operator: ``conv2d``, ``linear`` or ``mean``.
        weight: Name of the weight in the graph; None for ``mean``.
        weight_scale: (output channels,) scales of the weight; None for ``mean``.
        input: Range of the operator's input.
        output: Range of its output, after a ReLU that follows.
    """

    operator: str
    weight: str | None
    weight_scale: Tensor | None
    input: Range
    output: Range


class _Quantizer(XNNPACKQuantizer):  # type: ignore[misc]
    """ExecuTorch's quantiser for XNNPACK, and a range of its own for the output of a mean."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        config: QuantizationConfig = self.global_config
        for node in model.graph.nodes:
            if node.target is aten.mean.dim:
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    input_qspec_map={node.args[0]: config.input_activation},
                    output_qspec=config.output_activation,
                    _annotated=True,
                )
        super().annotate(model)
        propagate_annotation(model)
        return model


def _config() -> QuantizationConfig:
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    weight = replace(
        config.weight,
        observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, eps=_SMALLEST_WEIGHT_SCALE
        ),
    )
    return replace(config, weight=weight)


def prepare(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """Capture a module and put fake quantisers into it; its parameters are copies, named as the module's.

    Args:
        module: Module of one tensor, without batch normalisation (folded before).
        example: An input, of any batch size.

    Raises:
        ExportError: The module cannot be captured, or has a layer that would stay in float.
    """
    graph = capture(module, example, any_batch=True)
    prepared = prepare_qat_pt2e(graph, _Quantizer().set_global(_config()))
    layer_ranges_nodes(prepared)
    return without_modes(prepared)


def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """The graph with int8 weights and explicit quantise and dequantise nodes; ``prepared`` stays as it is."""
    converted: fx.GraphModule = convert_pt2e(copy.deepcopy(prepared), fold_quantize=True)
    return converted


def fake_quantisers(module: nn.Module) -> Iterable[FusedMovingAvgObsFakeQuantize]:
    """All fake quantisers in a module."""
    return (part for part in module.modules() if isinstance(part, FusedMovingAvgObsFakeQuantize))


def learn_ranges(module: nn.Module, learn: bool) -> None:
    """Whether the ranges of activations follow what passes through; those of weights always do."""
    for quantiser in fake_quantisers(module):
        quantiser.enable_observer(learn or quantiser.is_per_channel)


def input_quantiser(prepared: fx.GraphModule) -> FusedMovingAvgObsFakeQuantize:
    """The fake quantiser of a prepared graph's input."""
    return prepared.get_submodule(str(layer_ranges_nodes(prepared)[0][1].target))


def set_input_range(prepared: fx.GraphModule, limit: float) -> None:
    """Round the input of a prepared graph within ``-limit`` to ``limit``; what is beyond is clipped."""
    quantiser = input_quantiser(prepared)
    observer = quantiser.activation_post_process
    observer.min_val, observer.max_val = torch.tensor(-limit), torch.tensor(limit)
    quantiser.scale, quantiser.zero_point = observer.calculate_qparams()
    quantiser.disable_observer()


def layer_ranges_nodes(prepared: fx.GraphModule) -> list[tuple[fx.Node, fx.Node, fx.Node]]:
    """The operators that must be integer, with the fake quantisers (nodes) of their inputs and outputs.

    Raises:
        ExportError: An operator with weights, or a mean, has no fake quantiser at its input, weight or output.
    """
    weighted = {node for node, _ in weighted_nodes(prepared)}
    found = []
    for node in prepared.graph.nodes:
        if node not in weighted and node.target is not aten.mean.dim:
            continue
        before = node.args[0]
        users = list(node.users)
        if len(users) == 1 and users[0].target in (aten.relu.default, aten.relu_.default):
            users = list(users[0].users)
        quantised = _is_quantiser(prepared, before) and len(users) == 1 and _is_quantiser(prepared, users[0])
        if node in weighted:
            quantised = quantised and _is_quantiser(prepared, node.args[1])
        if not quantised:
            raise ExportError(
                f"the layer '{node.name}' would stay in float: the quantiser has no int8 form of it. "
                "Layers must be Conv2d or Linear, each followed by a ReLU or by nothing"
            )
        found.append((node, before, users[0]))
    return found


def _is_quantiser(graph: fx.GraphModule, node: object) -> bool:
    return (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and isinstance(graph.get_submodule(str(node.target)), FusedMovingAvgObsFakeQuantize)
    )


def layer_ranges(prepared: fx.GraphModule) -> list[LayerRanges]:
    """The learnt ranges of every integer operator, in the order in which they run.

    Raises:
        ExportError: A layer would stay in float.
    """
    weights = dict(weighted_nodes(prepared))

    def activation(node: fx.Node) -> Range:
        scale, zero_point = _qparams(prepared, node)
        return Range(float(scale), int(zero_point))

    return [
        LayerRanges(
            operator=str(node.target).split(".")[1],
            weight=weights.get(node),
            weight_scale=_qparams(prepared, node.args[1])[0] if node in weights else None,  # type: ignore[arg-type]
            input=activation(before),
            output=activation(after),
        )
        for node, before, after in layer_ranges_nodes(prepared)
    ]


def _qparams(graph: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    quantiser: Any = graph.get_submodule(str(node.target))
    with torch.no_grad():
        scale, zero_point = quantiser.calculate_qparams()
    return scale.detach().clone(), zero_point.detach().clone()
