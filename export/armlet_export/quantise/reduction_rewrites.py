"""Graph rewrites of means, deviations, pools, sums and spectra."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from .graph_builder import GraphBuilder, Rewrite, argument, aten, source_of


def _deviation(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """``std`` and ``var``."""
    source = source_of(node)
    if node.target in (aten.std.dim, aten.var.dim):
        correction, keep = int(argument(node, 2, "unbiased", True)), argument(node, 3, "keepdim", False)
    else:
        given: Any = node.kwargs
        correction, keep = given.get("correction", 1), given.get("keepdim", False)
    axes = argument(node, 1, "dim", None)
    if axes is None:
        return None
    rows, shape = _reduced_last(build, source, [axes] if isinstance(axes, int) else list(axes), bool(keep))
    size = build.shape(rows)[-1]
    centred = build(aten.sub.Tensor, rows, build.row_mean(rows))
    variance = build.row_mean(build(aten.mul.Tensor, centred, centred))
    if correction:
        factor = build.constant(torch.tensor([size / (size - float(correction))]))
        variance = build(aten.mul.Tensor, variance, factor)
    if node.target in (aten.std.dim, aten.std.correction):
        variance = build(aten.sqrt.default, variance)
    return build.reshape(variance, shape)


def _reduced_last(build: GraphBuilder, source: fx.Node, axes: list[int], keep: bool) -> tuple[fx.Node, list[int]]:
    """``source`` with the axes that are reduced flattened at the end, and the shape of the result of the reduction."""
    shape = build.shape(source)
    axes = sorted(axis % len(shape) for axis in axes)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    rows = build.permute(source, [*kept, *axes])
    result = (
        [1 if axis in axes else size for axis, size in enumerate(shape)] if keep else [shape[axis] for axis in kept]
    )
    return build.reshape(rows, [*(shape[axis] for axis in kept), math.prod(shape[axis] for axis in axes)]), result


def _mean(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    source, axes, keep = node.args[0], argument(node, 1, "dim", None), argument(node, 2, "keepdim", False)
    assert isinstance(source, fx.Node)
    if not axes:
        return None
    shape = build.shape(source)
    if len(shape) == 4 and sorted(axis % 4 for axis in axes) == [2, 3] and keep:
        return None
    if 0 in [axis % len(shape) for axis in axes]:
        return None  # over the batch: not what a program does
    rows, result = _reduced_last(build, source, list(axes), bool(keep))
    sizes = build.shape(rows)
    planes = build.reshape(rows, [sizes[0], math.prod(sizes[1:-1]), 1, sizes[-1]])
    return build.reshape(build(aten.mean.dim, planes, [2, 3], True), result)


def _pool(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    """``avg_pool`` and ``adaptive_avg_pool``, of one or two axes, where they take the mean of everything."""
    source, kernel = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    axes = 1 if node.target in (aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default) else 2
    shape = build.shape(source)
    if node.target in (aten.avg_pool1d.default, aten.avg_pool2d.default):
        padding = argument(node, 3, "padding", [0])
        divisor = argument(node, 6, "divisor_override", None)
        if list(kernel) != shape[-axes:] or any(padding) or divisor is not None:  # type: ignore[arg-type]
            return None
    elif list(kernel) != [1] * axes:  # type: ignore[arg-type]
        return None
    if axes == 2:
        return build(aten.mean.dim, source, [2, 3], True)
    plane = build.reshape(source, [shape[0], shape[1], 1, shape[2]])
    return build.reshape(build(aten.mean.dim, plane, [2, 3], True), [shape[0], shape[1], 1])


def _sum(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    axes = argument(node, 1, "dim", None)
    if not axes:
        return None
    rows, shape = _reduced_last(build, source_of(node), list(axes), bool(argument(node, 2, "keepdim", False)))
    units = build.constant(torch.ones(1, build.shape(rows)[-1]))
    return build.reshape(build(aten.linear.default, rows, units), shape)


def _spectrum(build: GraphBuilder, node: fx.Node) -> fx.Node | None:
    transform = node.args[0]
    assert isinstance(transform, fx.Node)
    if transform.target is not aten.fft_rfft.default:
        return None
    source, count, axis = transform.args[0], argument(transform, 1, "n", None), argument(transform, 2, "dim", -1)
    assert isinstance(source, fx.Node)
    shape = build.shape(source)
    if count is not None or axis % len(shape) != len(shape) - 1:
        return None
    size = shape[-1]
    scale = {"forward": 1 / size, "ortho": size**-0.5}.get(argument(transform, 3, "norm", None), 1.0)
    angle = 2 * math.pi * torch.arange(size // 2 + 1, dtype=torch.float64)[:, None] * torch.arange(size) / size
    parts = [
        build(aten.linear.default, source, build.constant((scale * wave).float()))
        for wave in (torch.cos(angle), torch.sin(angle))
    ]
    squares = [build(aten.mul.Tensor, part, part) for part in parts]
    return build(aten.sqrt.default, build(aten.add.Tensor, *squares))


REDUCTION_REWRITES: dict[Any, Rewrite] = {
    aten.std.dim: _deviation,
    aten.std.correction: _deviation,
    aten.var.dim: _deviation,
    aten.var.correction: _deviation,
    aten.mean.dim: _mean,
    aten.avg_pool1d.default: _pool,
    aten.avg_pool2d.default: _pool,
    aten.adaptive_avg_pool1d.default: _pool,
    aten.adaptive_avg_pool2d.default: _pool,
    aten.sum.dim_IntList: _sum,
    aten.abs.default: _spectrum,
}
"""Operator to its rewrite."""
