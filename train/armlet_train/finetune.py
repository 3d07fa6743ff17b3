"""Fine-tuning: a classifier that keeps deciding when modalities are gone.

Every window is seen in every non-empty subset of the modalities, the encoders running once for all of them. What is
kept is a running average of the weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from armlet_runtime.errors import RunError
from armlet_runtime.metrics import macro_f1
from armlet_runtime.modalities import subsets
from armlet_runtime.windows import Float32, Normalisation

from . import checkpoints
from .augment import Augment
from .crossl import set_learning_rate
from .data import Corpus, Scored
from .models import ArmletModel
from .recipes import FinetuneRecipe

STAGE = 2

Batch = tuple[dict[str, Tensor], Tensor]
"""Modality name to augmented, normalised windows (B, channels, samples), and label indices (B,)."""


class EpochReport(msgspec.Struct, frozen=True):
    """One epoch: mean loss, and macro-F1 of each subset on validation people."""

    epoch: int
    loss: float
    macro_f1: tuple[float, ...]


def steps_per_epoch(corpus: Corpus, batch: int) -> int:
    """Steps in which as many windows are seen as the people have at the stride of scoring."""
    return len(corpus.starts(labelled=True, every=corpus.stride)) // batch


def batches(
    corpus: Corpus,
    normalisation: Mapping[str, Normalisation],
    recipe: FinetuneRecipe,
    epoch: int,
    stage: int = STAGE,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """The batches of one epoch: windows at random offsets, one label each, augmented. Always the same for an epoch.

    Args:
        corpus: Training people's recordings.
        normalisation: Theirs.
        recipe: Batch size, seed and augmentation.
        epoch: Number of the epoch.
        stage: Tells trainings with the same seed apart.
        device: Where the batches are made; the CPU if not given.
    """
    starts = corpus.starts(labelled=True, every=1)
    signals = {name: torch.from_numpy(signal).to(device) for name, signal in corpus.signals.items()}
    span = torch.arange(corpus.length, device=device)
    augment = Augment(recipe.augment, normalisation)
    order = checkpoints.seed_epoch(recipe.seed, epoch, stage)
    for _ in range(steps_per_epoch(corpus, recipe.batch)):
        drawn = order.choice(starts, recipe.batch)
        chosen = torch.from_numpy(drawn).to(device)
        raw = {name: signal[chosen[:, None] + span].transpose(1, 2) for name, signal in signals.items()}
        yield augment(raw), torch.from_numpy(corpus.labels_of(drawn)).to(device)


def subset_logits(model: ArmletModel, windows: Mapping[str, Tensor]) -> Tensor:
    """Logits (subsets, B, labels) of a batch in the order of :func:`armlet_runtime.modalities.subsets`."""
    names = model.modalities
    tokens = model.tokens(windows)
    rows = []
    for subset in subsets(names):
        present = torch.tensor([name in subset for name in names], device=tokens.device)
        rows.append(model.mask(tokens, present.expand(len(tokens), -1)))
    logits: Tensor = model.aggregator(torch.cat(rows).flatten(1))[0]
    return logits.reshape(len(rows), len(tokens), -1)


def subset_predictions(model: ArmletModel, windows: Mapping[str, Float32], batch: int = 512) -> Tensor:
    """(subsets, n) arg max for normalised windows (n, channels, samples), in evaluation mode."""
    count = len(next(iter(windows.values())))
    model.eval()
    parts = []
    with torch.no_grad():
        for at in range(0, count, batch):
            part = {name: torch.from_numpy(array[at : at + batch]) for name, array in windows.items()}
            parts.append(subset_logits(model, part).argmax(2))
    return torch.cat(parts, dim=1)


def finetune(
    model: ArmletModel,
    corpus: Corpus,
    normalisation: Mapping[str, Normalisation],
    validation: Scored,
    recipe: FinetuneRecipe,
    device: torch.device,
    folder: Path,
    report: Callable[[EpochReport], None],
    advance: Callable[[int, int], None],
) -> ArmletModel:
    """Fine-tune from ``model``; a second call with the same arguments goes on from the last checkpoint.

    Args:
        model: Pretrained, or fresh from its seed.
        corpus: Training people's recordings.
        normalisation: Theirs.
        validation: Windows of validation people, for the reports only: the last average is what is kept.
        recipe: Numbers.
        device: CPU or one GPU; on a GPU the step runs in bfloat16 where that is safe.
        folder: For checkpoints.
        report: Called after each epoch.
        advance: Called after each step with steps done and steps in all.

    Returns:
        The averaged model, on the CPU, in evaluation mode.

    Raises:
        RunError: The loss became infinite.
    """
    steps = steps_per_epoch(corpus, recipe.batch)
    expected = checkpoints.fingerprint(recipe, corpus.wearers, checkpoints.state_digest(model))
    model = copy.deepcopy(model).to(device)
    average = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    path = folder / "finetune.pt"
    state = checkpoints.load_checkpoint(path, expected)
    first_epoch = 0
    if state is not None:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        first_epoch = state["epoch"]

    for epoch in range(first_epoch, recipe.epochs):
        model.train()
        total = torch.zeros((), device=device)
        for number, (windows, labels) in enumerate(batches(corpus, normalisation, recipe, epoch, device=device)):
            step = epoch * steps + number
            set_learning_rate(optimiser, recipe.learning_rate, step, recipe.epochs * steps)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = subset_logits(model, windows).float()
            loss = F.cross_entropy(
                logits.flatten(0, 1), labels.repeat(len(logits)), label_smoothing=recipe.label_smoothing
            )
            # Summed over the subsets, so that each weighs as it would alone.
            loss = loss * len(logits)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            _average(average, model, min(recipe.average, (1 + step) / (10 + step)))
            total += loss.detach()
            advance(step + 1, recipe.epochs * steps)
        mean = float(total) / steps
        if not math.isfinite(mean):
            raise RunError("fine-tuning lost its way (infinite loss); lower [finetune] learning_rate in the recipe")
        checkpoints.save(
            path,
            {
                "fingerprint": expected,
                "epoch": epoch + 1,
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
            },
        )
        predicted = subset_predictions(copy.deepcopy(average).cpu(), validation.windows)
        scores = tuple(macro_f1(validation.truth, row.numpy(), len(corpus.labels)) for row in predicted)
        report(EpochReport(epoch, mean, scores))
    return average.cpu().eval()


@torch.no_grad()
def _average(average: ArmletModel, model: ArmletModel, decay: float) -> None:
    """Move the average towards the model; short at the start, when the model moves far."""
    for kept, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(now, 1 - decay)
        else:
            kept.copy_(now)
