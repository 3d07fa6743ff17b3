"""Objectives over pairs of views: VICReg, and the contrastive rivals that CroSSL is compared with.

Each takes vectors of windows that belong together row by row, and gives its terms as scalars. Statistics are made over
the batch of all processes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import distributed


def vicreg(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """VICReg's three terms for two batches of vectors (B, D), B > 1 (Bardes et al., ICLR 2022).

    Returns:
        Invariance (mean squared distance), variance (hinge at a standard deviation of 1, mean of both views) and
        covariance (squared off-diagonal covariances over D, sum of both views).
    """
    first, second = distributed.gather(first), distributed.gather(second)
    similarity = F.mse_loss(first, second)
    variance = first.new_zeros(())
    covariance = first.new_zeros(())
    for view in (first, second):
        centred = view - view.mean(dim=0)
        deviation = torch.sqrt(centred.var(dim=0) + 1e-4)  # 1e-4 as published: a slope at zero variance
        variance = variance + F.relu(1 - deviation).mean() / 2
        matrix = centred.T @ centred / (len(view) - 1)
        off_diagonal = matrix.pow(2).sum() - matrix.diagonal().pow(2).sum()
        covariance = covariance + off_diagonal / view.shape[1]
    return similarity, variance, covariance


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR; Chen et al., ICML 2020).

    Each of the 2B vectors must find its partner among the other 2B - 1 by cosine similarity.

    Args:
        first: (B, D), B > 1.
        second: (B, D), of the same windows.
        temperature: Divides the similarities; 0.1 is usual.
    """
    first, second = distributed.gather(first), distributed.gather(second)
    vectors = F.normalize(torch.cat([first, second]), dim=1)
    similarity = vectors @ vectors.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), -torch.inf)
    partner = torch.arange(len(vectors), device=vectors.device).roll(len(first))
    return F.cross_entropy(similarity, partner)


def cocoa(tokens: Tensor, present: Tensor, temperature: float, negatives: float) -> Tensor:
    """COCOA (Deldari et al., IMWUT 2022): the modalities of a window attract each other, its strangers repel.

    It works on the modalities' tokens themselves, without an aggregator: the mean over pairs of modalities of
    exp((1 - cosine) / temperature) within a window, plus, within each modality, that of exp(cosine / temperature)
    between different windows, scaled by ``negatives``. Tokens of absent modalities take part in neither.

    Args:
        tokens: (B, modalities, D), B > 1, at least two modalities.
        present: (B, modalities) bool.
        temperature: Divides the distances.
        negatives: Weight of the second term; 3.9e-3 in the published code.
    """
    tokens, present = distributed.gather(tokens), distributed.gather(present)
    batch, modalities, _ = tokens.shape
    unit = F.normalize(tokens, dim=2)

    within = torch.einsum("bmd,bnd->bmn", unit, unit)
    pairs = present[:, :, None] & present[:, None, :] & ~torch.eye(modalities, dtype=torch.bool, device=tokens.device)
    positive = (((1 - within) / temperature).exp() * pairs).sum() / pairs.sum().clamp(min=1)

    between = torch.einsum("bmd,cmd->mbc", unit, unit)
    visible = present.T
    strangers = visible[:, :, None] & visible[:, None, :] & ~torch.eye(batch, dtype=torch.bool, device=tokens.device)
    negative = ((between / temperature).exp() * strangers).sum() / strangers.sum().clamp(min=1)
    return positive + negatives * negative
