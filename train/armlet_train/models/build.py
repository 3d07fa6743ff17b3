"""From a recipe to its model: the one place that knows all kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from armlet_runtime.modalities import Modality

from ..recipes import (
    CBraModModel,
    ConvModel,
    CrosslModel,
    ModelRecipe,
    MuMaeModel,
)
from . import cbramod_encoder, conv, crossl, mumae
from .base import ArmletModel


def build_model(
    recipe: ModelRecipe, modalities: Sequence[Modality], lengths: Mapping[str, int], labels: int
) -> ArmletModel:
    """A fresh model, its weights from PyTorch's generator.

    Args:
        recipe: What kind, and its sizes.
        modalities: In the order of the tokens.
        lengths: Modality name to samples of a window.
        labels: Number of classes.

    Raises:
        RecipeError: The kind cannot be built for these modalities.
    """
    match recipe:
        case ConvModel():
            return conv.build(recipe, modalities, lengths, labels)
        case CrosslModel():
            return crossl.build(recipe, modalities, labels)
        case CBraModModel():
            return cbramod_encoder.build(recipe, modalities, lengths, labels)
        case MuMaeModel():
            return mumae.build(recipe, modalities, lengths, labels)
        case _:
            raise AssertionError(f"no builder for {type(recipe).__name__}")
