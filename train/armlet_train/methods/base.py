"""Objectives: what a training minimises, and what a method of pretraining is to it."""

from __future__ import annotations

import abc

from torch import Tensor, nn

from ..models import ArmletModel


class Objective(nn.Module):
    """The objective of a training: a model, with everything that is needed to train it.

    ``forward`` takes a batch and gives scalar terms, of which ``loss`` is minimised and all are reported. It draws from
    PyTorch's generator and never waits for the device.

    Attributes:
        uses_all: Whether every parameter that learns takes part in every step. Many processes need to know: PyTorch
            waits for the gradient of each parameter, and stops at the second step if a gradient is missing.
    """

    uses_all: bool = True

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step number ``step``, counted from 0."""


class Pretraining(Objective, abc.ABC):
    """A method of pretraining around a model.

    Its constructor takes the model and the method's recipe. What it needs besides the model (an expander, decoders) is
    made there and thrown away afterwards.

    Attributes:
        views: How many views of each window it compares, 1 or 2; the second may be of a window close in time.
        model: The model to pretrain.
    """

    uses_all = False  # the classifier's head learns in fine-tuning only
    views: int
    model: ArmletModel

    @abc.abstractmethod
    def forward(self, views: tuple[dict[str, Tensor], ...], present: Tensor) -> dict[str, Tensor]:
        """The terms of the loss.

        Args:
            views: Each: modality name to (B, channels, samples), augmented and normalised.
            present: (B, modalities) bool; a modality that is not there has anything in its window.

        Returns:
            Scalars; ``loss`` is minimised.
        """
