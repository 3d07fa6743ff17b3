"""Graphs: a module captured for quantisation and lowering, rewritten so that one delegate takes the whole of it.

Every rewrite for the sake of an engine is here, and none changes what the program computes (each has a test of its own
that says so). XNNPACK's delegate in ExecuTorch 1.5 leaves outside, or has no integer kernel for, what is rewritten;
LiteRT and ONNX Runtime get the same graphs.

==========================================  ======================================================================
``conv1d``                                  1 x k ``conv2d``; ``padding="same"`` with an even kernel gets a zero tap
``batch_norm``                              folded into the convolution before it, else one multiplication and addition
``linear`` cut by chunk, split or slice     one ``linear`` a piece (packed query, key, value)
a weight cut so                             one weight a piece
``MultiheadAttention``                      three ``linear`` and :func:`scaled_dot_product_attention`'s rewrite
``scaled_dot_product_attention``            ``bmm``, ``softmax``, ``bmm`` (torch's own keeps a guard for rows of -inf)
``matmul`` of two activations               ``bmm`` on flattened batch dimensions (torch's own expands)
``layer_norm``, ``group_norm``              two ``linear`` of one constant row (the mean), ``rsqrt``, products
``std``, ``var``                            the same mean, twice
``mean`` over trailing or middle axes       ``mean`` over the plane of a 4-D tensor: XNNPACK's global average pool
``avg_pool`` over everything                the same
``sum``                                     a ``linear`` of ones
``softmax`` over another axis               over the last, between two ``permute``
``prelu``                                   ``relu(x) + slope * (x - relu(x))``
``relu`` behind a reshape                   before it, next to its layer
``silu``                                    ``x * sigmoid(x)``
``elu``                                     ``relu(x) + exp(x - relu(x)) - 1``
``abs(rfft(x))``                            two ``linear`` of constant sines and cosines, root of the squares
``unsqueeze``, ``squeeze``, ``select``      ``reshape`` (after a ``slice`` for ``select``), and of several one
``expand``                                  nothing, where it changes nothing or what follows broadcasts anyway
``dropout``, ``contiguous``, ``clone``      nothing
==========================================  ======================================================================
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from armlet_runtime.errors import ExportError

aten = torch.ops.aten

WEIGHTED = {aten.conv2d.default, aten.linear.default}
"""The operators that have weights; every other one must be free of them."""

CONSTANT = "armlet_constant_"
"""How the names of the buffers begin that rewrites put in."""

LONG_ROW = 256
"""Means of more values than this are taken in two steps: the constants stay small, and the sums more exact."""

MOVES = {aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int}
"""They move values and compute nothing."""


def capture(module: nn.Module, *examples: Tensor, any_batch: bool = False) -> fx.GraphModule:
    """The graph of a module of tensors, as it runs in evaluation (no dropout), rewritten as above.

    Args:
        module: The module.
        examples: Its inputs; their shapes are the only ones that the graph takes, but for ``any_batch``.
        any_batch: Leave the first dimension open, for training.

    Returns:
        The graph, with parameters of its own, named as the module's.

    Raises:
        ExportError: The module cannot be captured.
    """
    module = copy.deepcopy(module).eval()
    _open_attention(module)
    batch = torch.export.Dim("batch", min=1, max=65536)
    # With one example the tracer would take the batch for a constant.
    inputs = tuple(
        example.expand(2, *example.shape[1:]) if any_batch and len(example) == 1 else example for example in examples
    )
    open_batch = tuple({0: batch} for _ in inputs) if any_batch else None
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # else a transformer layer is one operator that no engine has
    try:
        program = torch.export.export(module, inputs, dynamic_shapes=open_batch, strict=False)
    except Exception as error:  # torch.export raises a dozen kinds, all meaning this
        why = str(error).strip().splitlines()[0]
        if "specialized it to be a constant" in str(error):
            why = "its forward takes the batch for a number; write x.shape[0], not len(x)"
        raise ExportError(f"torch.export cannot capture {type(module).__name__}: {why}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    rewrite(graph)
    return without_modes(graph)


def without_modes(graph: fx.GraphModule) -> fx.GraphModule:
    """Let ``train()`` and ``eval()`` be called on a captured graph, where torch refuses them.

    They do nothing: neither dropout nor batch normalisation is left in it, so there is one mode.
    """
    graph.train = lambda mode=True: graph  # type: ignore[method-assign]
    graph.eval = lambda: graph  # type: ignore[method-assign]
    return graph


def rewrite(graph: fx.GraphModule) -> None:
    """Do all rewrites, in place."""
    for node in list(graph.graph.nodes):
        replace = _REWRITES.get(node.target)
        if replace is None or not node.users:
            continue
        with graph.graph.inserting_before(node):
            new = replace(_Builder(graph, node), node)
        if new is not None and new is not node:
            node.replace_all_uses_with(new)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def weighted_nodes(graph: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """The nodes with trained weights in the order in which they run, each with the name of its weight.

    A ``linear`` with a constant weight (a buffer) computes a mean or a spectrum, and is no layer that was trained.

    Raises:
        ExportError: A weight is not a plain parameter.
    """
    trained = dict(graph.named_parameters())
    for node in graph.graph.nodes:
        if node.target in WEIGHTED:
            weight = node.args[1]
            assert isinstance(weight, fx.Node)
            if weight.op == "call_module":  # the fake quantiser of the weight
                weight = weight.args[0]
            if weight.op != "get_attr":
                raise ExportError(f"{node.name}: its weight is computed, so it cannot be quantised ahead of time")
            if str(weight.target) in trained:
                yield node, str(weight.target)


# ------------------------------------------------------------------------------------------- building nodes


class _Builder:
    """Puts nodes into a graph before another one, each with the value (shape) that it has."""

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
        """A buffer of the graph with that value; equal ones are one."""
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
        """A new parameter beside another one."""
        name = f"{like.target}{suffix}".replace(".", "_")
        if not hasattr(self.graph, name):
            self.graph.register_parameter(name, nn.Parameter(value.detach().clone()))
        node = self.graph.graph.get_attr(name)
        self._value(node)
        return node

    def reshape(self, node: fx.Node, shape: Sequence[int]) -> fx.Node:
        """The node itself if it has that shape; a reshape of a reshape is one of its source."""
        while node.target in (aten.reshape.default, aten.view.default):
            node = _source(node)
        return node if self.shape(node) == list(shape) else self(aten.reshape.default, node, list(shape))

    def permute(self, node: fx.Node, order: Sequence[int]) -> fx.Node:
        """The node itself if the order is the one that it has."""
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


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _argument(node: fx.Node, position: int, name: str, default: object) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


# ------------------------------------------------------------------------------------------------ the rewrites


class _Attention(nn.Module):
    """``nn.MultiheadAttention`` with its packed projection in three layers."""

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        width = packed.embed_dim
        self.heads = packed.num_heads
        self.batch_first = packed.batch_first
        weights = (
            packed.in_proj_weight.detach().chunk(3)
            if packed.in_proj_weight is not None
            else (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
        )
        for place, name in enumerate(("query", "key", "value")):
            layer = nn.Linear(weights[place].shape[1], width, bias=packed.in_proj_bias is not None)
            layer.weight = nn.Parameter(weights[place].detach().clone())
            if packed.in_proj_bias is not None:
                layer.bias = nn.Parameter(packed.in_proj_bias.detach().chunk(3)[place].clone())
            if name == "query":  # the factor of the scores, in its layer before that is trained
                for parameter in layer.parameters():
                    parameter.data *= packed.head_dim**-0.5
            setattr(self, name, layer)
        self.out_proj = packed.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = False, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:  # fmt: skip
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise ExportError("attention with a mask has no program; leave out what must not be seen")
        if not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))

        def heads(name: str, part: Tensor) -> Tensor:
            projected: Tensor = getattr(self, name)(part)
            return projected.reshape(part.shape[0], part.shape[1], self.heads, -1).transpose(1, 2)

        mixed = nn.functional.scaled_dot_product_attention(
            heads("query", query), heads("key", key), heads("value", value), scale=1.0
        )
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


def _open_attention(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.MultiheadAttention):
            if child.bias_k is not None or child.add_zero_attn:
                raise ExportError("attention with a bias for keys, or a zero key, has no program")
            setattr(module, name, _Attention(child))
        else:
            _open_attention(child)


def _conv1d(build: _Builder, node: fx.Node) -> fx.Node:
    source, weight = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    bias = _argument(node, 2, "bias", None)
    stride, padding, dilation = (
        _argument(node, place, name, default)
        for place, name, default in ((3, "stride", [1]), (4, "padding", [0]), (5, "dilation", [1]))
    )
    groups = _argument(node, 6, "groups", 1)
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


def _conv2d_same(build: _Builder, node: fx.Node) -> fx.Node:
    source, weight = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    padding, dilation = _argument(node, 4, "padding", "valid"), _argument(node, 5, "dilation", [1, 1])
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
        aten.conv2d.default, source, weight, _argument(node, 2, "bias", None), _argument(node, 3, "stride", [1, 1]),
        sides, list(dilation), _argument(node, 6, "groups", 1),
    )  # fmt: skip


def _batch_norm(build: _Builder, node: fx.Node) -> fx.Node:
    source, weight, bias, mean, variance = node.args[:5]
    assert isinstance(source, fx.Node) and isinstance(mean, fx.Node) and isinstance(variance, fx.Node)
    scale = (build.attribute(variance) + float(_argument(node, 7, "eps", 1e-5))).rsqrt()
    if isinstance(weight, fx.Node):
        scale = scale * build.attribute(weight)
    shift = -build.attribute(mean) * scale
    if isinstance(bias, fx.Node):
        shift = shift + build.attribute(bias)
    before = source
    while before.target in MOVES and len(before.users) == 1:
        before = _source(before)
    fixed = [1, -1, *[1] * (len(build.shape(source)) - 2)]
    if before.target is aten.conv2d.default and len(before.users) == 1 and build.shape(before)[1] == len(scale):
        kernel, kernel_bias = before.args[1], _argument(before, 2, "bias", None)
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


def _normalised(build: _Builder, rows: fx.Node, epsilon: float) -> fx.Node:
    """Rows (last axis) of mean zero and deviation one."""
    centred = build(aten.sub.Tensor, rows, build.row_mean(rows))
    variance = build.row_mean(build(aten.mul.Tensor, centred, centred))
    shifted = build(aten.add.Tensor, variance, build.constant(torch.tensor([epsilon])))
    return build(aten.mul.Tensor, centred, build(aten.rsqrt.default, shifted))


def _layer_norm(build: _Builder, node: fx.Node) -> fx.Node:
    source, axes = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(axes, (list, tuple))
    weight, bias = _argument(node, 2, "weight", None), _argument(node, 3, "bias", None)
    shape, count = build.shape(source), len(axes)
    outer = shape[: len(shape) - count]
    rows = build.reshape(source, [*outer, math.prod(shape[len(outer) :])])
    out = _normalised(build, rows, _argument(node, 4, "eps", 1e-5))
    return build.reshape(build.affine(out, weight, bias, [-1]), shape)


def _group_norm(build: _Builder, node: fx.Node) -> fx.Node:
    source, groups = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(groups, int)
    weight, bias = _argument(node, 2, "weight", None), _argument(node, 3, "bias", None)
    shape = build.shape(source)
    rows = build.reshape(source, [shape[0], groups, math.prod(shape[1:]) // groups])
    out = build.reshape(_normalised(build, rows, _argument(node, 4, "eps", 1e-5)), [*shape[:2], math.prod(shape[2:])])
    return build.reshape(build.affine(out, weight, bias, [-1, 1]), shape)


def _deviation(build: _Builder, node: fx.Node) -> fx.Node | None:
    """``std`` and ``var``."""
    source = _source(node)
    if node.target in (aten.std.dim, aten.var.dim):
        correction, keep = int(_argument(node, 2, "unbiased", True)), _argument(node, 3, "keepdim", False)
    else:
        given: Any = node.kwargs
        correction, keep = given.get("correction", 1), given.get("keepdim", False)
    axes = _argument(node, 1, "dim", None)
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


def _reduced_last(build: _Builder, source: fx.Node, axes: list[int], keep: bool) -> tuple[fx.Node, list[int]]:
    """``source`` with the axes that are reduced flattened at the end, and the shape of the result of the reduction."""
    shape = build.shape(source)
    axes = sorted(axis % len(shape) for axis in axes)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    rows = build.permute(source, [*kept, *axes])
    result = (
        [1 if axis in axes else size for axis, size in enumerate(shape)] if keep else [shape[axis] for axis in kept]
    )
    return build.reshape(rows, [*(shape[axis] for axis in kept), math.prod(shape[axis] for axis in axes)]), result


def _mean(build: _Builder, node: fx.Node) -> fx.Node | None:
    source, axes, keep = node.args[0], _argument(node, 1, "dim", None), _argument(node, 2, "keepdim", False)
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


def _pool(build: _Builder, node: fx.Node) -> fx.Node | None:
    """``avg_pool`` and ``adaptive_avg_pool``, of one or two axes, where they take the mean of everything."""
    source, kernel = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    axes = 1 if node.target in (aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default) else 2
    shape = build.shape(source)
    if node.target in (aten.avg_pool1d.default, aten.avg_pool2d.default):
        padding = _argument(node, 3, "padding", [0])
        divisor = _argument(node, 6, "divisor_override", None)
        if list(kernel) != shape[-axes:] or any(padding) or divisor is not None:  # type: ignore[arg-type]
            return None
    elif list(kernel) != [1] * axes:  # type: ignore[arg-type]
        return None
    if axes == 2:
        return build(aten.mean.dim, source, [2, 3], True)
    plane = build.reshape(source, [shape[0], shape[1], 1, shape[2]])
    return build.reshape(build(aten.mean.dim, plane, [2, 3], True), [shape[0], shape[1], 1])


def _prelu(build: _Builder, node: fx.Node) -> fx.Node:
    source, slope = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(slope, fx.Node)
    axes = len(build.shape(source))
    if axes > 1 and build.attribute(slope).numel() > 1:
        build.set_attribute(slope, build.attribute(slope).reshape([1, -1, *[1] * (axes - 2)]))
    above = build(aten.relu.default, source)
    return build(aten.add.Tensor, above, build(aten.mul.Tensor, build(aten.sub.Tensor, source, above), slope))


def _relu(build: _Builder, node: fx.Node) -> fx.Node | None:
    """Right behind the layer that it belongs to, so that both are one integer operator."""
    source = _source(node)
    moves: list[fx.Node] = []
    while source.target in MOVES and len(source.users) == 1:
        moves.append(source)
        source = _source(source)
    if not moves and node.target is aten.relu.default:
        return None
    new = build(aten.relu.default, source)
    for move in reversed(moves):
        new = build(move.target, new, *move.args[1:])
    return new


def _elu(build: _Builder, node: fx.Node) -> fx.Node:
    source, alpha = _source(node), float(_argument(node, 1, "alpha", 1.0))
    # Not the relu of -x: litert-torch would put the sign into another copy of the layer before.
    above = build(aten.relu.default, source)
    below = build(aten.exp.default, build(aten.sub.Tensor, source, above))
    below = build(aten.sub.Tensor, below, build.constant(torch.ones(1)))
    if alpha != 1.0:
        below = build(aten.mul.Tensor, below, build.constant(torch.tensor([alpha])))
    return build(aten.add.Tensor, above, below)


def _softmax(build: _Builder, node: fx.Node) -> fx.Node | None:
    """Over the last axis, the only one that XNNPACK has."""
    source, axis = _source(node), _argument(node, 1, "dim", -1)
    last = len(build.shape(source)) - 1
    if axis % (last + 1) == last:
        return None
    order = list(range(last + 1))
    order[axis % (last + 1)], order[last] = last, axis % (last + 1)
    return build.permute(build(aten.softmax.int, build.permute(source, order), -1), order)


def _sum(build: _Builder, node: fx.Node) -> fx.Node | None:
    axes = _argument(node, 1, "dim", None)
    if not axes:
        return None
    rows, shape = _reduced_last(build, _source(node), list(axes), bool(_argument(node, 2, "keepdim", False)))
    ones = build.constant(torch.ones(1, build.shape(rows)[-1]))
    return build.reshape(build(aten.linear.default, rows, ones), shape)


def _silu(build: _Builder, node: fx.Node) -> fx.Node:
    return build(aten.mul.Tensor, node.args[0], build(aten.sigmoid.default, node.args[0]))


def _attention(build: _Builder, node: fx.Node) -> fx.Node | None:
    query, key, value = node.args[:3]
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)
    mask, causal = _argument(node, 3, "attn_mask", None), _argument(node, 5, "is_causal", False)
    if mask is not None or causal:
        raise ExportError("attention with a mask has no program; leave out what must not be seen")
    shape = build.shape(query)
    scale = _argument(node, 6, "scale", None)
    scale = shape[-1] ** -0.5 if scale is None else scale
    queries, keys, values = (_matrices(build, part) for part in (query, key, value))
    # Not on the queries: litert-torch would fold the factor into the layer before them, whose ranges were learnt.
    scores = build(aten.bmm.default, queries, build.permute(keys, [0, 2, 1]))
    if scale != 1.0:
        scores = build(aten.mul.Tensor, scores, build.constant(torch.tensor([scale])))
    mixed = build(aten.bmm.default, build(aten.softmax.int, scores, -1), values)
    return build.reshape(mixed, [*shape[:-1], build.shape(value)[-1]])


def _matrices(build: _Builder, node: fx.Node) -> fx.Node:
    """(..., m, n) as (batch, m, n)."""
    shape = build.shape(node)
    batch = -1 if -1 in shape[:-2] else math.prod(shape[:-2])
    return build.reshape(node, [batch, *shape[-2:]]) if len(shape) != 3 else node


def _matmul(build: _Builder, node: fx.Node) -> fx.Node | None:
    one, other = node.args[:2]
    assert isinstance(one, fx.Node) and isinstance(other, fx.Node)
    left, right = build.shape(one), build.shape(other)
    if len(left) < 2 or left[:-2] != right[:-2] or len(left) == 3:
        return None
    product = build(aten.bmm.default, _matrices(build, one), _matrices(build, other))
    return build.reshape(product, [*left[:-1], right[-1]])


def _matmul_to_bmm(build: _Builder, node: fx.Node) -> fx.Node | None:
    one, other = node.args[:2]
    assert isinstance(one, fx.Node) and isinstance(other, fx.Node)
    if len(build.shape(one)) == len(build.shape(other)) == 3 and build.shape(one)[0] == build.shape(other)[0]:
        return build(aten.bmm.default, one, other)
    return _matmul(build, node)


def _spectrum(build: _Builder, node: fx.Node) -> fx.Node | None:
    transform = node.args[0]
    assert isinstance(transform, fx.Node)
    if transform.target is not aten.fft_rfft.default:
        return None
    source, count, axis = transform.args[0], _argument(transform, 1, "n", None), _argument(transform, 2, "dim", -1)
    assert isinstance(source, fx.Node)
    shape = build.shape(source)
    if count is not None or axis % len(shape) != len(shape) - 1:
        return None
    size = shape[-1]
    scale = {"forward": 1 / size, "ortho": size**-0.5}.get(_argument(transform, 3, "norm", None), 1.0)
    angle = 2 * math.pi * torch.arange(size // 2 + 1, dtype=torch.float64)[:, None] * torch.arange(size) / size
    parts = [
        build(aten.linear.default, source, build.constant((scale * wave).float()))
        for wave in (torch.cos(angle), torch.sin(angle))
    ]
    squares = [build(aten.mul.Tensor, part, part) for part in parts]
    return build(aten.sqrt.default, build(aten.add.Tensor, *squares))


def _reshaped(build: _Builder, node: fx.Node) -> fx.Node | None:
    """All that only gives a tensor another shape."""
    shape = build.shape(node)
    return build.reshape(_source(node), shape) if shape.count(-1) < 2 else None


def _transpose(build: _Builder, node: fx.Node) -> fx.Node | None:
    """One that changes nothing is left out: it would be an alias, which stays outside."""
    rank = len(build.shape(node))
    if node.target is aten.permute.default:
        order = [axis % rank for axis in _argument(node, 1, "dims", [])]
    else:
        one, other = (_argument(node, place, "", 0) % rank for place in (1, 2))
        order = list(range(rank))
        order[one], order[other] = other, one
    return _source(node) if order == sorted(order) else None


def _select(build: _Builder, node: fx.Node) -> fx.Node | None:
    source, axis, index = node.args
    assert isinstance(source, fx.Node) and isinstance(axis, int) and isinstance(index, int)
    shape = build.shape(source)
    axis, index = axis % len(shape), index % shape[axis]
    if shape[axis] == 1:
        return build.reshape(source, build.shape(node))
    if axis == len(shape) - 1 and (piece := _piece(build, source, index, index + 1)) is not None:
        return build.reshape(piece, build.shape(node))
    return build.reshape(build(aten.slice.Tensor, source, axis, index, index + 1), build.shape(node))


def _slice(build: _Builder, node: fx.Node) -> fx.Node | None:
    source, axis = node.args[0], _argument(node, 1, "dim", 0)
    assert isinstance(source, fx.Node)
    shape = build.shape(source)
    axis %= len(shape)
    if shape[axis] < 0:
        return source if build.shape(node) == shape else None  # all of an open batch
    start, end, step = slice(
        _argument(node, 2, "start", None), _argument(node, 3, "end", None), _argument(node, 4, "step", 1)
    ).indices(shape[axis])
    if (start, end, step) == (0, shape[axis], 1):
        return source
    if source.op == "get_attr" and step == 1:
        return _stored_piece(build, source, axis, start, end)
    if axis == len(shape) - 1 and step == 1 and (piece := _piece(build, source, start, end)) is not None:
        return piece
    return build(aten.slice.Tensor, source, axis, start, end, step)


def _split(build: _Builder, node: fx.Node) -> fx.Node | None:
    """``chunk``, ``split`` and ``unbind``: each of their ``getitem`` becomes a slice, or a layer of its own."""
    source = _source(node)
    axis = _argument(node, 1 if node.target is aten.unbind.int else 2, "dim", 0) % len(build.shape(source))
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


def _stored_piece(build: _Builder, source: fx.Node, axis: int, start: int, end: int) -> fx.Node:
    """A piece of a stored tensor, as one of its own."""
    whole = build.attribute(source)
    piece = whole.narrow(axis, start, end - start)
    if not isinstance(whole, nn.Parameter):
        return build.constant(piece)
    return build.parameter(source, f"_{axis}_{start}_{end}", piece)


def _piece(build: _Builder, source: fx.Node, start: int, end: int) -> fx.Node | None:
    """Outputs ``start`` to ``end`` of a ``linear`` as a layer of their own, if every user of it takes such a piece."""
    pieces = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.slice.Tensor}
    if source.target is not aten.linear.default or not all(user.target in pieces for user in source.users):
        return None
    weight, bias = source.args[1], _argument(source, 2, "bias", None)
    assert isinstance(weight, fx.Node)
    suffix = f"_{start}_{end}"
    pieces_weight = build.parameter(weight, suffix, build.attribute(weight)[start:end])
    pieces_bias = build.parameter(bias, suffix, build.attribute(bias)[start:end]) if bias is not None else None
    return build(aten.linear.default, source.args[0], pieces_weight, pieces_bias)


def _expand(build: _Builder, node: fx.Node) -> fx.Node | None:
    source = _source(node)
    broadcasting = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
    if build.shape(source) == build.shape(node) or all(user.target in broadcasting for user in node.users):
        return source
    return None


def _nothing(build: _Builder, node: fx.Node) -> fx.Node | None:
    source = _source(node)
    return source if source.meta["val"].dtype == node.meta["val"].dtype else None


_Rewrite = Callable[[_Builder, fx.Node], fx.Node | None]
_REWRITES: dict[Any, _Rewrite] = {
    aten.conv1d.default: _conv1d,
    aten.conv1d.padding: _conv1d,
    aten.conv2d.padding: _conv2d_same,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.std.dim: _deviation,
    aten.std.correction: _deviation,
    aten.var.dim: _deviation,
    aten.var.correction: _deviation,
    aten.mean.dim: _mean,
    aten.avg_pool1d.default: _pool,
    aten.avg_pool2d.default: _pool,
    aten.adaptive_avg_pool1d.default: _pool,
    aten.adaptive_avg_pool2d.default: _pool,
    aten.prelu.default: _prelu,
    aten.relu.default: _relu,
    aten.relu_.default: _relu,
    aten.silu.default: _silu,
    aten.elu.default: _elu,
    aten.softmax.int: _softmax,
    aten.sum.dim_IntList: _sum,
    aten.scaled_dot_product_attention.default: _attention,
    aten.matmul.default: _matmul_to_bmm,
    aten.abs.default: _spectrum,
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
