"""CroSSL's pretraining: masking modalities in latent space (Deldari et al., WSDM 2024).

Each window gives two views, with different modalities (or elements of their tokens) hidden in each. The aggregator and
an expander map what is left to one vector a view, and VICReg (Bardes et al., ICLR 2022) pulls the two together while it
keeps the vectors varied and their components uncorrelated. So the tokens of any subset learn to say what the others
would have said.

Two models can be pretrained so: armlet's own small model (:mod:`armlet_train.models.conv`), and the paper's
(:mod:`armlet_train.models.crossl`). Where both differ from the published code is written in ``train/README.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor, nn

from armlet_runtime.errors import RecipeError

from .. import distributed
from ..models import ArmletModel
from ..recipes import CrosslPretrain
from .base import Pretraining
from .losses import cocoa, nt_xent, vicreg
from .masks import MOST_MODALITIES, all_masks, draw_pairs

MOST_EVERY = 3
"""Most modalities of which every pair of masks is compared: 42 pairs; with four it would be 210."""


class Crossl(Pretraining):
    """A model with the expander that its objective needs."""

    def __init__(self, model: ArmletModel, recipe: CrosslPretrain) -> None:
        """Put an expander on the model's embedding.

        Raises:
            RecipeError: There are too many modalities for the recipe's masks.
        """
        super().__init__()
        most = MOST_EVERY if recipe.every_mask else MOST_MODALITIES
        if len(model.modalities) > most:
            raise RecipeError(
                f"CroSSL masks at most {most} modalities with [pretrain] every_mask = {str(recipe.every_mask).lower()}"
            )
        self.views = recipe.views
        self.model = model
        self.recipe = recipe
        self.expander: nn.Module = nn.Identity()
        if recipe.projection_dim:
            self.expander = nn.Sequential(
                nn.Linear(model.embedding_dim, recipe.projection_dim),
                nn.ReLU(),
                nn.Linear(recipe.projection_dim, recipe.projection_dim),
            )

    def forward(self, views: tuple[dict[str, Tensor], ...], present: Tensor) -> dict[str, Tensor]:
        """The objective's terms, over the whole batch of all processes."""
        recipe = self.recipe
        count = present.shape[0]
        # Both views go through the encoders as one batch: one pass, and batch statistics over both. A window's views
        # lie side by side. With one view the two masks hide parts of the same tokens, as published.
        both = {name: torch.stack([view[name] for view in views], dim=1).flatten(0, 1) for name in views[0]}
        tokens = self.model.tokens(both)
        tokens = tokens.reshape(count, len(views), *tokens.shape[1:]).expand(-1, 2, -1, -1)
        if recipe.objective == "cocoa":
            with torch.autocast(tokens.device.type, enabled=False):
                each = distributed.widen(tokens).unbind(1)[: len(views)]
                losses = [cocoa(view, present, recipe.temperature, recipe.negatives) for view in each]
            return {"loss": torch.stack(losses).mean()}
        if recipe.every_mask and len(self.model.modalities) > 1:
            return self._every_mask(tokens, present)
        visible = draw_pairs(recipe.strategy, present, tokens.shape[3], recipe.keep).transpose(0, 1)
        masked = torch.where(visible, tokens, self.model.mask_tokens).flatten(2).flatten(0, 1)
        vectors = self.expander(self.model.aggregator(masked)[1])
        with torch.autocast(vectors.device.type, enabled=False):
            first, second = distributed.widen(vectors).reshape(count, 2, -1).unbind(1)
            if recipe.objective == "nt-xent":
                return {"loss": nt_xent(first, second, recipe.temperature)}
            return self._weigh(vicreg(first, second))

    def _every_mask(self, tokens: Tensor, present: Tensor) -> dict[str, Tensor]:
        """VICReg's terms in the mean over all pairs of different masks, one for each view.

        Of masks that leave a window nothing, it sees all that it has.
        """
        masks = all_masks(present.shape[1]).to(present.device)
        visible = masks & present[:, None]
        visible = torch.where(visible.any(dim=2, keepdim=True), visible, present[:, None])
        # (B, views, masks, modalities, token_dim)
        masked = torch.where(visible[:, None, :, :, None], tokens[:, :, None], self.model.mask_tokens)
        vectors = self.expander(self.model.aggregator(masked.flatten(3).flatten(0, 2))[1])
        with torch.autocast(vectors.device.type, enabled=False):
            # (views, masks, B, projection_dim)
            each = distributed.widen(vectors).reshape(-1, 2, len(masks), vectors.shape[1]).permute(1, 2, 0, 3)
            pairs = [vicreg(each[0, first], each[1, other]) for first, other in permutations(range(len(masks)), 2)]
            return self._weigh(torch.stack([torch.stack(terms) for terms in pairs]).mean(dim=0).unbind())

    def _weigh(self, terms: Sequence[Tensor]) -> dict[str, Tensor]:
        similarity, variance, covariance = terms
        recipe = self.recipe
        loss = recipe.similarity * similarity + recipe.variance * variance + recipe.covariance * covariance
        return {"loss": loss, "similarity": similarity, "variance": variance, "covariance": covariance}
