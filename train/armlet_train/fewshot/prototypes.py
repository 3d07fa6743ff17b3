"""A few-shot head: each class is the mean of its few examples' embeddings, and a query belongs to the nearest.

It knows nothing of the encoder, only embeddings (Snell et al., NeurIPS 2017, arXiv 1703.05175: prototypes; Gidaris and
Komodakis, CVPR 2018, arXiv 1804.09458: cosine distance with a learned scale). All functions take any leading
dimensions, such as that of episodes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Distance = Literal["cosine", "euclidean"]


def prototypes(support: Tensor, distance: Distance) -> Tensor:
    """(..., ways, size) of support embeddings (..., ways, shots, size): their mean, of unit vectors under cosine."""
    return (F.normalize(support, dim=-1) if distance == "cosine" else support).mean(dim=-2)


def similarities(queries: Tensor, prototypes: Tensor, distance: Distance) -> Tensor:
    """(..., queries, ways) of queries (..., queries, size) and prototypes (..., ways, size), the nearest largest.

    ``cosine``: the cosine of the angle. ``euclidean``: minus the squared distance, divided by the size of the
    embedding, so that one scale fits embeddings of any size.
    """
    if distance == "cosine":
        return F.normalize(queries, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(-1, -2)
    return -(queries[..., :, None, :] - prototypes[..., None, :, :]).pow(2).mean(dim=-1)


class PrototypeHead(nn.Module):
    """Embeddings to logits over the classes of an episode.

    Attributes:
        distance: How near is measured.
        log_scale: Logarithm of the learned factor on the similarities.
    """

    def __init__(self, distance: Distance, scale: float) -> None:
        """Start from a scale (the published code fixes 7 for its cosine)."""
        super().__init__()
        self.distance: Distance = distance
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, queries: Tensor, support: Tensor, transductive_steps: int = 0) -> Tensor:
        """Logits (..., queries, ways).

        Args:
            queries: (..., queries, size) embeddings.
            support: (..., ways, shots, size) embeddings of the labelled examples.
            transductive_steps: 0: each query is decided on its own, as on a board. More: that many steps of soft
                k-means over all queries move the prototypes first (Ren et al., ICLR 2018, arXiv 1803.00676), which
                presumes that the queries come together.
        """
        centres = prototypes(support, self.distance)
        scale = self.log_scale.exp()
        points = F.normalize(queries, dim=-1) if self.distance == "cosine" else queries
        shots = support.shape[-2]
        sums = centres * shots
        for _ in range(transductive_steps):
            shares = (scale * similarities(points, centres, self.distance)).softmax(dim=-1).transpose(-1, -2)
            centres = (sums + shares @ points) / (shots + shares.sum(dim=-1, keepdim=True))
        return scale * similarities(points, centres, self.distance)
