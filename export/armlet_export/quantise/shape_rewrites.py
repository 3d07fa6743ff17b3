"""Graph rewrites of operators that cut, join, move or copy values."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from .graph_builder import GraphBuilder, Rewrite, argument, aten, source_of


def _reshaped(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """All that only gives a tensor another shape."""
    shape = build.shape(node)
    return build.reshape(source_of(node), shape) if shape.count(-1) < 2 else None


def _transpose(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """One that changes nothing is left out: it would be an alias, which stays outside."""
    rank = len(build.shape(node))
    if node.target is aten.permute.default:
        order = [axis % rank for axis in argument(node, 1, "dims", [])]
    else:
        first, other = (argument(node, place, "", 0) % rank for place in (1, 2))
        order = list(range(rank))
        order[first], order[other] = other, first
    return source_of(node) if order == sorted(order) else None


def _select(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    source, axis, index = node.args
    assert isinstance(source, fx.Node) and isinstance(axis, int) and isinstance(index, int)
    shape = build.shape(source)
    axis, index = axis % len(shape), index % shape[axis]
    if shape[axis] == 1:
        return build.reshape(source, build.shape(node))
    if axis == len(shape) - 1 and (piece := _piece(build, source, index, index + 1)) is not None:
        return build.reshape(piece, build.shape(node))
    return build.reshape(build(aten.slice.Tensor, source, axis, index, index + 1), build.shape(node))


def _slice(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    source, axis = node.args[0], argument(node, 1, "dim", 0)
    assert isinstance(source, fx.Node)
    shape = build.shape(source)
    axis %= len(shape)
    if shape[axis] < 0:
        return source if build.shape(node) == shape else None  # all of an open batch
    start, end, step = slice(
        argument(node, 2, "start", None), argument(node, 3, "end", None), argument(node, 4, "step", 1)
    ).indices(shape[axis])
    if (start, end, step) == (0, shape[axis], 1):
        return source
    if source.op == "get_attr" and step == 1:
        return _stored_piece(build, source, axis, start, end)
    if axis == len(shape) - 1 and step == 1 and (piece := _piece(build, source, start, end)) is not None:
        return piece
    return build(aten.slice.Tensor, source, axis, start, end, step)


def _split(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """``chunk``, ``split`` and ``unbind``: each of their ``getitem`` becomes a slice, or a layer of its own."""
    source = source_of(node)
    axis = argument(node, 1 if node.target is aten.unbind.int else 2, "dim", 0) % len(build.shape(source))
    sizes = [part.shape[axis] for part in node.meta["val"]] if node.target is not aten.unbind.int else None
    starts = [0]
    for size in sizes or [1] * len(node.meta["val"]):
        starts.append(starts[-1] + int(size))
    for user in list(node.users):
        place = user.args[1]
        assert user.target is operator.getitem and isinstance(place, int)
        start, end = starts[place], starts[place + 1]
        new: fx.Node | None
        if source.op == "get_attr":
            new = _stored_piece(build, source, axis, start, end)
        else:
            new = _piece(build, source, start, end) if axis == len(build.shape(source)) - 1 else None
        if new is None:
            new = build(aten.slice.Tensor, source, axis, start, end)
        if node.target is aten.unbind.int:
            new = build.reshape(new, build.shape(user))
        user.replace_all_uses_with(new)
        build.graph.graph.erase_node(user)
    return None


def _stored_piece(build: GraphBuilder, source: fx.Node, axis: int, start: int, end: int) -> fx.Node:
    """A piece of a stored tensor, as one of its own."""
    whole = build.attribute(source)
    piece = whole.narrow(axis, start, end - start)
    if not isinstance(whole, nn.Parameter):
        return build.constant(piece)
    return build.parameter(source, f"_{axis}_{start}_{end}", piece)


def _piece(build: GraphBuilder, source: fx.Node, start: int, end: int) -> fx.Node | None:
    """Outputs ``start`` to ``end`` of a ``linear`` as a layer of their own, if every user of it takes such a piece."""
    pieces = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.slice.Tensor}
    if source.target is not aten.linear.default or not all(user.target in pieces for user in source.users):
        return None
    weight, bias = source.args[1], argument(source, 2, "bias", None)
    assert isinstance(weight, fx.Node)
    suffix = f"_{start}_{end}"
    pieces_weight = build.parameter(weight, suffix, build.attribute(weight)[start:end])
    pieces_bias = build.parameter(bias, suffix, build.attribute(bias)[start:end]) if bias is not None else None
    return build(aten.linear.default, source.args[0], pieces_weight, pieces_bias)


def _expand(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    source = source_of(node)
    broadcasting = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
    if build.shape(source) == build.shape(node) or all(user.target in broadcasting for user in node.users):
        return source
    return None


def _nothing(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    source = source_of(node)
    return source if source.meta["val"].dtype == node.meta["val"].dtype else None


SHAPE_REWRITES: dict[Any, Rewrite] = {
    aten.reshape.default: _reshaped,
    aten.view.default: _reshaped,
    aten.flatten.using_ints: _reshaped,
    aten.unsqueeze.default: _reshaped,
    aten.squeeze.default: _reshaped,
    aten.squeeze.dim: _reshaped,
    aten.squeeze.dims: _reshaped,
    aten.transpose.int: _transpose,
    aten.permute.default: _transpose,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.chunk.default: _split,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.unbind.int: _split,
    aten.expand.default: _expand,
    aten.expand_as.default: _expand,
    aten.dropout.default: _nothing,
    aten.contiguous.default: _nothing,
    aten.clone.default: _nothing,
    aten.alias.default: _nothing,
    aten.detach.default: _nothing,
    aten.to.dtype: _nothing,
    aten.to.dtype_layout: _nothing,
}
"""Operator to its rewrite."""
