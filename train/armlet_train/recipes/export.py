"""The export sections of a recipe: training with quantisation, precision, smoothing."""

from __future__ import annotations

from typing import Literal

import msgspec

from armlet_runtime.bundle import MAX_MAJORITY


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


class ExportRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What programs are made in, and how their scores become decisions; read by ``armlet export``.

    Attributes:
        precision: Modality, or ``aggregator``, to what its programs are kept in; ``int8`` for those that are not named.
        max_auto_loss: What ``--precision auto`` may lose in macro-F1 in any subset on validation people.
        max_unknown: Share of right decisions on validation people that the threshold for ``unknown`` may cost; 0 for
            no threshold.
        smoothing: Of the labels of successive windows: ``majority`` of the last ``majority_windows``, or ``hidden
            markov`` with transitions counted on training people.
        majority_windows: See there.
        incremental: Whether encoders carry what they computed from window to window; for ``kind = "conv"``, with a hop
            that is a whole multiple of all strides together.
    """

    precision: dict[str, Literal["int8", "dynamic", "fp16", "fp32", "auto"]] = {}
    max_auto_loss: float = 0.005
    max_unknown: float = 0.02
    smoothing: Literal["none", "majority", "hidden markov"] = "none"
    majority_windows: int = 5
    incremental: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.majority_windows <= MAX_MAJORITY:
            raise ValueError(f"majority_windows must lie from 1 to {MAX_MAJORITY}")
        if not 0 <= self.max_unknown < 1:
            raise ValueError("max_unknown must be at least 0 and below 1")
