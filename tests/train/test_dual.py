"""Dual masking, what it learns, and LoRA."""

from __future__ import annotations

import copy

import msgspec
import pytest
import torch
from torch import Tensor

from armlet_runtime.errors import RecipeError
from armlet_runtime.modalities import Modality
from armlet_train import distributed
from armlet_train.methods import build_pretraining
from armlet_train.methods.dual_masking import Dual, dual_mask
from armlet_train.models import CBraModEncoder, lora
from armlet_train.models.base import ArmletModel
from armlet_train.models.build import build_model
from armlet_train.recipes import (
    AugmentRecipe,
    CBraModModel,
    CBraModSizes,
    ConvModel,
    DualPretrain,
    LoraRecipe,
    MuMaeModel,
    VideoRecipe,
)

ECG = Modality("ecg", ("I", "II", "III"), "mV", 100.0)
EEG = Modality("eeg", ("C3", "C4"), "uV", 100.0)
SIZES = CBraModSizes(
    patch=20, stride=5, maps=4, groups=2, layers=2, heads=4, feedforward=32, positions=(3, 3), dropout=0.0
)
MODEL = CBraModModel(encoders={"ecg": SIZES, "eeg": SIZES}, pool="mean", token_dim=8, embedding_dim=8, dropout=0.0)
RECIPE = DualPretrain(
    epochs=1, batch=16, learning_rate=1e-3, weight_decay=0.0, seed=0,
    augment=AugmentRecipe(rotation_deg=0, scale=0, jitter=0, gap=0),
    within=0.5, across=0.4, unit="leads", across_share=0.5,
)  # fmt: skip
CPU = torch.device("cpu")


def small_model(recipe: CBraModModel = MODEL) -> ArmletModel:
    torch.manual_seed(0)
    return build_model(recipe, (ECG, EEG), {"ecg": 160, "eeg": 160}, 2)


def encoder_of(model: ArmletModel, name: str) -> CBraModEncoder:
    encoder = model.encoders[name]
    assert isinstance(encoder, CBraModEncoder)
    return encoder


# Masks.


def test_within_hides_patches_by_themselves() -> None:
    torch.manual_seed(0)
    hidden = dual_mask(msgspec.structs.replace(RECIPE, across_share=0.0), (2000, 3, 8), CPU)
    assert hidden.dtype == torch.bool and hidden.shape == (2000, 3, 8)
    # 48,000 draws: a standard deviation of 0.0023.
    assert float(hidden.float().mean()) == pytest.approx(0.5, abs=0.01)
    leads = hidden.float().mean(dim=2)
    assert float(((leads == 0) | (leads == 1)).float().mean()) < 0.05


@pytest.mark.parametrize(("unit", "share"), [("leads", 0.4), ("columns", 0.4)])
def test_across_hides_whole_leads_or_columns(unit: str, share: float) -> None:
    torch.manual_seed(0)
    recipe = msgspec.structs.replace(RECIPE, across_share=1.0, across=share, unit=unit)
    hidden = dual_mask(recipe, (4000, 12, 10), CPU)
    along = 2 if unit == "leads" else 1
    assert torch.equal(hidden.all(dim=along), hidden.any(dim=along))
    assert float(hidden.float().mean()) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("unit", ["leads", "columns"])
