"""Quantisation-aware training: the model learns with the rounding that its int8 programs will have.

Encoders and aggregator are prepared apart, as they will be lowered apart, and trained together, end to end, on every
subset of every batch. The loss is cross-entropy, plus the divergence from the float model's own answer to the same
windows: what is wanted is that model in fewer bits, not another one. The mask tokens stay as they are: they are
float32 inputs of the aggregator, and the fp32 programs use the same ones.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from armlet_runtime.errors import ExportError
from armlet_runtime.files import write_atomic
from armlet_runtime.metrics import macro_f1
from armlet_runtime.modalities import subsets

from .gate import Float32, Model, pytorch_logits
from .quantise import learn_ranges, prepare

# A batch: modality name to augmented, normalised windows (B, channels, samples), and label indices (B,).
Batch = tuple[Mapping[str, Tensor], Tensor]

CHECKPOINT = "checkpoint.pt"


class QatSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to train with quantisation.

    Attributes:
        epochs: Passes over the training batches.
        learning_rate: At the start; it falls to zero along half a cosine.
        distillation: Share of the loss that is the divergence from the float model; the rest is cross-entropy.
        frozen_epochs: Last epochs in which the activations' ranges stay as they are and weights settle in them.
    """

    epochs: int = 6
    learning_rate: float = 3e-4
    distillation: float = 0.7
    frozen_epochs: int = 2


class EpochReport(msgspec.Struct, frozen=True):
    """One epoch: mean loss, and macro-F1 of each subset on validation people."""

    epoch: int
    loss: float
    macro_f1: tuple[float, ...]
    best: bool


class QuantisedModel(nn.Module):
    """A model whose encoders and aggregator are prepared graphs; see :func:`armlet_export.quantise.prepare`."""

    def __init__(self, model: Model, examples: Mapping[str, Tensor]) -> None:
        """Prepare the parts of a float model.

        Args:
            model: The float model; its parameters are copied.
            examples: Modality name to an example of its windows, in the model's order; ``aggregator`` to one of tokens.

        Raises:
            ExportError: A layer would stay in float.
        """
        super().__init__()
        self.encoders = nn.ModuleDict({name: prepare(model.encoders[name], examples[name]) for name in model.encoders})
        self.aggregator: nn.Module = prepare(model.aggregator, examples["aggregator"])
        self.mask_tokens: Tensor
        self.register_buffer("mask_tokens", model.mask_tokens.detach().clone())

    def part(self, name: str) -> fx.GraphModule:
        """The prepared graph of a modality's encoder, or of the ``aggregator``."""
        graph = self.aggregator if name == "aggregator" else self.encoders[name]
        assert isinstance(graph, fx.GraphModule)
        return graph


def subset_logits(model: Model, windows: Mapping[str, Tensor]) -> Tensor:
    """Logits (subsets, B, labels) of a batch, every encoder run once."""
    names = list(windows)
    tokens = torch.stack([model.encoders[name](windows[name]) for name in names], dim=1)
    present = torch.tensor([[name in subset for name in names] for subset in subsets(names)], device=tokens.device)
    masked = torch.where(present[:, None, :, None], tokens, model.mask_tokens)
    logits: Tensor = model.aggregator(masked.flatten(0, 1).flatten(1))[0]
    return logits.reshape(*masked.shape[:2], -1)


def qat_loss(student: Model, teacher: Model, batch: Batch, distillation: float) -> Tensor:
    """Mean over subsets and windows of cross-entropy and Kullback-Leibler divergence from the teacher."""
    windows, labels = batch
    with torch.no_grad():
        wanted = subset_logits(teacher, windows).flatten(0, 1)
    logits = subset_logits(student, windows)
    truth = labels.expand(len(logits), -1).flatten()
    logits = logits.flatten(0, 1)
    divergence = F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
    return (1 - distillation) * F.cross_entropy(logits, truth) + distillation * divergence


def train(
    model: Model,
    student: QuantisedModel,
    settings: QatSettings,
    batches: Callable[[int], Iterator[Batch]],
    batch_count: int,
    validation: Mapping[str, Float32],
    truth: NDArray[np.int64],
    folder: Path,
    report: Callable[[EpochReport], None],
    advance: Callable[[], None],
) -> None:
    """Train ``student``; it ends with the weights and ranges of its best epoch by mean macro-F1 over the subsets.

    After every epoch a checkpoint is written; a second call with the same model and settings goes on from it and ends
    with the same weights as one that was not interrupted.

    Args:
        model: The float model, which is the teacher.
        student: Prepared from it.
        settings: How to train.
        batches: Epoch number to its batches, always the same ones for the same number.
        batch_count: Batches in an epoch.
        validation: Modality name to normalised windows (n, channels, samples) of validation people.
        truth: Their label indices.
        folder: For the checkpoint.
        report: Called after each epoch, also for those that an earlier call did.
        advance: Called after each batch.

    Raises:
        ExportError: The loss became infinite.
    """
    optimiser = torch.optim.AdamW(student.parameters(), settings.learning_rate, weight_decay=0.0)
    fingerprint = _fingerprint(model, settings)
    state = _load(folder / CHECKPOINT, fingerprint)
    reports: list[EpochReport] = []
    best: dict[str, Tensor] = {}
    if state is not None:
        student.load_state_dict(state["student"])
        optimiser.load_state_dict(state["optimiser"])
        best = state["best"]
        reports = msgspec.json.decode(state["reports"], type=list[EpochReport])
        for done in reports:
            report(done)
            for _ in range(batch_count):
                advance()

    for epoch in range(len(reports), settings.epochs):
        learn_ranges(student, epoch < max(1, settings.epochs - settings.frozen_epochs))
        losses = []
        for number, batch in enumerate(batches(epoch)):
            progress = (epoch * batch_count + number) / (settings.epochs * batch_count)
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
            loss = qat_loss(student, model, batch, settings.distillation)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(loss.detach()))
            advance()
        if not math.isfinite(sum(losses)):
            raise ExportError("quantisation-aware training lost its way; lower [qat] learning_rate in the recipe")
        learn_ranges(student, False)  # validation people must not move the ranges
        scores = tuple(macro_f1(truth, part.argmax(1), part.shape[1]) for part in pytorch_logits(student, validation))
        is_best = all(sum(scores) > sum(earlier.macro_f1) for earlier in reports)
        if is_best:
            best = {name: value.clone() for name, value in student.state_dict().items()}
        reports.append(EpochReport(epoch, sum(losses) / len(losses), scores, is_best))
        _save(folder / CHECKPOINT, fingerprint, student, optimiser, best, reports)
        report(reports[-1])
    student.load_state_dict(best)
    learn_ranges(student, False)


def _fingerprint(model: Model, settings: QatSettings) -> str:
    digest = hashlib.sha256(msgspec.json.encode(settings))
    for part in (*model.encoders.values(), model.aggregator):
        for name, value in part.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    digest.update(model.mask_tokens.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _save(
    path: Path,
    fingerprint: str,
    student: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor],
    reports: list[EpochReport],
) -> None:
    buffer = io.BytesIO()
    torch.save(
        {
            "fingerprint": fingerprint,
            "student": student.state_dict(),
            "optimiser": optimiser.state_dict(),
            "best": best,
            "reports": msgspec.json.encode(reports).decode(),
        },
        buffer,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def _load(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The checkpoint, unless there is none or it is of another model or other settings."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state if state["fingerprint"] == fingerprint else None
