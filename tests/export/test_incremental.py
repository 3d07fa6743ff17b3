"""Incremental encoders: what is carried, and that the answers are the windowed ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from armlet_export.incremental import Step, StepPlan, Windowed, plan, plan_of
from armlet_runtime.errors import ExportError
from armlet_runtime.modalities import Modality
from armlet_train.conv import ConvEncoder
from armlet_train.methods import build_model
from armlet_train.models import fold_batchnorm
from armlet_train.recipes import ConvModel, CrosslModel

HAPT = ((9, 2, 4), (5, 2, 2), (5, 2, 2))


def columns_of(layers: tuple[tuple[int, int, int], ...], signal: Tensor) -> Tensor:
    """The last layer's columns for (samples,) float64; whole numbers, so that no order of sums makes a difference."""
    generator = torch.Generator().manual_seed(0)
    values = signal[None, None]
    for kernel, stride, padding in layers:
        weight = torch.randint(1, 100, (1, 1, kernel), generator=generator).double()
        values = nn.functional.conv1d(values, weight, torch.ones(1, dtype=torch.float64), stride, padding)
    return values[0, 0]


def test_what_the_recipe_hapt_carries() -> None:
    found = plan(HAPT, 128, 16)
    assert found == StepPlan(128, 16, 16, left=2, right=4, moved=2, head=32, tail=48, rests_on=(16, 121))
    assert found.carried == 10 and found.kept == (4, 14)


def test_plans_hold_for_any_sizes() -> None:
    """Against the columns themselves: carried ones are the same numbers, and one more on either side would not be."""
    rng = np.random.default_rng(0)
    kernels, strides, seen = (1, 3, 4, 5, 9), (1, 2, 3), 0
    for _ in range(300):
        layers = tuple(
            (kernel := int(rng.choice(kernels)), int(rng.choice(strides)), int(rng.choice((0, kernel // 2))))
            for _ in range(int(rng.integers(1, 4)))
        )
        step = int(np.prod([stride for _, stride, _ in layers]))
        length, hop = int(rng.integers(30, 200)), step * int(rng.integers(1, 4))
        found = plan(layers, length, hop)
        if found is None:
            continue
        seen += 1
        signal = torch.from_numpy(rng.integers(-1000, 1000, length + hop)).double()
        before, after = columns_of(layers, signal[:length]), columns_of(layers, signal[hop:])
        first, end = found.kept
        state = before[first:end]
        assert torch.equal(state, after[found.left : found.left + found.carried])
        window = signal[hop:]
        short = columns_of(layers, torch.cat([window[: found.head], window[length - found.tail :]]))
        anew = [short[: found.left], state, short[len(short) - found.right :]]
        assert torch.equal(torch.cat(anew), after)
        # Nothing is left out that could be carried, and the state rests on the samples that are named, on all of them.
        moved = before[found.moved :]
        assert found.left == 0 or moved[found.left - 1] != after[found.left - 1]
        assert found.left + found.carried == len(moved) or moved[found.left + found.carried] != after[end - found.moved]
        oldest, newest = found.rests_on
        for sample, same in ((oldest - 1, True), (oldest, False), (newest - 1, False), (newest, True)):
            if 0 <= sample < length:
                other = signal[:length].clone()
                other[sample] += 1
                assert torch.equal(columns_of(layers, other)[first:end], state) is same
        # Every sample of a window is read, or the state rests on it.
        assert oldest - hop <= found.head and newest - hop >= length - found.tail
    assert seen > 100


@pytest.mark.parametrize("layers, length, hop", [(HAPT, 128, 120), (HAPT, 40, 8), (((9, 8, 0),), 16, 8)])
def test_short_windows_carry_nothing(layers: tuple[tuple[int, int, int], ...], length: int, hop: int) -> None:
    assert plan(layers, length, hop) is None


def encoder(mask: str = "token") -> ConvEncoder:
    torch.manual_seed(1)
    recipe = ConvModel(
        channels=(8, 12, 16), kernels=(9, 5, 5), strides=(2, 2, 2), token_dim=16, hidden_dim=16, embedding_dim=8,
        dropout=0.0, mask=mask,  # type: ignore[arg-type]
    )  # fmt: skip
    modality = Modality("acc", ("x", "y", "z"), "g", 50.0)
    model = build_model(recipe, (modality,), {"acc": 128}, 3)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(layer.num_features)
            layer.running_var = 0.5 + torch.rand(layer.num_features)
    folded = fold_batchnorm(model).encoders["acc"]
    assert isinstance(folded, ConvEncoder)
    return folded


@pytest.mark.parametrize("mask", ["token", "presence"])
def test_steps_give_the_windows_tokens_hop_after_hop(mask: str) -> None:
    whole = encoder(mask)
    found = plan_of(whole, "acc", 128, 16.0)
    assert found is not None
    windowed, step = Windowed(whole, found), Step(whole, found)
    assert [name for name, _ in step.named_parameters()] == [name for name, _ in whole.named_parameters()]
    signal = torch.randn(2, 3, 128 + 30 * 16)
    with torch.no_grad():
        _, state = windowed(signal[..., :128])
        for hop in range(1, 31):
            window = signal[..., 16 * hop : 16 * hop + 128]
            token, state = step(torch.cat([window[..., : found.head], window[..., 128 - found.tail :]], 2), state)
            wanted_token, wanted_state = windowed(window)
            torch.testing.assert_close(token, whole(window), rtol=0, atol=1e-5)
            torch.testing.assert_close(wanted_token, whole(window), rtol=0, atol=0)
            torch.testing.assert_close(state, wanted_state, rtol=0, atol=1e-5)


def test_what_cannot_be_incremental_is_told() -> None:
    with pytest.raises(ExportError, match=r"one column of 8 samples, and \[data\] hop_s is 20 samples"):
        plan_of(encoder(), "acc", 128, 20.0)
    with pytest.raises(ExportError, match=r"hop_s is 16\.5 samples"):
        plan_of(encoder(), "acc", 128, 16.5)
    recipe = CrosslModel(kernels=(8, 8, 8), token_dim=8)
    other = build_model(recipe, (Modality("acc", ("x",), "g", 50.0),), {"acc": 128}, 3)
    with pytest.raises(ExportError, match=r"it is CrosslEncoder, and only those of kind = \"conv\""):
        plan_of(other.encoders["acc"], "acc", 128, 16.0)
