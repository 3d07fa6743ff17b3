"""One model against 31 specialists on MADE data: does serving every subset cost anything in any of them?

The one model learns every window in every subset of its five modalities. A specialist of a subset is a model of the
same recipe and sizes that has the encoders of that subset only, and learns every window in that subset alone. Both see
the same people, the one model for :data:`TIMES` as many epochs (a twelfth of what the 31 have together), and are scored
on the same windows of test people: those that have every modality of the subset. The people are simulated
(:mod:`armlet_train.data.datasets.simulated`), so the table compares trainings and says nothing about wearers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch

from armlet_runtime.arrays import Int64
from armlet_runtime.metrics import macro_f1
from armlet_runtime.modalities import subset_name, subsets
from armlet_runtime.windows import Normalisation

from ..data import Augment, Corpus, Labelled, Scored, Source, draw_epoch, load_corpus, score_windows, steps_per_epoch
from ..engine import checkpoints, finetune, run_folder, train
from ..models import ArmletModel
from ..recipes import Recipe, find_recipe, load_recipe
from .grid import Advance, Cell, Table, run_grid

RECIPE = "made"

TIMES = 2.5
"""Epochs of the one model, which has 31 tasks to learn, to those of a specialist; chosen on validation people: mean
macro-F1 over the subsets 0.730, against 0.718 with 1."""


class Row(msgspec.Struct, frozen=True):
    """Macro-F1 on test people in one subset. ``windows``: how many have all of its modalities."""

    subset: str
    windows: int
    one: float
    specialist: float


class MadeReport(msgspec.Struct, frozen=True):
    """The table, and what it was made of.

    Attributes:
        suite: ``made``.
        quick: Whether its figures are void.
        data: What is said of the data wherever the table is shown.
        recipe: Of all models.
        people: Simulated ones, of all splits.
        parameters: Of the one model.
        seconds: Since the start of this call.
        rows: One a subset.
    """

    suite: str
    quick: bool
    data: str
    recipe: str
    people: int
    parameters: int
    seconds: float
    rows: list[Row]


def run(folder: Path, quick: bool, device: torch.device, advance: Advance) -> MadeReport:
    """Train and score all 32; begun again in the same folder, it goes on where it stopped.

    Args:
        folder: For finished models' figures and checkpoints.
        quick: Eight people and a step or two each, for tests of the path; its figures mean nothing.
        device: CPU or GPU.
        advance: Called with parts done and parts in all.

    Raises:
        MissingExtraError: neurokit2 is not installed.
    """
    began = time.monotonic()
    recipe = _quick(load_recipe(find_recipe(RECIPE))) if quick else load_recipe(find_recipe(RECIPE))
    corpus, validation, test = (
        load_corpus(recipe.data, split, recipe.presence) for split in ("train", "validation", "test")
    )
    normalisation = corpus.normalisation()
    scored = score_windows(test, normalisation)
    folder = folder / checkpoints.fingerprint(recipe, TIMES, _digest(corpus))[:16]
    names = [modality.name for modality in corpus.modalities]

    def one_model(advance: Advance) -> dict[str, float]:
        model = _one_model(recipe, corpus, normalisation, validation, device, folder, advance)
        predicted = finetune.all_logits(model, scored.windows, scored.present).argmax(axis=2)
        return {
            subset_name(subset): _score(scored, names, subset, row, len(corpus.labels))
            for subset, row in zip(subsets(names), predicted, strict=True)
        }

    def specialist(subset: tuple[str, ...], advance: Advance) -> dict[str, float]:
        model = _specialist(recipe, corpus, normalisation, subset, device, folder, advance)
        windows = {modality: scored.windows[modality] for modality in subset}
        predicted = finetune.all_logits(model, windows)[0].argmax(axis=1)  # the whole subset comes first
        return {subset_name(subset): _score(scored, names, subset, predicted, len(corpus.labels))}

    cells = [Cell("one.json", one_model)]
    cells += [Cell(f"{subset_name(subset)}.json", partial(specialist, subset)) for subset in subsets(names)]
    figures, *specialists = run_grid(cells, dict[str, float], folder, advance)
    rows = []
    for subset, special in zip(subsets(names), specialists, strict=True):
        name = subset_name(subset)
        rows.append(Row(name, int(scored.having(names, subset).sum()), figures[name], special[name]))
    parameters = sum(parameter.numel() for parameter in run_folder.build_model(recipe, corpus.modalities).parameters())
    people = len(corpus.wearers) + len(validation.wearers) + len(test.wearers)
    data = f"MADE data: {people} simulated people, no measurements"
    return MadeReport("made", quick, data, RECIPE, people, parameters, time.monotonic() - began, rows)


def tables(report: MadeReport) -> list[Table]:
    """The table of a report."""
    rows = [
        [row.subset, str(row.windows), f"{row.one:.3f}", f"{row.specialist:.3f}", f"{row.one - row.specialist:+.3f}"]
        for row in report.rows
    ]
    one_model, special = (float(np.mean([getattr(row, name) for row in report.rows])) for name in ("one", "specialist"))
    rows.append([f"mean of {len(rows)}", "", f"{one_model:.3f}", f"{special:.3f}", f"{one_model - special:+.3f}"])
    title = f"{report.data}. Macro-F1 on test people: one model in every subset, and a specialist of each"
    return [Table(title, ["subset", "windows", "one model", "specialist", "difference"], rows)]


def _quick(recipe: Recipe) -> Recipe:
    return msgspec.structs.replace(
        recipe,
        data=msgspec.structs.replace(recipe.data, name="made-quick"),
        finetune=msgspec.structs.replace(recipe.finetune, epochs=1, batch=32),
    )


def _one_model(
    recipe: Recipe,
    corpus: Corpus,
    normalisation: dict[str, Normalisation],
    validation: Corpus,
    device: torch.device,
    folder: Path,
    advance: Advance,
) -> ArmletModel:
    longer = msgspec.structs.replace(recipe.finetune, epochs=round(TIMES * recipe.finetune.epochs))
    return finetune.finetune(
        run_folder.build_model(recipe, corpus.modalities), corpus, normalisation,
        score_windows(validation, normalisation), longer, recipe.checkpoints, device,
        folder / "checkpoints", advance=advance,
    )  # fmt: skip


def _specialist(
    recipe: Recipe,
    corpus: Corpus,
    normalisation: dict[str, Normalisation],
    subset: tuple[str, ...],
    device: torch.device,
    folder: Path,
    advance: Advance,
) -> ArmletModel:
    alone = dataclasses.replace(
        corpus, modalities=tuple(modality for modality in corpus.modalities if modality.name in subset)
    )
    numbers = {name: normalisation[name] for name in subset}
    model = run_folder.build_model(recipe, alone.modalities)
    expected = checkpoints.fingerprint(recipe.finetune, subset, checkpoints.state_digest(model))
    objective = finetune.Finetuning(model, msgspec.structs.replace(recipe.finetune, subsets="whole"))
    source, augment = Source(alone, device), Augment(recipe.finetune.augment, numbers, device)
    # As many steps as the one model has, also where fewer windows have a modality of the subset.
    steps = steps_per_epoch(corpus, recipe.finetune.batch, labelled=True)

    def batches(order: np.random.Generator, first: int) -> Iterator[Labelled]:
        plan = draw_epoch(alone, steps, recipe.finetune.batch, True, order)
        for drawn in source.batches(plan[first:]):
            yield drawn._replace(windows=augment(drawn.windows))

    keeper = checkpoints.Keeper(
        folder / "checkpoints", f"specialist-{subset_name(subset)}", expected, recipe.checkpoints
    )
    train(
        objective, batches, steps, recipe.finetune, finetune.STAGE, device, keeper, lambda epoch, terms: None, advance
    )  # fmt: skip
    return objective.average.requires_grad_(True).cpu().eval()


def _score(scored: Scored, names: list[str], subset: tuple[str, ...], predicted: Int64, classes: int) -> float:
    having = scored.having(names, subset)
    return macro_f1(scored.truth[having], predicted[having], classes)


def _digest(corpus: Corpus) -> str:
    """Of what the corpus holds, so that figures of other data are not gone on from."""
    digest = hashlib.sha256()
    for piece in corpus.pieces:
        digest.update(msgspec.json.encode([piece.name, piece.duration_s, dict(piece.moments)]))
    return digest.hexdigest()
