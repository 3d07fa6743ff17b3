"""Recipes: one TOML file holds every number of a training, checked against the structs here.

A recipe is named by its path, or by the name of one that comes with armlet (``hapt``, ``hapt-demo``).
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

import msgspec
import tomllib

from armlet_runtime.errors import RecipeError
from armlet_runtime.manifest import Presence


class DataRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is learned from, and how it is cut.

    Attributes:
        name: A data set that armlet knows, or a folder in armlet's format (see ``train/DATA.md``).
        modalities: The model's modalities, in its order.
        labels: The labels that the classifier tells apart; windows with any other, or with several, are left out of
            fine-tuning and scoring. Pretraining uses all windows.
        window_s: Length of a window.
        stride_s: From window to window in scoring.
        hop_s: From window to window in the live loop.
        knee: Modality to the knee of its scale, see :class:`armlet_runtime.windows.Normalisation`.
        path: Where a person keeps a data set that cannot be fetched.
        hold_out: Labels kept out of training: no window of training people touches one.
        scale: Modality to the constant that its values are divided by, instead of the training people's mean and
            deviation: what a pretrained encoder expects, such as 100 for its 100 uV.
    """

    name: str
    modalities: tuple[str, ...]
    labels: tuple[str, ...]
    window_s: float
    stride_s: float
    hop_s: float
    knee: dict[str, float] = {}
    path: str | None = None
    hold_out: tuple[str, ...] = ()
    scale: dict[str, float] = {}


class AugmentRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How training windows are changed; see :mod:`armlet_train.augment`.

    Attributes:
        rotation_deg: Standard deviation of the angle by which a wearable sits askew.
        scale: Standard deviation of a modality's gain error.
        jitter: Largest standard deviation of added noise, in standard deviations of the signal.
        gap: Probability that a modality has a gap of up to ``gap_share`` of the window.
        gap_share: Largest share of the window that a gap takes.
    """

    rotation_deg: float
    scale: float
    jitter: float
    gap: float
    gap_share: float = 0.4


class ModelRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of the model; see :mod:`armlet_train.models`."""

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    token_dim: int
    hidden_dim: int
    embedding_dim: int
    dropout: float


class PretrainRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """CroSSL pretraining; see :mod:`armlet_train.crossl`.

    Attributes:
        epochs: Passes over as many windows as the training people have at ``stride_s``.
        batch: Windows a step.
        learning_rate: Peak; linear warm-up over the first twentieth, then half a cosine to zero.
        weight_decay: Of AdamW.
        similarity: VICReg's invariance coefficient.
        variance: VICReg's variance coefficient.
        covariance: VICReg's covariance coefficient.
        projection_dim: Width of the space in which VICReg compares.
        neighbour_s: How far the second view's window may lie from the first's, within the same recording. People go on
            with what they do, so windows close in time belong together, wherever a step begins in them.
        mask: What stands for a hidden token: a learned one (``token``) or zeros (``zero``, as published).
        seed: Of everything random.
        augment: Changes to the windows; each of the two views has its own.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    similarity: float
    variance: float
    covariance: float
    projection_dim: int
    neighbour_s: float
    mask: Literal["token", "zero"]
    seed: int
    augment: AugmentRecipe


class FinetuneRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fine-tuning with a classifier under modality dropout; see :mod:`armlet_train.finetune`.

    Attributes:
        epochs: Passes over as many windows as the training people have with one label at ``stride_s``.
        batch: Windows a step; each is seen in every subset of the modalities.
        learning_rate: Peak; linear warm-up over the first twentieth, then half a cosine to zero.
        weight_decay: Of AdamW.
        label_smoothing: Of the cross-entropy.
        average: Decay of the running average of the weights, which is what is kept.
        seed: Of everything random.
        augment: Changes to the windows.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    average: float
    seed: int
    augment: AugmentRecipe


class QatRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Quantisation-aware training and what int8 may cost; read by ``armlet export``.

    Attributes:
        epochs: Passes over the training windows.
        learning_rate: At the start; it falls to zero along half a cosine.
        distillation: Share of the loss that is the divergence from the float model; the rest is cross-entropy.
        frozen_epochs: Last epochs in which the activations' ranges stay as they are.
        max_f1_loss: Largest loss of macro-F1 in any subset on validation people (0.01 is one point).
        min_agreement: Smallest share of validation windows with the float model's arg max, in any subset.
    """

    epochs: int
    learning_rate: float
    distillation: float
    frozen_epochs: int
    max_f1_loss: float
    min_agreement: float


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training, from windows to int8."""

    data: DataRecipe
    model: ModelRecipe
    pretrain: PretrainRecipe
    finetune: FinetuneRecipe
    qat: QatRecipe
    presence: Presence = Presence()


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by name.

    Raises:
        RecipeError: There is none.
    """
    if Path(name).is_file():
        return Path(name)
    # In the repository recipes lie beside the package, in the wheel inside it.
    folders = [Path(__file__).parent / "recipes", Path(__file__).parent.parent / "recipes"]
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
        recipe = msgspec.convert(table, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {_explain(str(error), table)}") from None
    model = recipe.model
    if not len(model.channels) == len(model.kernels) == len(model.strides) > 0:
        raise RecipeError(f"{path}: [model] channels, kernels and strides must have one entry for each layer")
    return recipe


def _explain(message: str, table: dict[str, Any]) -> str:
    """msgspec's message, with the nearest known key where one is unknown."""
    unknown = re.match(r"Object contains unknown field `(.+?)`(?: - at `\$\.?(.*?)`)?$", message)
    if unknown is None:
        return message.replace("`$.", "`")
    key, place = unknown[1], unknown[2] or ""
    kind: Any = Recipe
    for part in filter(None, place.split(".")):
        kind = {field.name: field.type for field in msgspec.structs.fields(kind)}[part]
    names = [field.name for field in msgspec.structs.fields(kind)]
    near = difflib.get_close_matches(key, names, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names)}"
    return f"[{place or 'top level'}] has no key '{key}'; {hint}"
