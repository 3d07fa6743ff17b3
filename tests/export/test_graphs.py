"""Rewrites: each gives what the module gave, and leaves none of the operators that engines cannot take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from armlet_export.quantise.capture import capture, weighted_nodes
from armlet_export.quantise.graph_builder import aten
from armlet_runtime.errors import ExportError

from .modules import Attention, CrissCross, Norms, vary


def targets(graph: fx.GraphModule) -> set[object]:
    return {node.target for node in graph.graph.nodes if node.op == "call_function"}


class Of(nn.Module):
    """A function of one tensor, with the layers that it uses."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        return self.function(values, *self.layers)


def of(function: Callable[..., Tensor], *layers: nn.Module) -> nn.Module:
    module = Of(function, *layers)
    vary(module)
    return module


def sdpa(values: Tensor) -> Tensor:
    query, key, value = torch.split(values.reshape(values.shape[0], 2, 6, 12), 4, -1)
    return F.scaled_dot_product_attention(query, key, value)


REWRITES = {
    "conv1d": (of(lambda x, c: c(x), nn.Conv1d(4, 6, 5, stride=2, padding=2)), (4, 33), aten.conv1d.default),
    "conv1d dilated": (of(lambda x, c: c(x), nn.Conv1d(4, 6, 3, dilation=2)), (4, 33), aten.conv1d.default),
    "conv1d same, even": (of(lambda x, c: c(x), nn.Conv1d(4, 6, 8, padding="same")), (4, 33), aten.conv1d.padding),
    "conv2d same, even": (
        of(lambda x, c: c(x), nn.Conv2d(2, 3, (4, 3), padding="same")), (2, 7, 9), aten.conv2d.padding,
    ),
    "batch norm folded": (
        of(lambda x, c, b: torch.relu(b(c(x))), nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6)),
        (4, 33), aten.batch_norm.default,
    ),
    "batch norm alone": (of(lambda x, b: b(x), nn.BatchNorm1d(4)), (4, 9), aten.batch_norm.default),
    "layer norm": (of(lambda x, n: n(x), nn.LayerNorm(12)), (5, 12), aten.layer_norm.default),
    "layer norm, two axes": (of(lambda x, n: n(x), nn.LayerNorm((5, 12))), (5, 12), aten.layer_norm.default),
    "layer norm, long": (of(lambda x, n: n(x), nn.LayerNorm(600)), (2, 600), aten.layer_norm.default),
    "group norm": (of(lambda x, n: n(x), nn.GroupNorm(3, 12)), (12, 7, 5), aten.group_norm.default),
    "prelu": (of(lambda x, p: p(x), nn.PReLU(4)), (4, 9), aten.prelu.default),
    "prelu, one slope": (of(lambda x, p: p(x), nn.PReLU()), (4, 9), aten.prelu.default),
    "silu": (of(lambda x: F.silu(x)), (4, 9), aten.silu.default),
    "elu": (of(lambda x: F.elu(x, 0.7)), (4, 9), aten.elu.default),
    "std": (of(lambda x: x.std(-1)), (4, 9), aten.std.correction),
    "var, biased, kept": (of(lambda x: x.var((1, 2), unbiased=False, keepdim=True)), (4, 9), aten.var.correction),
    "sum": (of(lambda x: x.sum((1, 2))), (4, 3), aten.sum.dim_IntList),
    "global pool": (of(lambda x: F.avg_pool2d(x, (1, 9))), (4, 1, 9), aten.avg_pool2d.default),
    "adaptive pool": (of(lambda x: F.adaptive_avg_pool1d(x, 1)), (4, 9), aten.adaptive_avg_pool1d.default),
    "attention": (of(sdpa), (2, 6, 12), aten.scaled_dot_product_attention.default),
    "matmul": (of(lambda x: x @ x.transpose(-1, -2)), (2, 3, 5), aten.matmul.default),
    "spectrum": (of(lambda x: torch.fft.rfft(x, norm="forward").abs()), (3, 50), aten.fft_rfft.default),
    "chunked linear": (
        of(lambda x, c: torch.cat(c(x).chunk(3, -1)[::-1], -1), nn.Linear(6, 12)), (5, 6), aten.chunk.default,
    ),
    "packed weight": (
        of(lambda x, c: F.linear(x, c.weight[4:8], c.bias.chunk(3)[1]), nn.Linear(6, 12)), (5, 6), aten.chunk.default,
    ),
    "unbind": (of(lambda x: x.unbind(1)[1]), (3, 5), aten.unbind.int),
    "select": (of(lambda x: x[:, -1]), (3, 5), aten.select.int),
    "unsqueeze": (of(lambda x: x.unsqueeze(2).squeeze(2)), (3, 5), aten.unsqueeze.default),
    "dropout": (of(lambda x, d: d(x), nn.Dropout(0.5)), (3, 5), aten.dropout.default),
}  # fmt: skip


