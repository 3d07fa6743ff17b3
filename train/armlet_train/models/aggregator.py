"""Mask policies, which replace hidden tokens, and the aggregator that leaves hidden tokens out.

The mask policy of a model (:func:`set_mask_policy`) is the same in pretraining, in fine-tuning and on the board.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import distributed
from ..recipes import ConvModel
from .base import Aggregator, ArmletModel

HEADS = 4
"""Of :class:`AttentionAggregator`."""


def set_mask_policy(model: ArmletModel, policy: str) -> None:
    """Set the replacement for hidden tokens.

    Args:
        model: Fresh. Under ``presence`` and ``attention`` its encoders must end their tokens in a flag of 1, which says
            that they are there.
        policy: ``zero``: zeros, as published. ``token``: a learned token for each modality. ``presence`` and
            ``attention``: a learned token whose flag is 0; an :class:`AttentionAggregator` leaves such tokens out.
    """
    if policy == "zero":
        nn.init.zeros_(model.mask_tokens)
        model.mask_tokens.requires_grad_(False)
    elif policy != "token":
        parametrize.register_parametrization(model, "mask_tokens", _Unflagged())


class _Unflagged(nn.Module):
    """The last element of each mask token, its flag, is 0 whatever is learned."""

    def forward(self, tokens: Tensor) -> Tensor:
        return F.pad(tokens[:, :-1], (0, 1))


class AttentionAggregator(Aggregator):
    """Attention over the visible tokens; hidden tokens have no influence whatever.

    Each head looks at every token with a learned query; the flags take the weights of hidden tokens to exactly zero.
    """

    def __init__(self, recipe: ConvModel, modalities: int, labels: int) -> None:
        """Build the layers for that many modalities and labels."""
        super().__init__()
        self.embedding_dim = recipe.embedding_dim
        self.shape = (modalities, recipe.token_dim)
        # The meaning of a token depends on its modality.
        self.places = nn.Parameter(0.1 * torch.randn(modalities, recipe.token_dim))
        self.values = nn.Linear(recipe.token_dim, recipe.hidden_dim)
        self.scores = nn.Linear(recipe.hidden_dim, HEADS)
        self.dropout = distributed.Dropout(recipe.dropout)
        self.embedding = nn.Linear(HEADS * recipe.hidden_dim, recipe.embedding_dim)
        self.head = nn.Linear(recipe.embedding_dim, labels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregate a batch."""
        each = tokens.reshape(-1, *self.shape)
        flags = each[:, :, -1:]
        values = torch.relu(self.values(each + self.places))
        weights = torch.softmax(self.scores(values), dim=1) * flags
        weights = weights / weights.sum(dim=1, keepdim=True)
        pooled = (weights.transpose(1, 2) @ values).flatten(1)
        embedding = torch.relu(self.embedding(self.dropout(pooled)))
        return self.head(embedding), embedding
