"""Pretraining: a method, the windows it sees, and the loop.

A method is a :class:`armlet_train.methods.base.Pretraining`; the recipe names it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import numpy as np
import torch

from armlet_runtime.windows import Normalisation

from .. import distributed
from ..data import Augment, Corpus, Source, Views, load_corpus, steps_per_epoch
from ..methods import build_pretraining
from ..models import ArmletModel, cbramod_encoder
from ..recipes import CBraModModel, CheckpointRecipe, NoPretrain, PretrainRecipe, load_recipe
from . import checkpoints, run_folder
from .run_log import RunLog
from .trainer import no_progress, train

STAGE = 1


class EpochReport(msgspec.Struct, frozen=True):
    """One epoch's mean of each term of the method's loss; ``loss`` is what is minimised."""

    epoch: int
    terms: dict[str, float]


def run_pretraining(
    path: Path,
    out: Path,
    device: torch.device,
    progress: Callable[[str], AbstractContextManager[Callable[[int, int], None]]] = no_progress,
) -> None:
    """Pretrain by a recipe and leave a run; a second call with the same arguments goes on from the last checkpoint.

    Args:
        path: The recipe's file.
        out: Folder of the run.
        device: CPU or GPU.
        progress: Takes a title and gives a context; what the context gives is called after each step with steps done
            and steps in all.

    Raises:
        DataError: The data cannot be had.
        RecipeError: The recipe has a mistake, or does not fit the data.
        RunError: The loss is not finite.
        UsageError: The folder holds something else, or the batch cannot be shared by the processes.
    """
    recipe = load_recipe(path)
    with distributed.processes(device):
        run_folder.start_run(out, path, "pretrain")
        began = time.monotonic()
        corpus = load_corpus(recipe.data, "train")
        model = run_folder.build_model(recipe, corpus.modalities)
        if isinstance(recipe.model, CBraModModel):
            cbramod_encoder.start_from_weights(model, recipe.model, corpus.modalities)
        if not isinstance(recipe.pretrain, NoPretrain):
            with RunLog(out, "pretrain") as report, progress("pretrain") as advance:
                pretrain(
                    model, corpus, corpus.normalisation(), recipe.pretrain, recipe.checkpoints, device,
                    out / "checkpoints", report, advance,
                )  # fmt: skip
        seconds = time.monotonic() - began
        run_folder.end_run(out, "pretrain", recipe, path.stem, corpus, model, seconds, device)


def pretrain(
    model: ArmletModel,
    corpus: Corpus,
    normalisation: Mapping[str, Normalisation],
    recipe: PretrainRecipe,
    keeping: CheckpointRecipe,
    device: torch.device,
    folder: Path,
    report: Callable[[EpochReport], None] = lambda _: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Pretrain ``model`` in place; a second call with the same arguments goes on from the last checkpoint.

    Args:
        model: Fresh from its seed; afterwards on the CPU, in evaluation mode.
        corpus: Training people's recordings; labels are not looked at.
        normalisation: Of the training people.
        recipe: The method and its numbers.
        keeping: When to write checkpoints.
        device: CPU or GPU.
        folder: For checkpoints.
        report: Called after each epoch.
        advance: Called after each step with steps done and steps in all.

    Raises:
        RunError: The loss is not finite.
        UsageError: The batch cannot be shared by the processes.
    """
    expected = checkpoints.fingerprint(recipe, corpus.wearers, checkpoints.state_digest(model))
    torch.manual_seed(recipe.seed)
    method = build_pretraining(model, recipe)
    source = Source(corpus, device)
    augment = Augment(recipe.augment, normalisation, device)
    steps = steps_per_epoch(corpus, recipe.batch, labelled=False)

    def batches(order: np.random.Generator, first: int) -> Iterator[Views]:
        return epoch_batches(source, augment, recipe, method.views, steps, order, first)

    def end_epoch(epoch: int, terms: dict[str, float]) -> None:
        report(EpochReport(epoch, terms))

    keeper = checkpoints.Keeper(folder, "pretrain", expected, keeping)
    train(method, batches, steps, recipe, STAGE, device, keeper, end_epoch, advance)
    model.to("cpu").eval()


def epoch_batches(
    source: Source,
    augment: Augment,
    recipe: PretrainRecipe,
    views: int,
    steps: int,
    order: np.random.Generator,
    first: int,
) -> Iterator[Views]:
    """The batches of an epoch from step ``first`` on; windows at random offsets, each view augmented apart."""
    corpus = source.corpus
    starts = corpus.draw(steps * recipe.batch, False, order)
    if views == 2:
        # The views of a window lie side by side, so that a share of the batch is a share of every draw.
        starts = np.stack([starts, corpus.neighbours(starts, recipe.neighbour_s, order)], axis=1)
    share = distributed.share(recipe.batch)
    plan = starts.reshape(steps, recipe.batch, views)[first:, share].reshape(steps - first, -1)
    for drawn in source.batches(np.ascontiguousarray(plan)):
        windows = augment(drawn.windows)
        each = tuple({name: window[view::views] for name, window in windows.items()} for view in range(views))
        yield Views(each, drawn.present.reshape(-1, views, drawn.present.shape[1]).all(dim=1))
