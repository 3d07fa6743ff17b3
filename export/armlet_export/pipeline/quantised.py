"""The second stage: the graphs that were trained with the rounding of int8 programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from armlet_train.models import ArmletModel

from ..choose_precision import AUTO
from ..proof import Reference
from ..quantise import EpochReport, prepare_model, train
from .trained import Journal, Trained


@dataclass(frozen=True)
class Quantised:
    """A model before lowering.

    Attributes:
        trained: The stage before.
        validation: PyTorch's answers to validation people's windows.
        student: A copy of the model whose int8 parts are graphs trained with their rounding.
        epochs: Of that training; empty if no part is int8.
    """

    trained: Trained
    validation: Reference
    student: ArmletModel
    epochs: tuple[EpochReport, ...]


def quantise(trained: Trained, work: Path, journal: Journal) -> Quantised:
    """Train the parts that are to be int8, or may become so.

    Args:
        trained: The stage before.
        work: Folder of the checkpoint; a second call continues from it.
        journal: Gets a line for each epoch.

    Raises:
        ExportError: The loss was not finite, or a layer would stay in float.
    """
    validation = Reference(trained.model, trained.validation)
    float_logits = validation.float_logits
    epochs: list[EpochReport] = []

    def report(epoch: EpochReport) -> None:
        epochs.append(epoch)
        scores = ", ".join(f"{score:.3f}" for score in epoch.macro_f1)
        nearest = ", nearest so far" if epoch.best else ""
        journal.progress.note(
            f"epoch {epoch.epoch + 1}: loss {epoch.loss:.4f}; validation: divergence {epoch.divergence:.4f}{nearest}; "
            f"macro-F1 {scores}"
        )

    with journal.time("qat"):
        parts = [name for name, kind in trained.precision.items() if kind in ("int8", AUTO)]
        student = prepare_model(trained.model, {part: trained.description.signature(part).example() for part in parts})
        if parts:
            total = trained.qat.epochs * trained.batch_count
            with journal.progress.stage("Quantisation-aware training", total) as advance:
                train(
                    trained.model,
                    student,
                    trained.qat,
                    trained.batches,
                    trained.batch_count,
                    trained.validation,
                    float_logits,
                    work,
                    report,
                    advance,
                )
    return Quantised(trained, validation, student, tuple(epochs))
