"""Quantisation-aware training: the model learns with the rounding that its int8 programs will have.

Encoders and aggregator are prepared separately, as they will be lowered separately, and trained together, end to end,
on every subset of every batch of fine-tuning. The loss is the divergence from the float model's own answer to the same
windows, with a share of cross-entropy: the aim is the same model in fewer bits, not another one. The mask tokens are
not trained: they are float32 inputs of the aggregator, and the fp32 programs use the same ones.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from armlet_runtime.bundle import AGGREGATOR
from armlet_runtime.errors import ExportError
from armlet_runtime.metrics import macro_f1
from armlet_train.data import Labelled, Scored
from armlet_train.engine import all_logits, checkpoints, subset_logits
from armlet_train.models import ArmletModel
from armlet_train.recipes import QatRecipe

from .fake_quant import input_quantiser, learn_ranges, prepare, set_input_range

STAGE = 3
"""Gives the batches another order than those of earlier trainings; see :func:`armlet_train.engine.finetune.batches`."""

CHECKPOINT = "qat.pt"

# Candidates for the range of the windows, as shares of the largest value in training: half powers of two.
INPUT_RANGE_FACTORS = tuple(2.0 ** (-step / 2) for step in range(8))
INPUT_RANGE_BATCHES = 16


class EpochReport(msgspec.Struct, frozen=True):
    """One epoch: mean loss; on validation people, the divergence from the float model and macro-F1 of each subset."""

    epoch: int
    loss: float
    divergence: float
    macro_f1: tuple[float, ...]
    best: bool


def prepare_model(model: ArmletModel, examples: Mapping[str, Tensor]) -> ArmletModel:
    """A copy of a float model in which encoders and aggregator are graphs with fake quantisers.

    Args:
        model: The float model.
        examples: Modality name to an example of its windows, ``aggregator`` to an example of tokens. A part without an
            example stays in float and is not trained.

    Raises:
        ExportError: A layer would stay in float.
    """
    student = copy.deepcopy(model).requires_grad_(False)
    for name, example in examples.items():
        if name == AGGREGATOR:
            student.add_module(AGGREGATOR, prepare(_trainable(model.aggregator), example))
        else:
            student.encoders[name] = prepare(_trainable(model.encoders[name]), example)
    return student


def _trainable(part: nn.Module) -> nn.Module:
    return copy.deepcopy(part).requires_grad_(True)


def is_prepared(student: ArmletModel, name: str) -> bool:
    """Whether a modality's encoder, or the ``aggregator``, has fake quantisers."""
    return isinstance(student.aggregator if name == AGGREGATOR else student.encoders[name], fx.GraphModule)


def prepared_part(student: ArmletModel, name: str) -> fx.GraphModule:
    """The prepared graph of a modality's encoder, or of the ``aggregator``."""
    graph = student.aggregator if name == AGGREGATOR else student.encoders[name]
    assert isinstance(graph, fx.GraphModule)
    return graph


def qat_loss(student: ArmletModel, teacher: ArmletModel, batch: Labelled, distillation: float) -> Tensor:
    """Mean over subsets and windows of Kullback-Leibler divergence from the teacher and of cross-entropy."""
    windows, present, labels = batch
    with torch.no_grad():
        targets = subset_logits(teacher, windows, present)
    logits = subset_logits(student, windows, present)
    truth = labels.repeat(len(logits))
    divergence = _divergence(logits, targets)
    return (1 - distillation) * F.cross_entropy(logits.flatten(0, 1), truth) + distillation * divergence


