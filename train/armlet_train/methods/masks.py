"""Masks in latent space: the tokens that each of a pair of views may see, and the replacement of the hidden ones.

Two strategies of CroSSL (Deldari et al., WSDM 2024): ``spatial`` hides whole modalities, ``random`` single elements of
the modalities' tokens. In the published code both are drawn with the keep ratio as probability and nothing else, so at
its default of 0.9 with three modalities more than half of the pairs are two equal masks, which teach nothing, and some
masks are empty. Here no mask is ever empty, and the two of a pair always differ, wherever that is possible: a window
with a single modality has only one spatial mask. Nothing here waits for the device.

The replacement of a hidden token is the model's mask policy (:func:`armlet_train.models.aggregator.set_mask_policy`).
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from .. import distributed

MOST_MODALITIES = 10
"""Spatial masks are drawn from the table of all of them, which has 2^modalities - 1 rows."""


def draw_pairs(strategy: str, present: Tensor, token_dim: int, keep: float) -> Tensor:
    """A pair of masks for each window, true = visible.

    Args:
        strategy: ``spatial`` or ``random``.
        present: (B, modalities) bool; what is not there is never visible.
        token_dim: Elements of a token.
        keep: Probability of being visible.

    Returns:
        (2, B, modalities, 1) for ``spatial``, (2, B, modalities, token_dim) for ``random``; bool.
    """
    if strategy == "spatial":
        return spatial_pairs(present, keep)[..., None]
    elements = present[:, :, None].expand(-1, -1, token_dim)
    return random_pairs(elements.flatten(1), keep).reshape(2, *elements.shape)


def all_masks(modalities: int) -> Tensor:
    """(2^modalities - 1, modalities) bool: all masks that are not empty."""
    return torch.tensor([mask for mask in product([True, False], repeat=modalities) if any(mask)])


def spatial_pairs(present: Tensor, keep: float) -> Tensor:
    """(2, B, modalities) bool: whole modalities, each visible with probability ``keep``.

    This is the published draw under the condition that neither mask is empty and the two differ. At ``keep`` = 0.5
    every such pair is equally likely.

    Args:
        present: (B, modalities) bool, at least one true in a row, at most :data:`MOST_MODALITIES` modalities.
        keep: Probability of being visible, between 0 and 1, both excluded.
    """
    masks = all_masks(present.shape[1]).to(present.device)
    weight = torch.where(masks, keep, 1 - keep).prod(dim=1)
    # (B, masks): the masks that show only what is there.
    possible = weight * ~(masks[None] & ~present[:, None]).any(dim=2)
    total = possible.sum(dim=1, keepdim=True)
    # P(first) is proportional to its weight times that of all second masks that differ from it. With one modality
    # present there is no other: then the weights are all zero, and the one mask is taken twice.
    alone = present.sum(dim=1, keepdim=True) == 1
    first = _draw(torch.where(alone, possible, possible * (total - possible)))
    others = possible.scatter(1, first[:, None], 0)
    second = _draw(torch.where(alone, possible, others))
    return torch.stack([masks[first], masks[second]])


def random_pairs(present: Tensor, keep: float) -> Tensor:
    """(2, B, elements) bool: single elements, each visible with probability ``keep``.

    A mask that came out empty, or equal to the first, is changed in one element; with the dozens of elements of real
    tokens that is hardly ever needed.

    Args:
        present: (B, elements) bool, at least two true in a row.
        keep: Probability of being visible, between 0 and 1, both excluded.
    """
    masks = []
    for _ in range(2):
        noise = distributed.rows(
            lambda count: torch.rand(count, present.shape[1], device=present.device), present.shape[0]
        )
        noise = torch.where(present, noise, 2.0)
        # The two elements that are likeliest to be visible: the first always is, so that no mask is empty.
        likeliest = noise.topk(2, dim=1, largest=False).indices
        masks.append((noise < keep).scatter(1, likeliest[:, :1], True))
    first, second = masks
    same = (first == second).all(dim=1, keepdim=True)
    spare = likeliest[:, 1:]
    return torch.stack([first, second.scatter(1, spare, second.gather(1, spare) ^ same)])


def _draw(weight: Tensor) -> Tensor:
    """(B,) indices drawn in proportion to the weights (B, n), some of them zero: the exponential race."""
    noise = distributed.rows(
        lambda count: torch.empty(count, weight.shape[1], device=weight.device).exponential_(), weight.shape[0]
    )
    return (weight / noise).argmax(dim=1)
