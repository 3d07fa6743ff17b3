"""CBraMod: the published model's names, shapes and outputs; weights; the model around it; absent modalities."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from armlet_runtime.errors import DataError, RecipeError
from armlet_runtime.modalities import Modality
from armlet_train import distributed
from armlet_train.engine import finetune
from armlet_train.models import CBraMod, CBraModEncoder, cbramod, cbramod_encoder, lora
from armlet_train.models.base import ArmletModel
from armlet_train.models.build import build_model
from armlet_train.recipes import CBraModModel, CBraModSizes, LoraRecipe, find_recipe, load_recipe
from tests.support import braindecode_cbramod

EEG = Modality("eeg", ("C3", "C4", "Cz"), "uV", 200.0)
ECG = Modality("ecg", ("1", "2"), "mV", 100.0)
SMALL = CBraModSizes(patch=20, stride=5, maps=4, groups=2, layers=2, heads=4, feedforward=24, positions=(3, 3))
RECIPE = CBraModModel(
    encoders={"eeg": msgspec.structs.replace(SMALL, patch=40, stride=10), "ecg": SMALL},
    pool="mean",
    token_dim=12,
    embedding_dim=10,
    dropout=0.1,
)
LENGTHS = {"eeg": 160, "ecg": 80}

needs_braindecode = pytest.mark.skipif(braindecode_cbramod.MISSING is not None, reason=str(braindecode_cbramod.MISSING))


def small_model(recipe: CBraModModel = RECIPE) -> ArmletModel:
    torch.manual_seed(0)
    return build_model(recipe, (EEG, ECG), LENGTHS, 3).eval()


def random_windows(count: int) -> dict[str, Tensor]:
    return {"eeg": torch.randn(count, 3, 160), "ecg": torch.randn(count, 2, 80)}


def encoder_of(model: ArmletModel, name: str) -> CBraModEncoder:
    encoder = model.encoders[name]
    assert isinstance(encoder, CBraModEncoder)
    return encoder


def expected_state() -> dict[str, tuple[int, ...]]:
    """The published state dict, written out from its table."""
    state = {
        "patch_embedding.mask_encoding": (200,),
        "patch_embedding.positional_encoding.0.weight": (200, 1, 19, 7),
        "patch_embedding.positional_encoding.0.bias": (200,),
        "patch_embedding.proj_in.0.weight": (25, 1, 1, 49),
        "patch_embedding.proj_in.0.bias": (25,),
        "patch_embedding.spectral_proj.0.weight": (200, 101),
        "patch_embedding.spectral_proj.0.bias": (200,),
        "proj_out.0.weight": (200, 200),
        "proj_out.0.bias": (200,),
    }
    for norm in (1, 4, 7):
        state |= {f"patch_embedding.proj_in.{norm}.{kind}": (25,) for kind in ("weight", "bias")}
    for convolution in (3, 6):
        state[f"patch_embedding.proj_in.{convolution}.weight"] = (25, 25, 1, 3)
        state[f"patch_embedding.proj_in.{convolution}.bias"] = (25,)
    for layer in (f"encoder.layers.{number}" for number in range(12)):
        for attention in (f"{layer}.self_attn_s", f"{layer}.self_attn_t"):
            state |= {f"{attention}.in_proj_weight": (300, 100), f"{attention}.in_proj_bias": (300,)}
            state |= {f"{attention}.out_proj.weight": (100, 100), f"{attention}.out_proj.bias": (100,)}
        state |= {f"{layer}.linear1.weight": (800, 200), f"{layer}.linear1.bias": (800,)}
        state |= {f"{layer}.linear2.weight": (200, 800), f"{layer}.linear2.bias": (200,)}
        state |= {f"{layer}.norm{n}.{kind}": (200,) for n in (1, 2) for kind in ("weight", "bias")}
    return state


def test_state_dict_is_the_published_one() -> None:
    state = CBraMod().state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected_state()
    assert len(state) == 211
    assert sum(value.numel() for value in state.values()) == 4_924_000


@needs_braindecode
def test_outputs_are_those_of_braindecode_to_the_last_digits() -> None:
    """In float64, where rounding hides nothing, with the weights as they are drawn."""
    torch.manual_seed(0)
    theirs = braindecode_cbramod.build(5, 4).double()
    ours = CBraMod().double().eval()
    # From float64, too: a buffer made in float32 would keep its rounding.
    ours.patch_embedding.fourier = cbramod.fourier(200)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    values = torch.randn(2, 5, 4, 200, dtype=torch.float64)
    with torch.no_grad():
        wanted = theirs(values.flatten(2)).reshape(values.shape)
        torch.testing.assert_close(ours(values), wanted, rtol=0, atol=1e-10)


@needs_braindecode
@pytest.mark.parametrize(("channels", "patches", "batch"), [(1, 1, 3), (3, 4, 2), (14, 9, 1), (16, 10, 2), (23, 5, 3)])
def test_outputs_are_those_of_braindecode(channels: int, patches: int, batch: int) -> None:
    torch.manual_seed(channels)
    theirs = braindecode_cbramod.build(channels, patches)
    ours = CBraMod().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    values = torch.randn(batch, channels, patches, 200)
    hidden = torch.rand(batch, channels, patches) < 0.5
    hidden[0, 0, 0] = True
    inner: dict[str, Tensor] = {}
    theirs.get_submodule("encoder").register_forward_hook(lambda _m, _i, out: inner.update(features=out))
    # The gradients as well, which also takes both models off the paths that they have for inference only.
    for mask in (None, hidden):
        wanted = theirs(values.flatten(2), mask=mask).reshape(values.shape)
        torch.testing.assert_close(ours.features(values, mask), inner["features"], rtol=0, atol=1e-5)
        found = ours(values, mask)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(ours(values, mask), wanted.detach(), rtol=0, atol=1e-5)
    names = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
    theirs_named, ours_named = dict(theirs.named_parameters()), dict(ours.named_parameters())
    assert {name for name, parameter in theirs_named.items() if parameter.requires_grad} == set(names)
    want = torch.autograd.grad(wanted.square().mean(), [theirs_named[name] for name in names])
    have = torch.autograd.grad(found.square().mean(), [ours_named[name] for name in names])
    for name, one, other in zip(names, have, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-9, msg=name)


def test_other_constants_have_other_shapes() -> None:
    model = CBraMod(SMALL).eval()
    assert SMALL.width == 16
    values = torch.randn(2, 3, 5, 20)
    assert model(values).shape == values.shape
    assert model.features(values).shape == (2, 3, 5, 16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch": 21}, "divisible by stride"),
        ({"groups": 3}, "divisible by groups"),
        ({"heads": 3}, "heads must be even"),
        ({"positions": (4, 3)}, "odd"),
        ({"layers": 0}, "must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert({**msgspec.structs.asdict(SMALL), **change}, CBraModSizes)


@pytest.mark.parametrize("count", [1, 140, 1120, 1279])
def test_linear_is_linear(count: int) -> None:
    torch.manual_seed(0)
    wide = torch.randn(count, 200, requires_grad=True)
    weight, bias = torch.randn(800, 100, requires_grad=True), torch.randn(800, requires_grad=True)
    half = wide[:, 100:]
    found, wanted = cbramod.linear(half, weight, bias), torch.nn.functional.linear(half, weight, bias)
    torch.testing.assert_close(found, wanted)
    gradient = torch.randn_like(wanted)
    for one, other in zip(
        torch.autograd.grad(found, (wide, weight, bias), gradient),
        torch.autograd.grad(wanted, (wide, weight, bias), gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_dropout_drops_its_share_and_keeps_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    dropout = cbramod.Dropout(0.1)
    ones = torch.ones(1000, 333)
    dropped = dropout(ones)
    # 333,000 draws: a standard deviation of 0.0005.
    assert float((dropped == 0).float().mean()) == pytest.approx(0.1, abs=0.003)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    assert torch.equal(dropout.eval()(ones), ones)
    # The second of two processes drops what one process drops in the second half of the batch.
    dropout.train()
    torch.manual_seed(0)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert torch.equal(dropout(ones[:500]), dropped[500:])


def test_gradient_reaches_a_patch_of_zeros() -> None:
    torch.manual_seed(0)
    values = torch.zeros(1, 2, 3, 20, requires_grad=True)
    (gradient,) = torch.autograd.grad(CBraMod(SMALL).eval()(values).square().sum(), values)
    assert torch.isfinite(gradient).all()


# Weights.


def test_weights_are_loaded_strictly_and_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    state = CBraMod().state_dict()
    path = tmp_path / cbramod_encoder.PUBLISHED_NAME
    torch.save(state, path)
    with pytest.raises(DataError, match=r"is not CBraMod's published .* 19,775,842"):
        cbramod_encoder.load_state(path)
    # With its own size and hash as the published ones, the file is taken.
    content = path.read_bytes()
    monkeypatch.setattr(cbramod_encoder, "PUBLISHED_BYTES", len(content))
    monkeypatch.setattr(cbramod_encoder, "PUBLISHED_SHA256", hashlib.sha256(content).hexdigest())
    recipe = CBraModModel(
        encoders={"eeg": CBraModSizes(weights=str(path)), "ecg": SMALL},
        pool="mean",
        token_dim=8,
        embedding_dim=8,
        dropout=0.0,
    )
    lengths = {"eeg": 400, "ecg": 80}
    model = build_model(recipe, (EEG, ECG), lengths, 2)
    ecg = {name: value.clone() for name, value in encoder_of(model, "ecg").state_dict().items()}
    cbramod_encoder.start_from_weights(model, recipe, (EEG, ECG))
    for name, value in encoder_of(model, "eeg").cbramod.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(torch.equal(value, ecg[name]) for name, value in encoder_of(model, "ecg").state_dict().items())
    # Microvolts at 200 Hz, or nothing.
    for strange in (msgspec.structs.replace(EEG, unit="mV"), msgspec.structs.replace(EEG, rate_hz=100.0)):
        with pytest.raises(RecipeError, match="microvolts at 200 Hz, and eeg comes in"):
            cbramod_encoder.start_from_weights(model, recipe, (strange, ECG))
    other = msgspec.structs.replace(recipe, encoders={**recipe.encoders, "ecg": recipe.encoders["eeg"]})
    with pytest.raises(RecipeError, match="ecg comes in mV at 100 Hz"):
        cbramod_encoder.start_from_weights(
            build_model(other, (EEG, ECG), {**lengths, "ecg": 200}, 2), other, (EEG, ECG)
        )


class Harmful:
    """What a pickle can hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('a file of weights was executed')",)