def _divergence(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence over subsets and windows."""
    shares, target_shares = logits.flatten(0, 1).log_softmax(1), targets.flatten(0, 1).log_softmax(1)
    return F.kl_div(shares, target_shares, reduction="batchmean", log_target=True)


def choose_input_ranges(student: ArmletModel, teacher: ArmletModel, windows: Mapping[str, Tensor]) -> None:
    """Set the range of each encoder's windows in int8 to the range that changes the float model's answers least.

    A range that holds the strongest movement has steps too coarse for the signal of a resting hand, on which some
    decisions depend; clipping the strongest movement costs less. Each modality is tried alone, nothing else rounded.

    Args:
        student: Gets the ranges.
        teacher: The float model.
        windows: Modality name to normalised training windows (B, channels, samples).
    """
    with torch.no_grad():
        targets = subset_logits(teacher, windows)
        for name, values in windows.items():
            if not is_prepared(student, name) or input_quantiser(prepared_part(student, name)) is None:
                continue
            limits = [float(values.abs().max()) * factor for factor in INPUT_RANGE_FACTORS]
            costs = []
            for limit in limits:
                rounded = torch.fake_quantize_per_tensor_affine(values, 2 * limit / 255, 0, -128, 127)
                costs.append(float(_divergence(subset_logits(teacher, {**windows, name: rounded}), targets)))
            set_input_range(prepared_part(student, name), limits[costs.index(min(costs))])


def train(
    model: ArmletModel,
    student: ArmletModel,
    recipe: QatRecipe,
    batches: Callable[[int], Iterator[Labelled]],
    batch_count: int,
    validation: Scored,
    float_logits: NDArray[np.float32],
    folder: Path,
    report: Callable[[EpochReport], None],
    advance: Callable[[], None],
) -> None:
    """Train ``student``; it ends with the weights of the epoch nearest to the float model on validation people.

    After every epoch a checkpoint is written. A second call with the same model and numbers continues from it, and ends
    with the same weights as a call that was not interrupted.

    Args:
        model: The float model, which is the teacher.
        student: Prepared from it.
        recipe: How to train.
        batches: Epoch number to its batches, always the same for the same number.
        batch_count: Batches in an epoch.
        validation: Windows of validation people.
        float_logits: The float model's logits (subsets, n, labels) on them.
        folder: For the checkpoint.
        report: Called after each epoch, those of an earlier call included.
        advance: Called after each batch, those of an earlier call included.

    Raises:
        ExportError: The loss is not finite.
        RunError: The checkpoint cannot be read.
    """
    optimiser = torch.optim.AdamW(
        [parameter for parameter in student.parameters() if parameter.requires_grad],
        recipe.learning_rate,
        weight_decay=0,
    )
    # Not the whole recipe: other bounds for the gate are no reason to train again.
    prepared = tuple(name for name in (*student.modalities, AGGREGATOR) if is_prepared(student, name))
    numbers = (recipe.epochs, recipe.learning_rate, recipe.distillation, recipe.frozen_epochs, prepared)
    fingerprint = checkpoints.fingerprint(numbers, checkpoints.state_digest(model))
    state = checkpoints.load_checkpoint(folder / CHECKPOINT, fingerprint)
    reports: list[EpochReport] = []
    best: dict[str, Tensor] = {}
    if state is None:
        first = [batch.windows for batch in itertools.islice(batches(0), INPUT_RANGE_BATCHES)]
        choose_input_ranges(student, model, {name: torch.cat([part[name] for part in first]) for name in first[0]})
    else:
        student.load_state_dict(state["student"])
        optimiser.load_state_dict(state["optimiser"])
        best = state["best"]
        reports = msgspec.json.decode(state["reports"], type=list[EpochReport])
        for earlier in reports:
            report(earlier)
            for _ in range(batch_count):
                advance()

    for epoch in range(len(reports), recipe.epochs):
        _learn_ranges(student, epoch < max(1, recipe.epochs - recipe.frozen_epochs))
        losses = []
        for number, batch in enumerate(batches(epoch)):
            progress = (epoch * batch_count + number) / (recipe.epochs * batch_count)
            losses.append(_training_step(student, model, optimiser, recipe, batch, progress))
            # At once, because fake quantisers refuse the weights that the next step would meet.
            if not math.isfinite(losses[-1]):
                raise ExportError(
                    f"the loss of quantisation-aware training is not finite in epoch {epoch + 1}; lower [qat] "
                    "learning_rate in the recipe"
                )
            advance()
        _learn_ranges(student, False)  # validation people must not move the ranges
        reports.append(_validate(student, validation, float_logits, reports, sum(losses) / len(losses)))
        if reports[-1].best:
            best = {name: value.clone() for name, value in student.state_dict().items()}
        checkpoints.save(
            folder / CHECKPOINT,
            {
                "fingerprint": fingerprint,
                "student": student.state_dict(),
                "optimiser": optimiser.state_dict(),
                "best": best,
                "reports": msgspec.json.encode(reports).decode(),
            },
        )
        report(reports[-1])
    student.load_state_dict(best)
    _learn_ranges(student, False)


def _training_step(
    student: ArmletModel,
    teacher: ArmletModel,
    optimiser: torch.optim.Optimizer,
    recipe: QatRecipe,
    batch: Labelled,
    progress: float,
) -> float:
    """One step at the learning rate of ``progress`` (a share of the whole training); its loss."""
    for group in optimiser.param_groups:
        group["lr"] = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    loss = qat_loss(student, teacher, batch, recipe.distillation)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return float(loss.detach())


def _validate(
    student: ArmletModel,
    validation: Scored,
    float_logits: NDArray[np.float32],
    earlier: Sequence[EpochReport],
    loss: float,
) -> EpochReport:
    logits = all_logits(student, validation.windows)
    divergence = float(_divergence(torch.from_numpy(logits), torch.from_numpy(float_logits)))
    scores = tuple(macro_f1(validation.truth, subset.argmax(1), subset.shape[1]) for subset in logits)
    is_best = all(divergence < report.divergence for report in earlier)
    return EpochReport(len(earlier), loss, divergence, scores, is_best)


def _learn_ranges(student: ArmletModel, learn: bool) -> None:
    """Whether the ranges of activations follow what passes through; those of the windows stay as chosen."""
    learn_ranges(student, learn)
    for name in student.modalities:
        quantiser = input_quantiser(prepared_part(student, name)) if is_prepared(student, name) else None
        if quantiser is not None:
            quantiser.disable_observer()
