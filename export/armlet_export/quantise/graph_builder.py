"""The tools of graph rewrites: nodes put into a captured graph, each with the shape of its value."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten

CONSTANT = "armlet_constant_"
"""How the names of the buffers begin that rewrites add."""

LONG_ROW = 256
"""Means of more values than this are computed in two steps: the constants stay small, and the sums more exact."""

MOVES = {aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int}
"""The operators that move values and compute nothing."""


class GraphBuilder:
    """Puts nodes into a graph before another node, each with its value (shape)."""

    def __init__(self, graph: fx.GraphModule, node: fx.Node) -> None:
        self.graph = graph
        value: Any = node.meta["val"]
        self._mode: Any = getattr(value, "fake_mode", None) or value[0].fake_mode

    def __call__(self, target: Any, *args: Any) -> fx.Node:
        """A call of an operator; arguments may be nodes."""
        node = self.graph.graph.call_function(target, args)
        values = fx.node.map_arg(args, self._value)
        with self._mode:
            node.meta["val"] = target(*values)
        return node

    def _value(self, node: fx.Node) -> Any:
        if "val" not in node.meta:
            node.meta["val"] = self._mode.from_tensor(self.attribute(node), static_shapes=True)
        return node.meta["val"]

    def shape(self, node: fx.Node) -> list[int]:
        """A node's shape, with -1 for an open batch."""
        return [size if isinstance(size, int) else -1 for size in self._value(node).shape]

    def attribute(self, node: fx.Node) -> Tensor:
        """The parameter or buffer that a ``get_attr`` node gives."""
        value = operator.attrgetter(str(node.target))(self.graph)
        assert isinstance(value, Tensor)
        return value

    def set_attribute(self, node: fx.Node, value: Tensor) -> None:
        """Replace a parameter by another of the same name."""
        *path, name = str(node.target).split(".")
        owner = self.graph.get_submodule(".".join(path))
        kept = getattr(owner, name)
        if isinstance(kept, nn.Parameter):
            setattr(owner, name, nn.Parameter(value.detach().clone(), kept.requires_grad))
        else:
            setattr(owner, name, value.detach().clone())
        node.meta.pop("val", None)

    def constant(self, value: Tensor) -> fx.Node:
        """A buffer of the graph with that value; equal values share a buffer."""
        for name, known in self.graph.named_buffers():
            if name.startswith(CONSTANT) and torch.equal(known, value):
                break
        else:
            name = CONSTANT + str(sum(name.startswith(CONSTANT) for name, _ in self.graph.named_buffers()))
            self.graph.register_buffer(name, value.clone())
        node = self.graph.graph.get_attr(name)
        self._value(node)
        return node

    def parameter(self, like: fx.Node, suffix: str, value: Tensor) -> fx.Node:
        """A new parameter beside another."""
        name = f"{like.target}{suffix}".replace(".", "_")
        if not hasattr(self.graph, name):
            self.graph.register_parameter(name, nn.Parameter(value.detach().clone()))
        node = self.graph.graph.get_attr(name)
        self._value(node)
        return node

    def reshape(self, node: fx.Node, shape: Sequence[int]) -> fx.Node:
        """The node itself if it has that shape; a reshape of a reshape is one of its source."""
        while node.target in (aten.reshape.default, aten.view.default):
            node = source_of(node)
        return node if self.shape(node) == list(shape) else self(aten.reshape.default, node, list(shape))

    def permute(self, node: fx.Node, order: Sequence[int]) -> fx.Node:
        """A permutation; the node itself if the order does not change."""
        return node if list(order) == sorted(order) else self(aten.permute.default, node, list(order))

    def row_mean(self, node: fx.Node) -> fx.Node:
        """Mean over the last axis, which is kept, as a ``linear`` with one constant row (long ones in two steps)."""
        *outer, size = self.shape(node)
        step = next((step for step in range(math.isqrt(size), 7, -1) if size % step == 0), 1) if size > LONG_ROW else 1
        if step > 1:
            parts = self.row_mean(self.reshape(node, [*outer, size // step, step]))
            return self.row_mean(self.reshape(parts, [*outer, size // step]))
        return self(aten.linear.default, node, self.constant(torch.full((1, size), 1 / size)))

    def affine(self, node: fx.Node, weight: object, bias: object, shape: Sequence[int]) -> fx.Node:
        """``node * weight + bias``, each of which may be missing, seen in a shape that broadcasts."""
        for operand, target in ((weight, aten.mul.Tensor), (bias, aten.add.Tensor)):
            if isinstance(operand, fx.Node):
                self.set_attribute(operand, self.attribute(operand).reshape(list(shape)))
                node = self(target, node, operand)
        return node


def source_of(node: fx.Node) -> fx.Node:
    """The node that is a node's first input."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def argument(node: fx.Node, position: int, name: str, default: object) -> Any:
    """An argument of a node, by position or by name, or its default."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


Rewrite = Callable[[GraphBuilder, fx.Node], "fx.Node | None"]
"""Gives what takes the place of a node, or None to keep the node."""