def test_wrong_weights_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    with pytest.raises(DataError, match="cannot read CBraMod's weights"):
        cbramod_encoder.load_state(path)
    path.write_bytes(b"weights")
    with pytest.raises(DataError, match="not a file of weights"):
        cbramod_encoder.load_state(path)
    torch.save({"weights": Harmful()}, path)
    with pytest.raises(DataError, match="not a file of weights that PyTorch reads safely"):
        cbramod_encoder.load_state(path)
    state = CBraMod().state_dict()
    del state["proj_out.0.bias"]
    torch.save(state, path)
    with pytest.raises(DataError, match=r"1 of its tensors .* 'proj_out.0.bias' for one \(wanted \(200,\), found None"):
        cbramod_encoder.load_state(path)
    torch.save([1, 2], path)
    with pytest.raises(DataError, match="211 of its tensors"):
        cbramod_encoder.load_state(path)


# The model around the encoders.


@pytest.mark.parametrize("pool", ["mean", "flat"])
def test_model_has_the_common_shape(pool: str) -> None:
    model = small_model(msgspec.structs.replace(RECIPE, pool=pool))
    windows = random_windows(4)
    logits, embedding = model(windows, torch.ones(4, 2, dtype=torch.bool))
    assert logits.shape == (4, 3) and embedding.shape == (4, 10)
    assert model.tokens(windows).shape == (4, 2, 12)
    wide = 16 if pool == "mean" else 16 * 3 * 4
    assert encoder_of(model, "eeg").features(windows["eeg"]).shape == (4, wide)


