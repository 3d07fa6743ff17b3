"""Dual masking: pretraining by reconstructing what is hidden within a lead, and what is hidden across leads.

After "Leveraging Foundational Models and Simple Fusion for Multi-modal Physiological Signal Analysis" (arXiv
2512.15250), which pretrains an ECG encoder of CBraMod's architecture "with a dual masking strategy, within and across
leads". The paper gives neither the ratios nor the exact form, and no code. Here, with patches laid out leads x time:

- *within*: each patch is hidden by itself, as CBraMod's own pretraining does for EEG (ratio 0.5); what is seen of the
  same lead and of the others tells what it was;
- *across*: whole leads are hidden, and the others tell what they were; or whole columns, the same patch of every lead.

Each window is masked in one of the two ways, by chance. Hidden patches are replaced before anything is computed, and
the loss is the mean squared error on the hidden patches, in the units of the encoder's input, as CBraMod's. What is
hidden is never nothing and never everything. Each modality's encoder learns for itself and of itself; how modalities
go together, and the mask token of an absent modality are learned in fine-tuning, which sees every window in
every subset.
"""

from __future__ import annotations

import torch
from torch import Tensor

from armlet_runtime.errors import RecipeError

from .. import distributed
from ..models import ArmletModel, CBraModEncoder
from ..recipes import DualPretrain
from .base import Pretraining


class Dual(Pretraining):
    """A model of CBraMod encoders, pretrained by dual masking."""

    views = 1

    def __init__(self, model: ArmletModel, recipe: DualPretrain) -> None:
        """Take the model unchanged: the encoders have the layers that reconstruct.

        Raises:
            RecipeError: The model's encoders are of another kind, or all come with weights of their own.
        """
        super().__init__()
        self.model = model
        self.recipe = recipe
        if not all(isinstance(encoder, CBraModEncoder) for encoder in model.encoders.values()):
            raise RecipeError('[pretrain] method = "dual" reconstructs patches, and needs [model] kind = "cbramod"')
        self._learning = [name for name in model.modalities if self._encoder(name).sizes.weights is None]
        if not self._learning:
            raise RecipeError('every encoder starts from weights of its own; say [pretrain] method = "none"')

    def forward(self, views: tuple[dict[str, Tensor], ...], present: Tensor) -> dict[str, Tensor]:
        """The mean error on hidden patches, over windows and modalities, and that of each modality."""
        terms = {}
        for name in self._learning:
            encoder = self._encoder(name)
            visible = present[:, self.model.modalities.index(name)]
            # Zeros in the place of an absent window: a NaN there would reach the gradient even with a weight of zero.
            patches = torch.where(visible[:, None, None, None], encoder.patches(views[0][name]), 0.0)
            hidden = dual_mask(self.recipe, (patches.shape[0], patches.shape[1], patches.shape[2]), patches.device)
            error = (encoder.cbramod(patches, hidden).float() - patches.float()).square().mean(dim=3)
            each = (error * hidden).sum(dim=(1, 2)) / hidden.sum(dim=(1, 2)).clamp(min=1)
            # By the number of windows of the whole batch, wherever its parts are, so that processes equal one.
            count = distributed.gather(visible.float()).sum().clamp(min=1) / distributed.world()
            terms[name] = (each * visible).sum() / count
        return {"loss": torch.stack(list(terms.values())).mean(), **terms}

    def _encoder(self, name: str) -> CBraModEncoder:
        encoder = self.model.encoders[name]
        assert isinstance(encoder, CBraModEncoder)
        return encoder


def dual_mask(recipe: DualPretrain, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Bool of ``shape`` (batch, leads, patches), true where a patch is hidden; drawn from PyTorch's generator.

    A window that has only one lead, or one column, cannot be masked across them and is masked within; of a window of a
    single patch nothing is hidden.
    """
    batch, leads, patches = shape

    def draw(each: int) -> Tensor:
        return distributed.rows(lambda count: torch.rand(count, each, device=device), batch)

    within = _hide(draw(leads * patches), recipe.within).reshape(batch, leads, patches)
    units = leads if recipe.unit == "leads" else patches
    across = _hide(draw(units), recipe.across)
    across = across[:, :, None] if recipe.unit == "leads" else across[:, None, :]
    chosen = draw(1)[:, :, None] < recipe.across_share
    return torch.where(chosen, across, within) if units > 1 else within


def _hide(chances: Tensor, share: float) -> Tensor:
    """Each of (batch, n) with probability ``share``, but at least one of the n and never all of them."""
    least, most = chances.amin(dim=1, keepdim=True), chances.amax(dim=1, keepdim=True)
    return ((chances < share) | (chances == least)) & (chances < most)
