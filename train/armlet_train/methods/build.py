"""From a recipe to its method of pretraining."""

from __future__ import annotations

from ..models import ArmletModel
from ..recipes import (
    CrosslPretrain,
    DualPretrain,
    MuMaePretrain,
    PretrainRecipe,
)
from . import crossl, dual_masking, mumae
from .base import Pretraining


def build_pretraining(model: ArmletModel, recipe: PretrainRecipe) -> Pretraining:
    """The recipe's method around a model; what it adds is drawn from PyTorch's generator."""
    match recipe:
        case CrosslPretrain():
            return crossl.Crossl(model, recipe)
        case DualPretrain():
            return dual_masking.Dual(model, recipe)
        case MuMaePretrain():
            return mumae.MuMae(model, recipe)
        case _:
            raise AssertionError(f"no method for {type(recipe).__name__}")
