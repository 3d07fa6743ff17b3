"""The models of the recipes become int8 programs, each `.pte` one XNNPACK delegate."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor, nn

from armlet_export.backends.base import LoweredPart, Part, Signature
from armlet_export.backends.registry import lower_part
from armlet_export.quantise.fake_quant import learn_ranges, prepare
from armlet_runtime.modalities import Modality
from armlet_train.data.datasets import dreamer, hapt, ptb_xl, sleep_edf
from armlet_train.data.datasets import simulated as made
from armlet_train.models.base import fold_batchnorm
from armlet_train.models.build import build_model
from armlet_train.recipes import CBraModModel, ModelRecipe, MuMaeModel, load_recipe

from .conftest import run_tiny

pytestmark = pytest.mark.full("lowers every recipe's parts")

RECIPES = Path(__file__).parents[2] / "train" / "recipes"
SIGNALS: dict[str, tuple[Modality, ...]] = {
    "hapt": (hapt.ACC, hapt.GYRO),
    "made": (made.ECG, made.PPG, made.RSP, made.EDA, made.ACC),
    "dreamer": (dreamer.EEG, dreamer.ECG),
    "ptb-xl": (ptb_xl.ECG,),
    "sleep-edf": (sleep_edf.EEG, sleep_edf.EOG),
}
PARTS = [
    ("hapt", "acc", ("executorch",)),
    ("hapt-crossl", "acc", ("executorch",)),
    ("hapt-mumae", "aggregator", ("executorch",)),
    ("hapt-dual", "acc", ("executorch",)),
    ("hapt-dual", "aggregator", ("litert",)),
    ("dreamer-cbramod", "eeg", ("executorch",)),
    ("ptb-xl-dual", "ecg", ("executorch",)),
]


def one_layer(recipe: ModelRecipe) -> ModelRecipe:
    """A transformer of one layer: the others are like it."""
    if isinstance(recipe, MuMaeModel):
        return msgspec.structs.replace(recipe, depth=1)
    if isinstance(recipe, CBraModModel):
        encoders = {name: msgspec.structs.replace(sizes, layers=1) for name, sizes in recipe.encoders.items()}
        return msgspec.structs.replace(recipe, encoders=encoders)
    return recipe


def part_of(name: str, part: str, precision: str) -> Part:
    """A part of a recipe's untrained model; for int8 with ranges of random inputs."""
    recipe = load_recipe(RECIPES / f"{name}.toml")
    signals = [signal for signal in SIGNALS[recipe.data.name] if signal.name in recipe.data.modalities]
    lengths = {signal.name: round(recipe.data.window_s * signal.rate_hz) for signal in signals}
    labels = len(recipe.data.labels)
    torch.manual_seed(0)
    model = fold_batchnorm(build_model(one_layer(recipe.model), signals, lengths, labels))
    module: nn.Module
    if part == "aggregator":
        outputs: dict[str, tuple[int, ...]] = {"logits": (1, labels), "embedding": (1, model.embedding_dim)}
        module, signature = model.aggregator, Signature("tokens", (1, len(signals) * model.token_dim), outputs)
    else:
        (channels,) = (len(signal.channels) for signal in signals if signal.name == part)
        module = model.encoders[part]
        signature = Signature("window", (1, channels, lengths[part]), {"token": (1, model.token_dim)})
    if precision == "fp32":
        return Part(module, signature, "fp32")
    prepared = prepare(module, signature.example())
    with torch.no_grad():
        prepared(torch.randn(2, *signature.input_shape[1:]))
    learn_ranges(prepared, False)
    return Part(module, signature, "int8", prepared)


def outputs_of(engine: str, part: Part, made: LoweredPart) -> list[tuple[Tensor, Tensor]]:
    """What the finished program gives for some inputs, each beside what its PyTorch module gives."""
    values = torch.randn(2, *part.signature.input_shape[1:], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = part.reference()(values)
    mine = map(torch.from_numpy, run_tiny(engine, made, part, values))
    return list(zip(mine, wanted if isinstance(wanted, tuple) else (wanted,), strict=True))


def test_every_kind_of_model_is_among_them() -> None:
    kinds = {type(load_recipe(path).model) for path in RECIPES.glob("*.toml")}
    assert {type(load_recipe(RECIPES / f"{name}.toml").model) for name, _, _ in PARTS} == kinds


@pytest.mark.long(limit_s=240, reason="lowers an encoder of CBraMod's size for each engine")
@pytest.mark.parametrize(("name", "part", "engines"), PARTS)
def test_a_recipe_s_part_is_int8(name: str, part: str, engines: tuple[str, ...]) -> None:
    given = part_of(name, part, "int8")
    for engine in engines:
        made = lower_part(engine, given)
        assert made.program.int8_weight_share >= 0.95
        if engine == "executorch":
            assert made.program.delegates == 1 and made.program.outside == {}
        # The logits; on the embedding beside them see test_known_faults.py.
        for mine, wanted in outputs_of(engine, given, made)[:1]:
            steps = (mine - wanted).abs() / (wanted.max() - wanted.min()) * 255
            # A rounding that falls to the other side early may move what comes out by some steps.
            assert steps.mean() <= 1.5 and steps.max() <= 8, engine


def test_a_transformer_is_one_delegate_in_float() -> None:
    given = part_of("hapt-dual", "acc", "fp32")
    made = lower_part("executorch", given)
    assert made.program.delegates == 1 and made.program.outside == {}
    for mine, wanted in outputs_of("executorch", given, made):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-4)
