"""Graph rewrites of layers, norms, activations and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn

from armlet_runtime.errors import ExportError

from .graph_builder import MOVES, GraphBuilder, Rewrite, argument, aten, source_of


def _conv1d(build: GraphBuilder, node: fx.Node) -> fx.Node:
    source, weight = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    bias = argument(node, 2, "bias", None)
    stride, padding, dilation = (
        argument(node, place, name, default)
        for place, name, default in ((3, "stride", [1]), (4, "padding", [0]), (5, "dilation", [1]))
    )
    groups = argument(node, 6, "groups", 1)
    values = build.attribute(weight)
    if values.ndim == 3:  # else another node with the same weight was here before
        if padding == "same" and values.shape[2] % 2 == 0:
            # torch pads one more on the right; with a zero tap on the left both sides are alike.
            values = nn.functional.pad(values, (1, 0))
        build.set_attribute(weight, values[:, :, None])
        values = build.attribute(weight)
    reach = dilation[0] * (values.shape[-1] - 1)
    if padding == "same" and reach % 2:
        raise ExportError("a dilated convolution with an even kernel and padding 'same' has no program")
    sides = {"same": reach // 2, "valid": 0}[padding] if isinstance(padding, str) else padding[0]
    batch, channels, length = build.shape(source)
    convolved = build(
        aten.conv2d.default, build.reshape(source, [batch, channels, 1, length]), weight, bias,
        [1, stride[0]], [0, sides], [1, dilation[0]], groups,
    )  # fmt: skip
    shape = build.shape(convolved)
    return build.reshape(convolved, [shape[0], shape[1], shape[3]])


def _conv2d_same(build: GraphBuilder, node: fx.Node) -> fx.Node:
    source, weight = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    padding, dilation = argument(node, 4, "padding", "valid"), argument(node, 5, "dilation", [1, 1])
    values = build.attribute(weight)
    if padding == "same":
        odd = nn.functional.pad(values, (1 - values.shape[3] % 2, 0, 1 - values.shape[2] % 2, 0))
        if odd.shape != values.shape:
            build.set_attribute(weight, odd)
            values = odd
    sides = [
        step * (size - 1) // 2 if padding == "same" else 0
        for step, size in zip(dilation, values.shape[2:], strict=True)
    ]
    return build(
        aten.conv2d.default, source, weight, argument(node, 2, "bias", None), argument(node, 3, "stride", [1, 1]),
        sides, list(dilation), argument(node, 6, "groups", 1),
    )  # fmt: skip


def _batch_norm(build: GraphBuilder, node: fx.Node) -> fx.Node:
    source, weight, bias, mean, variance = node.args[:5]
    assert isinstance(source, fx.Node) and isinstance(mean, fx.Node) and isinstance(variance, fx.Node)
    scale = (build.attribute(variance) + float(argument(node, 7, "eps", 1e-5))).rsqrt()
    if isinstance(weight, fx.Node):
        scale = scale * build.attribute(weight)
    shift = -build.attribute(mean) * scale
    if isinstance(bias, fx.Node):
        shift = shift + build.attribute(bias)
    before = source
    while before.target in MOVES and len(before.users) == 1:
        before = source_of(before)
    fixed = [1, -1, *[1] * (len(build.shape(source)) - 2)]
    if before.target is aten.conv2d.default and len(before.users) == 1 and build.shape(before)[1] == len(scale):
        kernel, kernel_bias = before.args[1], argument(before, 2, "bias", None)
        assert isinstance(kernel, fx.Node)
        if len(kernel.users) == 1:
            values = build.attribute(kernel)
            build.set_attribute(kernel, values * scale.reshape(-1, 1, 1, 1))
            if isinstance(kernel_bias, fx.Node):
                build.set_attribute(kernel_bias, build.attribute(kernel_bias) * scale + shift)
            else:
                with build.graph.graph.inserting_before(before):
                    added = build.parameter(kernel, "_bias", shift)
                before.args = (before.args[0], kernel, added, *before.args[3:])
            return source
    return build(
        aten.add.Tensor,
        build(aten.mul.Tensor, source, build.constant(scale.detach().reshape(fixed))),
        build.constant(shift.detach().reshape(fixed)),
    )


def _normalised(build: GraphBuilder, rows: fx.Node, epsilon: float) -> fx.Node:
    """Rows (last axis) of mean zero and deviation one."""
    centred = build(aten.sub.Tensor, rows, build.row_mean(rows))
    variance = build.row_mean(build(aten.mul.Tensor, centred, centred))
    shifted = build(aten.add.Tensor, variance, build.constant(torch.tensor([epsilon])))
    return build(aten.mul.Tensor, centred, build(aten.rsqrt.default, shifted))


def _layer_norm(build: GraphBuilder, node: fx.Node) -> fx.Node:
    source, axes = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(axes, (list, tuple))
    weight, bias = argument(node, 2, "weight", None), argument(node, 3, "bias", None)
    shape, count = build.shape(source), len(axes)
    outer = shape[: len(shape) - count]
    rows = build.reshape(source, [*outer, math.prod(shape[len(outer) :])])
    out = _normalised(build, rows, argument(node, 4, "eps", 1e-5))
    return build.reshape(build.affine(out, weight, bias, [-1]), shape)


def _group_norm(build: GraphBuilder, node: fx.Node) -> fx.Node:
    source, groups = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(groups, int)
    weight, bias = argument(node, 2, "weight", None), argument(node, 3, "bias", None)
    shape = build.shape(source)
    rows = build.reshape(source, [shape[0], groups, math.prod(shape[1:]) // groups])
    out = build.reshape(_normalised(build, rows, argument(node, 4, "eps", 1e-5)), [*shape[:2], math.prod(shape[2:])])
    return build.reshape(build.affine(out, weight, bias, [-1, 1]), shape)


def _prelu(build: GraphBuilder, node: fx.Node) -> fx.Node:
    source, slope = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(slope, fx.Node)
    axes = len(build.shape(source))
    if axes > 1 and build.attribute(slope).numel() > 1:
        build.set_attribute(slope, build.attribute(slope).reshape([1, -1, *[1] * (axes - 2)]))
    above = build(aten.relu.default, source)
    return build(aten.add.Tensor, above, build(aten.mul.Tensor, build(aten.sub.Tensor, source, above), slope))


def _relu(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """Right behind the layer that it belongs to, so that both are one integer operator."""
    source = source_of(node)
    moves: list[fx.Node] = []
    while source.target in MOVES and len(source.users) == 1:
        moves.append(source)
        source = source_of(source)
    if not moves and node.target is aten.relu.default:
        return None
    new = build(aten.relu.default, source)
    for move in reversed(moves):
        new = build(move.target, new, *move.args[1:])
    return new


def _elu(build: GraphBuilder, node: fx.Node) -> fx.Node:
    source, alpha = source_of(node), float(argument(node, 1, "alpha", 1.0))
    # Not the relu of -x: litert-torch would put the sign into another copy of the layer before.
    above = build(aten.relu.default, source)
    below = build(aten.exp.default, build(aten.sub.Tensor, source, above))
    below = build(aten.sub.Tensor, below, build.constant(torch.ones(1)))
    if alpha != 1.0:
        below = build(aten.mul.Tensor, below, build.constant(torch.tensor([alpha])))
    return build(aten.add.Tensor, above, below)


def _silu(build: GraphBuilder, node: fx.Node) -> fx.Node:
    return build(aten.mul.Tensor, node.args[0], build(aten.sigmoid.default, node.args[0]))


def _softmax(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """Over the last axis, the only one that XNNPACK has."""
    source, axis = source_of(node), argument(node, 1, "dim", -1)
    last = len(build.shape(source)) - 1
    if axis % (last + 1) == last:
        return None
    order = list(range(last + 1))
    order[axis % (last + 1)], order[last] = last, axis % (last + 1)
    return build.permute(build(aten.softmax.int, build.permute(source, order), -1), order)


def _attention(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    query, key, value = node.args[:3]
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)
    mask, causal = argument(node, 3, "attn_mask", None), argument(node, 5, "is_causal", False)
    if mask is not None or causal:
        raise ExportError("attention with a mask has no program; leave out what must not be seen")
    shape = build.shape(query)
    scale = argument(node, 6, "scale", None)
    scale = shape[-1] ** -0.5 if scale is None else scale
    queries, keys, values = (_matrices(build, part) for part in (query, key, value))
    # Not on the queries: litert-torch would fold the factor into the layer before them, whose ranges were learnt.
    scores = build(aten.bmm.default, queries, build.permute(keys, [0, 2, 1]))
    if scale != 1.0:
        scores = build(aten.mul.Tensor, scores, build.constant(torch.tensor([scale])))
    mixed = build(aten.bmm.default, build(aten.softmax.int, scores, -1), values)
    return build.reshape(mixed, [*shape[:-1], build.shape(value)[-1]])


def _matrices(build: GraphBuilder, node: fx.Node) -> fx.Node:
    """(..., m, n) as (batch, m, n)."""
    shape = build.shape(node)
    batch = -1 if -1 in shape[:-2] else math.prod(shape[:-2])
    return build.reshape(node, [batch, *shape[-2:]]) if len(shape) != 3 else node


def _matmul(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    first, other = node.args[:2]
    assert isinstance(first, fx.Node) and isinstance(other, fx.Node)
    left, right = build.shape(first), build.shape(other)
    if len(left) < 2 or left[:-2] != right[:-2] or len(left) == 3:
        return None
    product = build(aten.bmm.default, _matrices(build, first), _matrices(build, other))
    return build.reshape(product, [*left[:-1], right[-1]])


def _matmul_to_bmm(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    first, other = node.args[:2]
    assert isinstance(first, fx.Node) and isinstance(other, fx.Node)
    if len(build.shape(first)) == len(build.shape(other)) == 3 and build.shape(first)[0] == build.shape(other)[0]:
        return build(aten.bmm.default, first, other)
    return _matmul(build, node)


LAYER_REWRITES: dict[Any, Rewrite] = {
    aten.conv1d.default: _conv1d,
    aten.conv1d.padding: _conv1d,
    aten.conv2d.padding: _conv2d_same,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.prelu.default: _prelu,
    aten.relu.default: _relu,
    aten.relu_.default: _relu,
    aten.elu.default: _elu,
    aten.silu.default: _silu,
    aten.softmax.int: _softmax,
    aten.scaled_dot_product_attention.default: _attention,
    aten.matmul.default: _matmul_to_bmm,
}
"""Operator to its rewrite."""
