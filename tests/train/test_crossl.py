"""CroSSL: the paper's model, masks and what stands for hidden tokens, objectives."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from armlet_runtime.errors import RecipeError
from armlet_runtime.modalities import Modality
from armlet_train.engine.finetune import Finetuning
from armlet_train.methods.crossl import Crossl
from armlet_train.methods.losses import cocoa, nt_xent, vicreg
from armlet_train.methods.masks import random_pairs, spatial_pairs
from armlet_train.models import crossl
from armlet_train.models.base import ArmletModel
from armlet_train.models.build import build_model
from armlet_train.recipes import AugmentRecipe, ConvModel, CrosslModel, CrosslPretrain, find_recipe, load_recipe

ACC = Modality("acc", ("x", "y", "z"), "g", 50.0)
GYRO = Modality("gyro", ("x", "y", "z"), "rad/s", 50.0)
LENGTHS = {"acc": 128, "gyro": 128}


def small(mask: str) -> ArmletModel:
    torch.manual_seed(0)
    recipe = ConvModel(
        channels=(8, 8), kernels=(5, 5), strides=(2, 2), token_dim=8, hidden_dim=16, embedding_dim=8, dropout=0.0,
        mask=mask,  # type: ignore[arg-type]
    )  # fmt: skip
    return build_model(recipe, (ACC, GYRO), LENGTHS, 6).eval()


def pretraining(model: ArmletModel, **options: object) -> Crossl:
    torch.manual_seed(1)
    recipe = CrosslPretrain(
        epochs=1, batch=8, learning_rate=1e-3, weight_decay=0.0, seed=0, augment=AugmentRecipe(0, 0, 0, 0),
        **options,  # type: ignore[arg-type]
    )  # fmt: skip
    return Crossl(model, recipe)


def windows(count: int) -> dict[str, torch.Tensor]:
    return {name: torch.randn(count, 3, 128) for name in LENGTHS}


# --- the paper's model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "parameters"), [((1, 1, 1, 1), 254_016), ((1, 1, 1), 191_328), ((3,) * 6, 386_304)],
    ids=["SleepEDF", "WESAD", "PAMAP2"],
)  # fmt: skip
def test_papers_model_has_its_parameters(channels: tuple[int, ...], parameters: int) -> None:
    modalities = [Modality(f"m{n}", tuple("abc"[:c]), "u", 100.0) for n, c in enumerate(channels)]
    model = build_model(CrosslModel(), modalities, {one.name: 512 for one in modalities}, 5)
    head = sum(value.numel() for name, value in model.named_parameters() if name.startswith("aggregator.head"))
    learned = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert learned - head == parameters


def test_block_is_keras_in_every_detail() -> None:
    torch.manual_seed(2)
    block = crossl.CrosslBlock(2, 4, 8, 0.1).eval()
    torch.nn.init.normal_(block.activation.weight)
    window = torch.randn(1, 2, 20)
    # By hand: an even kernel has one more zero on the right; variance is biased, 1e-3 is added to it.
    padded = np.pad(window[0].numpy(), ((0, 0), (3, 4)))
    kernel, bias = (value.detach().numpy() for value in block.convolution.parameters())
    out = np.stack([(kernel * padded[None, :, at : at + 8]).sum(axis=(1, 2)) + bias for at in range(20)], axis=1)
    normal = (out - out.mean(axis=0)) / np.sqrt(out.var(axis=0) + 1e-3)
    slope = block.activation.weight.detach().numpy()[:, None]
    expected = np.where(normal > 0, normal, slope * normal)
    np.testing.assert_allclose(block(window)[0].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_papers_masks_are_zeros_that_nothing_moves() -> None:
    model = build_model(CrosslModel(token_dim=8), (ACC, GYRO), LENGTHS, 6)
    assert not model.mask_tokens.requires_grad and not model.mask_tokens.any()


# --- masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("modalities", [2, 3, 6])
def test_spatial_masks_are_different_and_never_empty(modalities: int, keep: float) -> None:
    torch.manual_seed(3)
    present = torch.rand(2000, modalities) < 0.7
    present[~present.any(dim=1), 0] = True
    first, second = spatial_pairs(present, keep)
    for mask in (first, second):
        assert mask.any(dim=1).all()
        assert not (mask & ~present).any()
    alone = present.sum(dim=1) == 1
    assert alone.any() and (first[alone] == second[alone]).all()
    assert (first != second).any(dim=1)[~alone].all()


def test_spatial_masks_are_the_published_draw_given_that_they_differ() -> None:
    torch.manual_seed(4)
    count, keep = 200_000, 0.9
    drawn = spatial_pairs(torch.ones(count, 2, dtype=torch.bool), keep)
    codes = (drawn * torch.tensor([1, 2])).sum(dim=2)  # 1: first alone, 2: second alone, 3: both
    chance = {1: 0.09, 2: 0.09, 3: 0.81}
    pairs = {(a, b): chance[a] * chance[b] for a in chance for b in chance if a != b}
    for (a, b), weight in pairs.items():
        share = ((codes[0] == a) & (codes[1] == b)).float().mean().item()
        assert share == pytest.approx(weight / sum(pairs.values()), abs=0.005)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_random_masks_are_different_and_never_empty(keep: float) -> None:
    torch.manual_seed(5)
    present = torch.rand(3000, 6) < 0.8
    present[:, :2] = True
    first, second = random_pairs(present, keep)
    for mask in (first, second):
        assert mask.any(dim=1).all()
        assert not (mask & ~present).any()
    assert (first != second).any(dim=1).all()
    many, _ = random_pairs(torch.ones(200, 128, dtype=torch.bool), 0.7)
    assert many.float().mean().item() == pytest.approx(0.7, abs=0.01)


# --- what stands for a hidden token -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["zero", "token", "presence", "attention"])
def test_policy_survives_training(policy: str) -> None:
    model = small(policy)
    method = pretraining(model, projection_dim=8)
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    before = model.mask_tokens.detach().clone()
    for _ in range(3):
        views = (windows(8), windows(8))
        method(views, torch.ones(8, 2, dtype=torch.bool))["loss"].backward()
        optimiser.step()
    learned = policy != "zero"
    assert torch.equal(model.mask_tokens, before) == (not learned)
    tokens = model.tokens(windows(4))
    if policy in ("presence", "attention"):
        assert (tokens[:, :, -1] == 1).all()
        assert (model.mask_tokens[:, -1] == 0).all()
    elif policy == "zero":
        assert not model.mask_tokens.any()


@pytest.mark.parametrize("policy", ["zero", "token", "presence", "attention"])
def test_policy_survives_copying_and_keeping(policy: str) -> None:
    model = small(policy)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    batch, present = windows(5), torch.tensor([[True, False]]).expand(5, 2)
    again = small(policy)
    again.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), again):
        assert torch.equal(other.mask_tokens, model.mask_tokens)
        assert torch.equal(other(batch, present)[0], model(batch, present)[0])
        assert any(value.requires_grad for value in other.parameters())
        # What is learned in the copy is learned in the copy alone.
        objective = Finetuning(other, load_recipe(find_recipe("hapt")).finetune)
        optimiser = torch.optim.SGD([value for value in other.parameters() if value.requires_grad], 0.1)
        objective.train()(batch, present, torch.zeros(5, dtype=torch.int64))["loss"].backward()
        optimiser.step()
        objective.after_step(0)
        assert torch.equal(other.mask_tokens, model.mask_tokens) == (policy == "zero")
        other.eval()
        assert not torch.equal(other(batch, present)[0], model(batch, present)[0])


def test_attention_excludes_what_is_hidden() -> None:
    model = small("attention")
    batch, present = windows(4), torch.tensor([[True, False]]).expand(4, 2)
    tokens = model.mask(model.tokens(batch), present)
    logits, embedding = model.aggregator(tokens.flatten(1))
    # Whatever stands in the hidden token, if only its flag is 0.
    tokens = tokens.detach().clone()
    tokens[:, 1, :-1] = 100 * torch.randn(4, 7)
    others, again = model.aggregator(tokens.flatten(1))
    assert torch.equal(logits, others) and torch.equal(embedding, again)
    assert not torch.equal(logits, model(batch, torch.ones(4, 2, dtype=torch.bool))[0])


# --- objectives -------------------------------------------------------------------------------------------------


def test_vicreg_terms() -> None:
    torch.manual_seed(6)
    views = torch.randn(2000, 8)
    similarity, variance, covariance = vicreg(views, views)
    assert similarity == 0
    assert variance < 0.03 and covariance < 0.03  # unit variance, nothing correlated
    _, collapsed, _ = vicreg(torch.zeros(16, 8), torch.zeros(16, 8))
    assert collapsed == pytest.approx(1 - 0.01)  # the hinge, less sqrt(1e-4)
    copies = views[:, :1].repeat(1, 8)
    # All 56 off-diagonal covariances of eight equal components are 1: 56 / 8, for each of the two views.
    assert vicreg(copies, copies)[2] == pytest.approx(2 * 56 / 8, rel=0.1)


def test_nt_xent_is_its_formula() -> None:
    torch.manual_seed(7)
    first, second = torch.randn(5, 4), torch.randn(5, 4)
    every = F.normalize(torch.cat([first, second]), dim=1)
    losses = []
    for row in range(10):
        scores = [math.exp(float(every[row] @ every[other]) / 0.2) for other in range(10)]
        losses.append(-math.log(scores[(row + 5) % 10] / (sum(scores) - scores[row])))
    assert nt_xent(first, second, 0.2).item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_cocoa_is_its_formula() -> None:
    torch.manual_seed(8)
    tokens = torch.randn(4, 3, 5)
    present = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
    unit = F.normalize(tokens, dim=2)
    near, far = [], []
    for b in range(4):
        for m in range(3):
            for n in range(3):
                if m != n and present[b, m] and present[b, n]:
                    near.append(math.exp((1 - float(unit[b, m] @ unit[b, n])) / 0.5))
            for c in range(4):
                if b != c and present[b, m] and present[c, m]:
                    far.append(math.exp(float(unit[b, m] @ unit[c, m]) / 0.5))
    expected = np.mean(near) + 0.1 * np.mean(far)
    assert cocoa(tokens, present, 0.5, 0.1).item() == pytest.approx(expected, rel=1e-4)
    # The token of an absent modality has no say.
    tokens[1, 2] = 50.0
    assert cocoa(tokens, present, 0.5, 0.1).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"views": 1}, {"strategy": "random", "keep": 0.7}, {"every_mask": True, "projection_dim": 8},
        {"objective": "nt-xent"}, {"objective": "cocoa"}, {"objective": "cocoa", "views": 1},
    ],
    ids=str,
)  # fmt: skip
def test_every_way_of_pretraining_learns(options: dict[str, object]) -> None:
    """The loss on one batch falls, and it moves the encoders."""
    model = small("token").train()
    method = pretraining(model, **options)
    optimiser = torch.optim.Adam(method.parameters(), 1e-2)
    torch.manual_seed(9)
    batch, present = windows(16), torch.ones(16, 2, dtype=torch.bool)
    present[:3, 1] = False
    near = {name: window + 0.1 * torch.randn_like(window) for name, window in batch.items()}
    views = (batch, near)[: method.views]
    weight = next(model.encoders["acc"].parameters())
    first = weight.detach().clone()
    losses = []
    for _ in range(40):
        loss = method(views, present)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert not torch.equal(first, weight)


def test_every_mask_is_the_mean_over_pairs_of_masks() -> None:
    model = small("token")
    method = pretraining(model, every_mask=True)
    views = (windows(6), windows(6))
    terms = method(views, torch.ones(6, 2, dtype=torch.bool))
    masks = [torch.tensor(mask) for mask in ([True, True], [True, False], [False, True])]
    vectors = [
        [model.aggregator(model.mask(model.tokens(view), mask.expand(6, 2)).flatten(1))[1] for mask in masks]
        for view in views
    ]
    pairs = [vicreg(vectors[0][a], vectors[1][b]) for a in range(3) for b in range(3) if a != b]
    for name, number in (("similarity", 0), ("variance", 1), ("covariance", 2)):
        expected = torch.stack([pair[number] for pair in pairs]).mean()
        torch.testing.assert_close(terms[name], expected, rtol=1e-4, atol=1e-6)


def test_too_many_modalities_are_one_sentence() -> None:
    modalities = [Modality(f"m{n}", ("x",), "u", 50.0) for n in range(4)]
    model = build_model(CrosslModel(token_dim=8), modalities, {one.name: 128 for one in modalities}, 2)
    with pytest.raises(RecipeError, match=r"at most 3 modalities with .* every_mask = true"):
        pretraining(model, every_mask=True)
