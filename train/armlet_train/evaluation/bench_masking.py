"""The masking suite: what CroSSL's choices are worth, on real data.

Armlet's small model is pretrained for a few epochs with each strategy, keep ratio and mask policy, and with the rival
objectives; then it is frozen. Two things are read from it on people it has not seen: a linear probe on its encoders
with few labels, and one on its *embedding*, which learns from windows with all modalities and is scored on every
subset: how much of what the aggregator knows outlasts a hidden modality. People of the validation split are scored,
since choices are made by these figures.
"""

from __future__ import annotations

import hashlib
from functools import partial
from itertools import product
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from armlet_runtime.arrays import Float32
from armlet_runtime.machine import Machine, describe
from armlet_runtime.metrics import macro_f1
from armlet_runtime.modalities import subset_name, subsets

from ..data import Corpus, Scored, in_batches, load_corpus
from ..engine import pretrain, run_folder
from ..models import ArmletModel
from ..recipes import ConvModel, CrosslPretrain, Recipe, find_recipe, load_recipe
from . import scores
from .grid import Advance, Cell, Table, run_grid

RECIPE = "hapt"
EPOCHS = 6
K = 10
"""Labelled windows of each class for the few-label column."""


class Variant(msgspec.Struct, frozen=True):
    """The choices that make a row; ``mask`` is the model's mask policy."""

    objective: str
    strategy: str
    keep: float
    mask: str


VARIANTS = (
    *(Variant("vicreg", "spatial", keep, mask) for keep, mask in product(
        (0.5, 0.7, 0.9), ("zero", "token", "presence", "attention"))),
    # Hiding elements of a token leaves the token there: presence and attention have nothing to say about that.
    *(Variant("vicreg", "random", keep, mask) for keep, mask in product((0.5, 0.7, 0.9), ("zero", "token"))),
    Variant("nt-xent", "spatial", 0.5, "token"),
    Variant("cocoa", "spatial", 0.5, "token"),
)  # fmt: skip


class Row(msgspec.Struct, frozen=True):
    """Macro-F1 of one variant: few labels on the encoders, all labels on the embedding (by subset).

    COCOA trains no aggregator, so it has no embedding to look at.
    """

    variant: Variant
    few_label: float
    embedding: dict[str, float]


class MaskingReport(msgspec.Struct, frozen=True):
    """What ``armlet evaluate --suite masking --json`` writes."""

    suite: str
    quick: bool
    split: str
    recipe: str
    epochs: int
    k: int
    rows: list[Row]
    machine: Machine


def run(folder: Path, quick: bool, device: torch.device, advance: Advance) -> MaskingReport:
    """Make every row that is not in the folder yet.

    Args:
        folder: Keeps finished rows.
        quick: Two variants, one epoch of large batches; for tests of the path.
        device: CPU or GPU.
        advance: Called with parts done and parts in all.
    """
    recipe = load_recipe(find_recipe(RECIPE))
    corpus = load_corpus(recipe.data, "train", recipe.presence)
    scored = load_corpus(recipe.data, "validation", recipe.presence)
    epochs, variants = (1, VARIANTS[:1] + VARIANTS[-1:]) if quick else (EPOCHS, VARIANTS)
    cells = [_cell(_vary(recipe, variant, epochs), variant, corpus, scored, folder, device) for variant in variants]
    rows = run_grid(cells, Row, folder, advance)
    return MaskingReport("masking", quick, "validation", RECIPE, epochs, K, rows, describe())


def tables(report: MaskingReport) -> list[Table]:
    """The table of a report."""
    names = list(report.rows[0].embedding)
    title = (
        f"Armlet's small model after {report.epochs} epochs, macro-F1 on {report.split} people: linear probe on the "
        f"encoders with {report.k} labelled windows of each class, and on the embedding of each subset"
    )
    rows = []
    for row in report.rows:
        variant = row.variant
        # COCOA compares tokens, and hides none.
        choices = ["-"] * 3 if variant.objective == "cocoa" else [variant.strategy, f"{variant.keep:g}", variant.mask]
        embedding = [f"{row.embedding[name]:.3f}" if name in row.embedding else "-" for name in names]
        rows.append([variant.objective, *choices, f"{row.few_label:.3f}", *embedding])
    return [Table(title, ["objective", "strategy", "keep", "mask policy", f"k = {report.k}", *names], rows)]


def _vary(recipe: Recipe, variant: Variant, epochs: int) -> Recipe:
    assert isinstance(recipe.model, ConvModel) and isinstance(recipe.pretrain, CrosslPretrain)
    replace = msgspec.structs.replace
    return replace(
        recipe,
        model=replace(recipe.model, mask=variant.mask),
        pretrain=replace(
            recipe.pretrain,
            epochs=epochs,
            every_mask=False,
            objective=variant.objective,
            strategy=variant.strategy,
            keep=variant.keep,
        ),
    )


def _cell(
    recipe: Recipe, variant: Variant, train: Corpus, scored: Corpus, folder: Path, device: torch.device
) -> Cell[Row]:
    digest = hashlib.sha256(msgspec.json.encode(recipe)).hexdigest()[:12]
    checkpoints = folder / digest
    return Cell(
        f"row-{digest}.json", lambda advance: _row(recipe, variant, train, scored, checkpoints, device, advance)
    )


def _row(
    recipe: Recipe,
    variant: Variant,
    train: Corpus,
    scored: Corpus,
    folder: Path,
    device: torch.device,
    advance: Advance,
) -> Row:
    model = run_folder.build_model(recipe, train.modalities)
    normalisation = train.normalisation()
    assert isinstance(recipe.pretrain, CrosslPretrain)
    pretrain.pretrain(
        model, train, normalisation, recipe.pretrain, recipe.checkpoints, device, folder, advance=advance,
    )  # fmt: skip
    people = scores.probe_people(train, scored, normalisation)
    classes = len(train.labels)
    names = tuple(model.modalities)
    frozen = scores.standardise(scores.model_features(model), people, names)
    few = scores.few_label(frozen, people.labelled.truth, people.scored.truth, train.labels, ks=(K,))[0]
    if variant.objective == "cocoa":
        return Row(variant, few.macro_f1, {})
    whole = scores.standardise(partial(_embeddings, model), people, names)
    probe = scores.fit(whole.labelled, people.labelled.truth)
    embedding = {}
    for subset in subsets(names):
        seen = whole.apply(_embeddings(model, people.scored, subset))
        embedding[subset_name(subset)] = macro_f1(people.scored.truth, probe.predict(seen), classes)
    return Row(variant, few.macro_f1, embedding)


def _embeddings(model: ArmletModel, windows: Scored, subset: tuple[str, ...]) -> Float32:
    """(n, embedding_dim) of windows of which a subset is seen."""

    def embed(part: dict[str, Tensor], visible: Tensor) -> Tensor:
        embedding: Tensor = model(part, visible)[1]
        return embedding

    return in_batches(embed, windows.windows, scores.visible(windows, model, subset))
