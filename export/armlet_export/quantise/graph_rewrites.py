"""Graph rewrites: a captured graph is changed so that one delegate takes the whole of it.

None changes what the program computes (each has a test of its own). XNNPACK's delegate in ExecuTorch 1.5 leaves the
operators on the left outside, or has no integer kernel for them; LiteRT and ONNX Runtime get the same graphs.

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

from typing import Any

from torch import fx

from .graph_builder import GraphBuilder, Rewrite
from .layer_rewrites import LAYER_REWRITES
from .reduction_rewrites import REDUCTION_REWRITES
from .shape_rewrites import SHAPE_REWRITES

_REWRITES: dict[Any, Rewrite] = LAYER_REWRITES | REDUCTION_REWRITES | SHAPE_REWRITES


def rewrite(graph: fx.GraphModule) -> None:
    """Do all rewrites, in place."""
    for node in list(graph.graph.nodes):
        replace = _REWRITES.get(node.target)
        if replace is None or not node.users:
            continue
        with graph.graph.inserting_before(node):
            new = replace(GraphBuilder(graph, node), node)
        if new is not None and new is not node:
            node.replace_all_uses_with(new)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