@pytest.mark.parametrize("shape", [(500, 3, 8), (500, 2, 1), (500, 1, 6), (500, 2, 2)])
def test_something_is_hidden_and_something_seen(unit: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    for across_share in (0.0, 0.5, 1.0):
        hidden = dual_mask(msgspec.structs.replace(RECIPE, unit=unit, across_share=across_share), shape, CPU)
        assert hidden.flatten(1).any(dim=1).all()
        assert not hidden.flatten(1).all(dim=1).any()


def test_single_patch_is_never_hidden() -> None:
    assert not dual_mask(RECIPE, (10, 1, 1), CPU).any()


def test_share_of_windows_is_masked_across() -> None:
    torch.manual_seed(0)
    hidden = dual_mask(msgspec.structs.replace(RECIPE, across_share=0.25), (4000, 12, 10), CPU)
    whole = (hidden.all(dim=2) == hidden.any(dim=2)).all(dim=1)
    assert float(whole.float().mean()) == pytest.approx(0.25, abs=0.03)


def test_processes_hide_what_one_process_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    one = dual_mask(RECIPE, (8, 3, 8), CPU)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(3)
        assert torch.equal(dual_mask(RECIPE, (4, 3, 8), CPU), one[4 * rank : 4 * rank + 4])


@pytest.mark.parametrize(("name", "value"), [("within", 0.0), ("across", 1.0), ("across_share", 1.5)])
def test_shares_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(msgspec.ValidationError, match="lie between 0 and 1"):
        msgspec.convert({"method": "dual", **msgspec.to_builtins(RECIPE), name: value}, DualPretrain)


# The loss.


def test_loss_is_the_error_on_hidden_patches_of_windows_that_are_there() -> None:
    method = Dual(small_model().eval(), RECIPE).eval()
    windows = {"ecg": torch.randn(6, 3, 160), "eeg": torch.randn(6, 2, 160)}
    present = torch.ones(6, 2, dtype=torch.bool)
    present[2, 1] = present[4, 1] = False
    # What lies in the place of an absent window reaches neither the loss nor a gradient.
    windows["eeg"][2] = torch.nan
    windows["eeg"][4] = 1e9
    torch.manual_seed(5)
    terms = method((windows,), present)
    torch.manual_seed(5)
    wanted = {}
    for name, modality, leads in (("ecg", 0, 3), ("eeg", 1, 2)):
        encoder = encoder_of(method.model, name)
        hidden = dual_mask(RECIPE, (6, leads, 8), CPU)
        errors = []
        for window in range(6):
            if not present[window, modality]:
                continue
            patches = windows[name][window].reshape(1, leads, 8, 20)
            rebuilt = encoder.cbramod(patches, hidden[window][None])
            errors.append((rebuilt - patches)[0][hidden[window]].square().mean())
        wanted[name] = torch.stack(errors).mean()
    torch.testing.assert_close(terms["ecg"], wanted["ecg"])
    torch.testing.assert_close(terms["eeg"], wanted["eeg"])
    torch.testing.assert_close(terms["loss"], (wanted["ecg"] + wanted["eeg"]) / 2)
    terms["loss"].backward()
    for parameter in encoder_of(method.model, "eeg").cbramod.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def waves(count: int) -> Tensor:
    """Three leads that are one wave with three amplitudes: a hidden one is known from the others."""
    phase = torch.rand(count, 1, 1) * 6.28
    time = torch.arange(160) / 100
    return torch.sin(2 * torch.pi * 3 * time + phase) * torch.tensor([1.0, -0.7, 0.5])[:, None]


def test_hidden_leads_are_learned_from_the_others() -> None:
    torch.manual_seed(0)
    recipe = msgspec.structs.replace(MODEL, encoders={"ecg": msgspec.structs.replace(SIZES, maps=8)})
    model = build_model(recipe, (ECG,), {"ecg": 160}, 2)
    method = build_pretraining(model, msgspec.structs.replace(RECIPE, across_share=1.0))
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-2)
    present = torch.ones(64, 1, dtype=torch.bool)
    losses = []
    for _ in range(150):
        loss = method(({"ecg": waves(64)},), present)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    # The leads' mean power is 0.29; to say zero costs that much.
    assert sum(losses[-10:]) / 10 < 0.12