@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_changes_nothing_but_the_operators(name: str) -> None:
    module, shape, gone = REWRITES[name]
    values = 2 * torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    graph = capture(module, values, any_batch=True)
    assert gone not in targets(graph)
    with torch.no_grad():
        torch.testing.assert_close(graph(values[:3]), module(values[:3]), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("module", [Norms, Attention, CrissCross])
def test_whole_modules_stay_what_they_are(module: type[Norms | Attention | CrissCross]) -> None:
    whole = module()
    values = torch.randn(4, *module.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for any_batch in (True, False):
            some = values if any_batch else values[:1]
            graph = capture(whole, some, any_batch=any_batch)
            torch.testing.assert_close(graph(some), whole(some), rtol=1e-4, atol=1e-5)
            assert not targets(graph) & {gone for _, _, gone in REWRITES.values()}


def test_softmax_is_over_the_last_axis() -> None:
    module, values = of(lambda x: torch.softmax(x, 1)), torch.randn(2, 3, 4)
    graph = capture(module, values)
    (node,) = (node for node in graph.graph.nodes if node.target is aten.softmax.int)
    assert node.args[1] == -1
    torch.testing.assert_close(graph(values), module(values))


def test_a_transpose_that_changes_nothing_is_left_out() -> None:
    graph = capture(of(lambda x: x.transpose(1, -2).permute(0, 1, 2) * 2), torch.randn(2, 3, 4))
    assert targets(graph) == {aten.mul.Tensor}


def test_a_folded_batch_norm_can_be_trained() -> None:
    module, _, _ = REWRITES["batch norm folded"]
    graph = capture(module, torch.randn(2, 4, 33), any_batch=True)
    ((_, name),) = weighted_nodes(graph)
    graph(torch.randn(3, 4, 33)).sum().backward()
    assert dict(graph.named_parameters())[name].grad is not None


def test_means_are_no_layers_that_were_trained() -> None:
    graph = capture(Norms(), torch.randn(1, 3, 64))
    names = [name for _, name in weighted_nodes(graph)]
    assert names == ["first.weight", "second.weight", "token.weight"]
    assert sum(node.target is aten.linear.default for node in graph.graph.nodes) == 7


def test_packed_projections_become_layers_of_their_own() -> None:
    graph = capture(Attention(), torch.randn(1, 64))
    names = [name for _, name in weighted_nodes(graph)]
    assert len(names) == 11 and [name for name in names if name.startswith("packed")] == [
        "packed_weight_0_32", "packed_weight_32_64", "packed_weight_64_96",
    ]  # fmt: skip


def test_attention_with_a_mask_is_refused() -> None:
    def masked(values: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(values, values, values, torch.ones(5, 5, dtype=torch.bool))

    with pytest.raises(ExportError, match="attention with a mask has no program"):
        capture(of(masked), torch.randn(1, 5, 8))


def test_a_length_taken_as_a_number_is_refused() -> None:
    with pytest.raises(ExportError, match=r"write x\.shape\[0\], not len\(x\)$"):
        capture(of(lambda x: x.reshape(len(x), 15)), torch.randn(2, 3, 5), any_batch=True)
