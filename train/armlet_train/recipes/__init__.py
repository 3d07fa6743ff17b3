"""Recipes: one TOML file holds every number of a training; a struct for each of its sections.

Imports the runtime only.
"""

from .data import AugmentRecipe, DataRecipe
from .export import ExportRecipe, QatRecipe
from .models import CBraModModel, CBraModSizes, ConvModel, CrosslModel, Fusion, ModelRecipe, MuMaeModel, VideoRecipe
from .recipe import Model, Pretrain, Recipe, find_recipe, load_recipe
from .training import (
    CheckpointRecipe,
    CrosslPretrain,
    DualPretrain,
    FewShotRecipe,
    FinetuneRecipe,
    LoraRecipe,
    Masking,
    MuMaePretrain,
    NoPretrain,
    PretrainRecipe,
    TrainingRecipe,
)

__all__ = [
    "AugmentRecipe",
    "CBraModModel",
    "CBraModSizes",
    "CheckpointRecipe",
    "ConvModel",
    "CrosslModel",
    "CrosslPretrain",
    "DataRecipe",
    "DualPretrain",
    "ExportRecipe",
    "FewShotRecipe",
    "FinetuneRecipe",
    "Fusion",
    "LoraRecipe",
    "Masking",
    "Model",
    "ModelRecipe",
    "MuMaeModel",
    "MuMaePretrain",
    "NoPretrain",
    "Pretrain",
    "PretrainRecipe",
    "QatRecipe",
    "Recipe",
    "TrainingRecipe",
    "VideoRecipe",
    "find_recipe",
    "load_recipe",
]
