"""Fine-tuning: a classifier that keeps deciding when modalities are gone.

Every window is seen in every non-empty subset of its modalities, the encoders running once for all of them. The result
is a running average of the weights. (:class:`torch.optim.swa_utils.AveragedModel` has no decay that grows with the
steps but by a function of ours, which would do all the work.)
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from armlet_runtime.arrays import Float32
from armlet_runtime.errors import UsageError
from armlet_runtime.metrics import macro_f1
from armlet_runtime.modalities import subset_name, subsets
from armlet_runtime.windows import Normalisation

from .. import distributed
from ..data import (
    Augment,
    Corpus,
    Labelled,
    Scored,
    Source,
    draw_epoch,
    in_batches,
    load_corpus,
    score_windows,
    steps_per_epoch,
)
from ..methods import Objective
from ..models import ArmletModel, lora
from ..recipes import CheckpointRecipe, FinetuneRecipe, load_recipe
from . import checkpoints, run_folder
from .run_log import RunLog
from .trainer import no_progress, train

STAGE = 2


class EpochReport(msgspec.Struct, frozen=True):
    """One epoch: mean loss, and macro-F1 of each subset on validation people, by the subset's name."""

    epoch: int
    loss: float
    macro_f1: dict[str, float]


class Finetuning(Objective):
    """A model with the running average of its weights.

    Attributes:
        model: The model that is trained.
        average: The running average of its weights, which is the result.
    """

    def __init__(self, model: ArmletModel, recipe: FinetuneRecipe) -> None:
        """Start the average at the model."""
        super().__init__()
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.uses_all = all(getattr(encoder, "uses_all", True) for encoder in model.encoders.values())
        self._recipe = recipe

    def forward(self, windows: dict[str, Tensor], present: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy, summed over the subsets of what each window has, so that each weighs as it would alone."""
        if self._recipe.subsets == "whole":
            whole = distributed.widen(self.model(windows, present)[0])
            return {"loss": F.cross_entropy(whole, labels, label_smoothing=self._recipe.label_smoothing)}
        logits = distributed.widen(subset_logits(self.model, windows, present))
        losses = F.cross_entropy(
            logits.flatten(0, 1), labels.repeat(len(logits)),
            label_smoothing=self._recipe.label_smoothing, reduction="none",
        )  # fmt: skip
        possible = subset_masks(self.model.modalities, present.device)[:, None] <= present
        return {"loss": (losses.reshape(logits.shape[:2]) * possible.all(dim=2)).sum(dim=0).mean()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the average towards the model; far at the start, when the model moves far."""
        decay = min(self._recipe.average, (1 + step) / (10 + step))
        for kept, now in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(now, 1 - decay)
            else:
                kept.copy_(now)


def batches(
    corpus: Corpus, normalisation: Mapping[str, Normalisation], recipe: FinetuneRecipe, epoch: int, stage: int = STAGE
) -> Iterator[Labelled]:
    """The batches of one epoch, on the CPU, for a training of its own. Always the same for an epoch.

    Args:
        corpus: Training people's recordings.
        normalisation: Theirs.
        recipe: Batch size, seed and augmentation.
        epoch: Number of the epoch.
        stage: Tells trainings with the same seed apart.
    """
    cpu = torch.device("cpu")
    order = checkpoints.seed_epoch(recipe.seed, epoch, stage)
    return epoch_batches(Source(corpus, cpu), Augment(recipe.augment, normalisation, cpu), recipe, order, 0)


def epoch_batches(
    source: Source, augment: Augment, recipe: FinetuneRecipe, order: np.random.Generator, first: int
) -> Iterator[Labelled]:
    """From step ``first`` on: windows at random offsets, one label each, augmented."""
    steps = steps_per_epoch(source.corpus, recipe.batch, labelled=True)
    plan = draw_epoch(source.corpus, steps, recipe.batch, True, order)
    for drawn in source.batches(plan[first:]):
        yield drawn._replace(windows=augment(drawn.windows))


def subset_masks(names: list[str], device: torch.device) -> Tensor:
    """(subsets, modalities) bool, in the order of :func:`armlet_runtime.modalities.subsets`."""
    return torch.tensor([[name in subset for name in names] for subset in subsets(names)], device=device)


def subset_logits(model: ArmletModel, windows: Mapping[str, Tensor], present: Tensor | None = None) -> Tensor:
    """Logits (subsets, B, labels) of a batch in the order of :func:`armlet_runtime.modalities.subsets`.

    Args:
        model: Its encoders run once.
        windows: Modality name to (B, channels, samples), normalised.
        present: (B, modalities) bool; a modality that a window lacks is lacking in all of its subsets. All are there
            if not given.
    """
    tokens = model.tokens(windows)
    masks = subset_masks(model.modalities, tokens.device)
    # A window's subsets lie side by side, so that a share of the batch is a share of every random draw.
    visible = masks.expand(tokens.shape[0], -1, -1)
    if present is not None:
        visible = visible & present[:, None]
    rows = tokens[:, None].expand(-1, len(masks), -1, -1).flatten(0, 1)
    logits: Tensor = model.aggregator(model.mask(rows, visible.flatten(0, 1)).flatten(1))[0]
    return logits.reshape(*visible.shape[:2], -1).transpose(0, 1)


def all_logits(
    model: ArmletModel,
    windows: Mapping[str, Float32],
    present: NDArray[np.bool_] | None = None,
    device: torch.device | None = None,
) -> Float32:
    """Logits (subsets, n, labels) for normalised windows (n, channels, samples); see :func:`subset_logits`.

    Args:
        model: In evaluation mode.
        windows: Modality name to any number of windows.
        present: (n, modalities) bool; all are there if not given.
        device: Where the model is; the CPU if not given.
    """
    return in_batches(partial(subset_logits, model), windows, present, device, dim=1)


def run_finetuning(
    path: Path,
    source: Path,
    out: Path,
    device: torch.device,
    progress: Callable[[str], AbstractContextManager[Callable[[int, int], None]]] = no_progress,
) -> None:
    """Fine-tune a pretrained run by a recipe and leave a run; a second call goes on from the last checkpoint.

    Args:
        path: The recipe's file.
        source: Folder of the pretrained run.
        out: Folder of the run.
        device: CPU or GPU.
        progress: As in :func:`armlet_train.engine.pretrain.run_pretraining`.

    Raises:
        DataError: The data cannot be had.
        RecipeError: The recipe has a mistake.
        RunError: The source is not a pretrained run, or the loss is not finite.
        UsageError: The source has other data or another model, the folder holds something else, or the batch cannot be
            shared by the processes.
    """
    recipe = load_recipe(path)
    pretrained = run_folder.load_run(source, "pretrain")
    if pretrained.recipe.model != recipe.model or pretrained.recipe.data != recipe.data:
        raise UsageError(f"{source} was pretrained with other [data] or [model] values than {path} has")
    with distributed.processes(device):
        run_folder.start_run(out, path, "finetune")
        began = time.monotonic()
        corpus = load_corpus(recipe.data, "train")
        normalisation = corpus.normalisation()
        validation = score_windows(load_corpus(recipe.data, "validation"), normalisation)
        with RunLog(out, "finetune") as report, progress("finetune") as advance:
            model = finetune(
                pretrained.model, corpus, normalisation, validation, recipe.finetune, recipe.checkpoints, device,
                out / "checkpoints", report, advance,
            )  # fmt: skip
        seconds = time.monotonic() - began
        run_folder.end_run(out, "finetune", recipe, path.stem, corpus, model, seconds, device)


def finetune(
    model: ArmletModel,
    corpus: Corpus,
    normalisation: Mapping[str, Normalisation],
    validation: Scored,
    recipe: FinetuneRecipe,
    keeping: CheckpointRecipe,
    device: torch.device,
    folder: Path,
    report: Callable[[EpochReport], None] = lambda _: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> ArmletModel:
    """Fine-tune from ``model``; a second call with the same arguments goes on from the last checkpoint.

    Args:
        model: Pretrained, or fresh from its seed; it is not changed.
        corpus: Training people's recordings.
        normalisation: Theirs.
        validation: Windows of validation people, for the reports.
        recipe: Numbers.
        keeping: When to write checkpoints.
        device: CPU or GPU.
        folder: For checkpoints.
        report: Called after each epoch.
        advance: Called after each step with steps done and steps in all.

    Returns:
        The averaged model, on the CPU, in evaluation mode.

    Raises:
        RunError: The loss is not finite.
        UsageError: The batch cannot be shared by the processes.
    """
    expected = checkpoints.fingerprint(recipe, corpus.wearers, checkpoints.state_digest(model))
    start = copy.deepcopy(model)
    if recipe.lora is not None:
        torch.manual_seed(recipe.seed)
        lora.attach(start, recipe.lora)
    objective = Finetuning(start, recipe)
    source = Source(corpus, device)
    augment = Augment(recipe.augment, normalisation, device)
    steps = steps_per_epoch(corpus, recipe.batch, labelled=True)

    def stream(order: np.random.Generator, first: int) -> Iterator[Labelled]:
        return epoch_batches(source, augment, recipe, order, first)

    def end_epoch(epoch: int, terms: dict[str, float]) -> None:
        if not distributed.is_first():
            return
        predicted = all_logits(objective.average.eval(), validation.windows, validation.present, device).argmax(axis=2)
        scores = {
            subset_name(subset): macro_f1(validation.truth, row, len(corpus.labels))
            for subset, row in zip(subsets(model.modalities), predicted, strict=True)
        }
        report(EpochReport(epoch, terms["loss"], scores))

    keeper = checkpoints.Keeper(folder, "finetune", expected, keeping)
    train(objective, stream, steps, recipe, STAGE, device, keeper, end_epoch, advance)
    average = objective.average.requires_grad_(True).cpu().eval()
    lora.merge(average)
    return average
