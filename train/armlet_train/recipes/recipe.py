"""Recipes: one TOML file holds every number of a training, checked against the structs of this wing.

A recipe is named by its path, or by the name of one that comes with armlet (``hapt``, ``hapt-demo``).
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import tomllib

from armlet_runtime.bundle import Presence
from armlet_runtime.errors import RecipeError

from .data import DataRecipe
from .export import ExportRecipe, QatRecipe
from .mistakes import explain
from .models import CBraModModel, ConvModel, CrosslModel, MuMaeModel
from .training import (
    CheckpointRecipe,
    CrosslPretrain,
    DualPretrain,
    FewShotRecipe,
    FinetuneRecipe,
    MuMaePretrain,
    NoPretrain,
)

# The kinds of models and the methods of pretraining that a recipe can name.
Model = ConvModel | CrosslModel | MuMaeModel | CBraModModel
Pretrain = CrosslPretrain | MuMaePretrain | DualPretrain | NoPretrain


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training, from windows to int8."""

    data: DataRecipe
    model: Model
    pretrain: Pretrain
    finetune: FinetuneRecipe
    qat: QatRecipe
    presence: Presence = Presence()
    checkpoints: CheckpointRecipe = CheckpointRecipe()
    fewshot: FewShotRecipe | None = None
    export: ExportRecipe = ExportRecipe()

    def __post_init__(self) -> None:
        encoders = self.model.encoders if isinstance(self.model, CBraModModel) else {}
        for name, sizes in encoders.items():
            if sizes.weights is not None and self.data.scale.get(name) != 100.0:
                raise ValueError(f"[model.encoders.{name}] weights take microvolts / 100: set [data.scale] {name}=100")


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by name.

    Raises:
        RecipeError: There is no such recipe.
    """
    if Path(name).is_file():
        return Path(name)
    # The wheel has them beside this file, the repository beside the package.
    folders = [Path(__file__).parent, Path(__file__).parents[2] / "recipes"]
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    known = sorted(path.stem for folder in folders for path in folder.glob("*.toml"))
    raise RecipeError(f"there is no recipe '{name}': give the path of a .toml file, or one of {', '.join(known)}")


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: It is not TOML, has an unknown key, lacks one, or has a value of a wrong type.
    """
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
    try:
        return msgspec.convert(table, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {explain(str(error), table, Recipe)}") from None
