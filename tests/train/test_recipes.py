"""Recipes: those that come with armlet are sound, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from armlet_runtime.errors import RecipeError
from armlet_train.data.datasets.base import KNOWN
from armlet_train.recipes import find_recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "train" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipe_that_comes_with_armlet_loads(path: Path) -> None:
    assert find_recipe(path.stem) == path
    assert load_recipe(path).data.name in KNOWN


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("epochs = ", "epoch = ", r"has no key 'epoch'; did you mean 'epochs'\?"),
        ("[model]", "[modell]", r"\[top level\] has no key 'modell'; did you mean 'model'\?"),
        (
            'kind = "conv"',
            'kind = "conv"\nmask = "tokens"',
            r"\[model\] cannot have mask = 'tokens'; did you mean 'token'\?",
        ),
        ("neighbour_s = 0.16", "keep = 1.0", r"keep must lie between 0 and 1"),
        ("similarity = ", "similar = ", r"\[pretrain\] has no key 'similar'; did you mean 'similarity'\?"),
        ("jitter = ", "jiter = ", r"\[pretrain.augment\] has no key 'jiter'; did you mean 'jitter'\?"),
        (
            'method = "crossl"',
            'method = "crosl"',
            r"\[pretrain\] cannot have method = 'crosl'; did you mean 'crossl'\?",
        ),
        ('method = "crossl"\n', "", r"\[pretrain\] lacks the key 'method'"),
        ("dropout = 0.2", 'dropout = "much"', "Expected `float`, got `str` - at `model.dropout`"),
        ("kernels = [", "kernels = [3, ", "one entry for each layer"),
        ("[data]", "[data", "cannot read the recipe"),
        ("token_dim = 64\n", "", r"\[model\] lacks the key 'token_dim'"),
    ],
)
def test_mistake_is_one_sentence(old: str, new: str, said: str, tmp_path: Path) -> None:
    text = (RECIPES / "hapt.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(RecipeError, match=said) as refused:
        load_recipe(path)
    assert str(path) in str(refused.value)


def test_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"hapt, .*hapt-demo"):
        find_recipe("wesad")