def test_window_must_be_whole_patches_and_encoder_known() -> None:
    with pytest.raises(RecipeError, match=r"\[model.encoders.ecg\] patch = 20: .* 90 samples \(100 Hz\)"):
        build_model(RECIPE, (EEG, ECG), {"eeg": 160, "ecg": 90}, 2)
    with pytest.raises(RecipeError, match="lacks 'ppg'"):
        build_model(RECIPE, (Modality("ppg", ("green",), "au", 64.0),), {"ppg": 640}, 2)


def test_absent_modality_is_its_mask_token_and_changes_no_other() -> None:
    """The paper's concatenation says nothing of an absent modality. Here it is defined, and what lies in its place is
    not looked at: neither numbers nor NaN reach the tokens of those that are there, the logits or the embedding."""
    model = small_model()
    windows = random_windows(5)
    present = torch.tensor([[True, False]]).expand(5, 2)
    tokens = model.tokens(windows)
    logits, embedding = model(windows, present)
    for strange in (torch.zeros(5, 2, 80), torch.full((5, 2, 80), 1e6), torch.full((5, 2, 80), torch.nan)):
        changed = {**windows, "ecg": strange}
        assert torch.equal(model.tokens(changed)[:, 0], tokens[:, 0])
        for one, other in zip(model(changed, present), (logits, embedding), strict=True):
            assert torch.equal(one, other)
    masked = model.mask(tokens, present)
    assert torch.equal(masked[:, 1], model.mask_tokens[1].expand(5, -1))
    both, _ = model(windows, torch.ones(5, 2, dtype=torch.bool))
    assert not torch.allclose(both, logits)