def test_encoder_with_weights_of_its_own_is_left_alone() -> None:
    with_weights = msgspec.structs.replace(MODEL, encoders={"ecg": SIZES, "eeg": CBraModSizes(layers=1, weights="x")})
    model = build_model(with_weights, (ECG, EEG), {"ecg": 160, "eeg": 200}, 2)
    method = Dual(model, RECIPE)
    terms = method(({"ecg": torch.randn(2, 3, 160), "eeg": torch.randn(2, 2, 200)},), torch.ones(2, 2).bool())
    assert set(terms) == {"loss", "ecg"}
    terms["loss"].backward()
    assert all(parameter.grad is None for parameter in model.encoders["eeg"].parameters())
    only = msgspec.structs.replace(MODEL, encoders={"eeg": CBraModSizes(layers=1, weights="x")})
    with pytest.raises(RecipeError, match='method = "none"'):
        Dual(build_model(only, (EEG,), {"eeg": 200}, 2), RECIPE)


def test_dual_needs_cbramod() -> None:
    with pytest.raises(RecipeError, match='kind = "cbramod"'):
        Dual(conv_model(), RECIPE)


def conv_model() -> ArmletModel:
    recipe = ConvModel(
        channels=(4,), kernels=(3,), strides=(2,), token_dim=4, hidden_dim=4, embedding_dim=4, dropout=0.0
    )
    return build_model(recipe, (ECG,), {"ecg": 160}, 2)


# LoRA.


def test_lora_begins_at_the_model_learns_little_and_merges() -> None:
    model = small_model().eval()
    windows = {"ecg": torch.randn(4, 3, 160), "eeg": torch.randn(4, 2, 160)}
    present = torch.ones(4, 2, dtype=torch.bool)
    before = model(windows, present)[0].detach()
    original = {name: value.clone() for name, value in model.state_dict().items()}
    lora.attach(model, LoraRecipe(rank=2, alpha=4.0))
    torch.testing.assert_close(model(windows, present)[0], before)

    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in learned if name.startswith("encoders.") and ".token." not in name} == {
        name for name, _ in model.named_parameters() if name.endswith((".0.up", ".0.down"))
    }
    assert {"mask_tokens", "aggregator.head.weight", "encoders.ecg.token.weight"} <= learned
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        model(windows, present)[0].square().sum().backward()
        optimiser.step()
    # The running average of the weights is a copy of the model; so is what is merged here.
    merged = copy.deepcopy(model)
    after = model(windows, present)[0].detach()
    lora.merge(merged)
    torch.testing.assert_close(merged(windows, present)[0], after)
    assert not torch.allclose(after, before)
    state = merged.state_dict()
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in original.items()
    }
    changed = state["encoders.ecg.cbramod.encoder.layers.0.linear1.weight"]
    change = changed - original["encoders.ecg.cbramod.encoder.layers.0.linear1.weight"]
    assert int(torch.linalg.matrix_rank(change, tol=1e-5)) == 2
    for name in ("patch_embedding.proj_in.0.weight", "encoder.layers.0.norm1.weight"):
        assert torch.equal(state[f"encoders.ecg.cbramod.{name}"], original[f"encoders.ecg.cbramod.{name}"])


def test_lora_without_matrices_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"the encoder of 'ecg' has no matrices"):
        lora.attach(conv_model(), LoraRecipe(rank=2, alpha=4.0))


def test_lora_goes_into_an_encoder_of_video() -> None:
    """It has no map to the token: what it embeds is the token."""
    video = VideoRecipe(height=8, width=8, patch=4, colours=1)
    sizes = MuMaeModel(spans=4, width=16, depth=1, heads=2, fusion="concatenation", embedding_dim=8, dropout=0.0,
                       video={"camera": video})  # fmt: skip
    camera = Modality("camera", tuple(f"p{number}" for number in range(64)), "1", 4.0)
    model = build_model(sizes, (camera,), {"camera": 8}, 3)
    lora.attach(model, LoraRecipe(rank=2, alpha=4.0))
    learning = {name for name, one in model.encoders.named_parameters() if one.requires_grad}
    assert learning == {f"camera.embed.parametrizations.weight.0.{part}" for part in ("down", "up")}
