"""Capture: a module becomes the graph that is quantised and lowered."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from armlet_runtime.errors import ExportError

from .graph_builder import aten
from .graph_rewrites import rewrite

WEIGHTED = {aten.conv2d.default, aten.linear.default}
"""The operators that have weights; every other one must be free of them."""


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
