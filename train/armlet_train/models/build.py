"""From a recipe to its model and its method of pretraining: the one place that knows all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from armlet_runtime.modalities import Modality

from . import cbramod, conv, crossl, dual, mumae
from .loop import Pretraining
from .models import ArmletModel
from .recipes import (
    CBraModModel,
    ConvModel,
    CrosslModel,
    CrosslPretrain,
    DualPretrain,
    ModelRecipe,
    MuMaeModel,
    MuMaePretrain,
    PretrainRecipe,
)


def build_model(
    recipe: ModelRecipe, modalities: Sequence[Modality], lengths: Mapping[str, int], labels: int
) -> ArmletModel:
    """A fresh model, its weights from PyTorch's generator.

    Args:
        recipe: What kind, and its sizes.
        modalities: In the order of the tokens.
        lengths: Modality name to samples of a window.
        labels: How many the classifier tells apart.

    Raises:
        RecipeError: The kind cannot be built for these modalities.
    """
    match recipe:
        case ConvModel():
            return conv.build(recipe, modalities, lengths, labels)
        case CrosslModel():
            return crossl.build(recipe, modalities, labels)
        case CBraModModel():
            return cbramod.build(recipe, modalities, lengths, labels)
        case MuMaeModel():
            return mumae.build(recipe, modalities, lengths, labels)
        case _:
            raise AssertionError(f"no builder for {type(recipe).__name__}")


def build_pretraining(model: ArmletModel, recipe: PretrainRecipe) -> Pretraining:
    """The recipe's method around a model; what it adds is drawn from PyTorch's generator."""
    match recipe:
        case CrosslPretrain():
            return crossl.Crossl(model, recipe)
        case DualPretrain():
            return dual.Dual(model, recipe)
        case MuMaePretrain():
            return mumae.MuMae(model, recipe)
        case _:
            raise AssertionError(f"no method for {type(recipe).__name__}")