def test_removing_and_zeroing_a_channel_differ_and_both_touch_the_others() -> None:
    """Group norms, positions and attention couple channels, so a lost one has no defined input inside an encoder."""
    torch.manual_seed(0)
    model = CBraMod(SMALL).eval()
    values = torch.randn(2, 4, 6, 20)
    zeroed = values.clone()
    zeroed[:, 3] = 0
    with torch.no_grad():
        whole, removed, silent = model.features(values), model.features(values[:, :3]), model.features(zeroed)
    kept = whole[:, :3]
    for one, other in ((kept, removed), (kept, silent[:, :3]), (removed, silent[:, :3])):
        assert float((one - other).abs().mean()) > 0.01


def test_order_of_channels_matters() -> None:
    torch.manual_seed(0)
    model = CBraMod(SMALL).eval()
    values = torch.randn(1, 4, 6, 20)
    with torch.no_grad():
        turned = model.features(values.flip(1)).flip(1)
        assert float((model.features(values) - turned).abs().mean()) > 0.01


@pytest.mark.parametrize("tuning", ["whole encoders", "low-rank additions"])
def test_fine_tuning_says_that_the_reconstruction_does_not_learn(tuning: str) -> None:
    """Many processes must know: DistributedDataParallel waits for the gradient of every parameter otherwise."""
    model = small_model()
    if tuning == "low-rank additions":
        lora.attach(model, LoraRecipe(rank=2, alpha=4.0))
    objective = finetune.Finetuning(model, load_recipe(find_recipe("hapt")).finetune)
    present = torch.ones(4, 2, dtype=torch.bool)
    objective(random_windows(4), present, torch.tensor([0, 1, 2, 0]))["loss"].backward()
    unused = {name for name, one in objective.named_parameters() if one.requires_grad and one.grad is None}
    assert unused and all(".proj_out." in name for name in unused)
    assert not objective.uses_all
