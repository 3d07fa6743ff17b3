"""Graphs: a module captured for quantisation and lowering, with the rewrites that keep a program in one integer piece.

Every rewrite for the sake of an engine is here, in :func:`capture`, and changes nothing in the result:

- ``unsqueeze`` becomes ``reshape``: XNNPACK leaves ``unsqueeze`` outside its delegate, which costs a copy each way.
- ``avg_pool2d`` over the whole plane becomes ``mean`` over both axes: XNNPACK has an integer kernel for the global mean
  only, and turns an ``avg_pool2d`` between two quantised layers back into float.

The models are made of ``Conv2d`` 1 x k and ``Linear`` already (see :mod:`armlet_train.models`), the two layers that
every engine has an integer kernel for.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from armlet_runtime.errors import ExportError

aten = torch.ops.aten

AGGREGATOR = "aggregator"
"""Name of the aggregator among a model's parts; the encoders go by their modalities."""

WEIGHTED = {aten.conv2d.default, aten.linear.default}
"""The operators that have weights; every other one must be free of them."""


def capture(module: nn.Module, example: Tensor, *, any_batch: bool = False) -> fx.GraphModule:
    """The graph of a module of one input, as it runs in evaluation (no dropout), rewritten as above.

    Args:
        module: Module of one tensor.
        example: An input; its shape is the only one that the graph takes, but for ``any_batch``.
        any_batch: Leave the first dimension open, for training.

    Returns:
        The graph, with parameters of its own, named as the module's.

    Raises:
        ExportError: The module cannot be captured.
    """
    batch = torch.export.Dim("batch", min=1, max=65536)
    # With one example the tracer would take the batch for a constant.
    inputs = (example.expand(2, *example.shape[1:]) if any_batch and len(example) == 1 else example,)
    try:
        program = torch.export.export(
            copy.deepcopy(module).eval(), inputs, dynamic_shapes=({0: batch},) if any_batch else None, strict=False
        )
    except Exception as error:  # torch.export raises a dozen kinds, all meaning this
        raise ExportError(f"torch.export cannot capture {type(module).__name__}: {error}") from error
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    _rewrite(graph)
    return without_modes(graph)


def without_modes(graph: fx.GraphModule) -> fx.GraphModule:
    """Let ``train()`` and ``eval()`` be called on a captured graph, where torch refuses them.

    They do nothing: neither dropout nor batch normalisation is left in it, so there is one mode.
    """
    graph.train = lambda mode=True: graph  # type: ignore[method-assign]
    graph.eval = lambda: graph  # type: ignore[method-assign]
    return graph


def _rewrite(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.target is aten.unsqueeze.default:
            shape = list(_shape(node))
            # Only the batch can be open, and reshape works it out.
            shape = [size if isinstance(size, int) else -1 for size in shape]
            _replace(graph, node, aten.reshape.default, (node.args[0], shape))
        elif node.target is aten.avg_pool2d.default and _is_global(node):
            _replace(graph, node, aten.mean.dim, (node.args[0], [2, 3], True))
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _replace(graph: fx.GraphModule, node: fx.Node, target: object, args: tuple[object, ...]) -> None:
    with graph.graph.inserting_before(node):
        new = graph.graph.call_function(target, args)  # type: ignore[arg-type]
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)


def _is_global(pool: fx.Node) -> bool:
    """Whether an ``avg_pool2d`` takes the mean of whole planes: no padding, and one step in each direction."""
    args = list(pool.args)
    kernel = args[1]
    padding = args[3] if len(args) > 3 else [0, 0]
    divisor = args[6] if len(args) > 6 else None
    source = args[0]
    assert isinstance(source, fx.Node)
    return kernel == list(_shape(source)[2:]) and padding in ([0, 0], (0, 0)) and divisor is None


def _shape(node: fx.Node) -> torch.Size:
    shape: torch.Size = node.meta["val"].shape
    return shape


def weighted_nodes(graph: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """The nodes with weights in the order in which they run, each with the name of its weight.

    Raises:
        ExportError: A weight is not a plain parameter.
    """
    for node in graph.graph.nodes:
        if node.target in WEIGHTED:
            weight = node.args[1]
            assert isinstance(weight, fx.Node)
            if weight.op == "call_module":  # the fake quantiser of the weight
                weight = weight.args[0]
            if weight.op != "get_attr":
                raise ExportError(f"{node.name}: its weight is computed, so it cannot be quantised ahead of time")
            yield node, str(weight.target)
