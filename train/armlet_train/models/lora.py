"""LoRA: fine-tuning of low-rank additions to an encoder's matrices, while the encoder itself does not change.

Hu et al., ICLR 2022: a matrix W (out, in) becomes W + (alpha / rank) B A, with A (rank, in) random and B (out, rank)
zero at first, so that fine-tuning begins at the pretrained encoder. Here every matrix of an encoder gets one: all
linear maps, those of attention included. The map to the token, the mask tokens and the aggregator have seen no
pretraining and are trained whole. :func:`merge` adds the additions to the matrices, so what is exported has no trace
of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from armlet_runtime.errors import RecipeError

from ..recipes import LoraRecipe
from .base import ArmletModel


class Addition(nn.Module):
    """The addition to a matrix (out, in)."""

    def __init__(self, weight: Tensor, recipe: LoraRecipe) -> None:
        super().__init__()
        self.scale = recipe.alpha / recipe.rank
        self.down = nn.Parameter(torch.empty(recipe.rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], recipe.rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The matrix with its addition."""
        return weight + self.scale * (self.up @ self.down)


def attach(model: ArmletModel, recipe: LoraRecipe) -> None:
    """Freeze the encoders of ``model`` but for additions to their matrices and their map to the token.

    Raises:
        RecipeError: An encoder has no matrix to add to.
    """
    for name, encoder in model.encoders.items():
        matrices = [
            (module, key)
            for path, module in encoder.named_modules()
            for key, parameter in module.named_parameters(recurse=False)
            if parameter.ndim == 2 and path != "token"
        ]
        if not matrices:
            raise RecipeError(f"[finetune.lora]: the encoder of '{name}' has no matrices; leave the table out")
        encoder.requires_grad_(False)
        token = getattr(encoder, "token", None)
        if token is not None:  # spans and tubelets have no map to the token: what they embed is the token
            token.requires_grad_(True)
        for module, key in matrices:
            parametrize.register_parametrization(module, key, Addition(getattr(module, key), recipe))


def merge(model: ArmletModel) -> None:
    """Add all additions to their matrices; a model without additions is not changed."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            parametrized = module.parametrizations
            assert isinstance(parametrized, nn.ModuleDict)
            for key in list(parametrized):
                parametrize.remove_parametrizations(module, key, leave_parametrized=True)
