"""Mu-MAE: masked autoencoding of several streams at once, and fusion by cross-attention (Liu, Liu: arXiv 2408.04243).

A window of every stream is cut into the same number of spans of time, and each span becomes one token. Pretraining
hides most spans; a joint transformer sees the tokens that are left, of all streams together, and one small decoder a
stream predicts the hidden spans from its own stream's encoded tokens. When the same spans are hidden in every
stream (*synchronised* masks), a hidden moment cannot be copied from another sensor that saw it, and has to be inferred.

The published code (github.com/lxhit/mu-mae, 67335d1) differs from its paper and has faults. Here, instead:

- It scales each clip and axis to 0..1 (a division by zero when constant) and repeats or drops rows until 128 are left.
  Here signals keep their true rate, and are normalised with the training people's statistics, so gravity is not lost.
- It skips clips that lack a sensor. Here a stream that is absent has no tokens, is not predicted and adds no loss.
- It reports the best test score over checkpoints. Here choices are made on validation people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from armlet_runtime.errors import RecipeError

from .. import distributed
from ..models import VARIANCE_EPS, ArmletModel, JointAggregator, SpanEncoder, Transformer, VideoEncoder, sine_cosine
from ..recipes import MuMaePretrain
from .base import Pretraining


class Mask(NamedTuple):
    """Indices of a stream's pieces, (B, hidden) and (B, seen); together they are all of them."""

    hidden: Tensor
    seen: Tensor


class MuMae(Pretraining):
    """Masked autoencoding of all streams at once, with one decoder a stream."""

    views = 1

    def __init__(self, model: ArmletModel, recipe: MuMaePretrain) -> None:
        """Put decoders on the model.

        Raises:
            RecipeError: The model is of another kind, or a mask hides everything or nothing.
        """
        super().__init__()
        if not isinstance(model.aggregator, JointAggregator):
            raise RecipeError('[pretrain] method = "mumae" needs [model] kind = "mumae"')
        self.model, self.recipe = model, recipe
        width = model.aggregator.width
        # One map and one mask token for all decoders, as published.
        self.narrow = nn.Linear(width, recipe.decoder_width, bias=False)
        self.mask_token = nn.Parameter(0.02 * torch.randn(recipe.decoder_width))
        self.decoders, self.says = nn.ModuleDict(), nn.ModuleDict()
        self.hidden: dict[str, int] = {}
        for name in model.modalities:
            encoder = self.encoder(name)
            self.decoders[name] = Transformer(recipe.decoder_width, recipe.decoder_depth, recipe.decoder_heads)
            self.says[name] = nn.Linear(recipe.decoder_width, encoder.values)
            pieces = encoder.spans * encoder.places
            self.register_buffer(f"positions_{name}", sine_cosine(pieces, recipe.decoder_width), persistent=False)
            is_video = isinstance(encoder, VideoEncoder)
            whole = encoder.places if is_video else encoder.spans
            ratio = recipe.tube_ratio if is_video else recipe.mask_ratio
            self.hidden[name] = int(whole * ratio)
            if not 0 < self.hidden[name] < whole:
                raise RecipeError(f"[pretrain] a mask ratio of {ratio} hides {self.hidden[name]} of {whole} pieces")

    def encoder(self, name: str) -> SpanEncoder | VideoEncoder:
        """The encoder of a stream."""
        encoder = self.model.encoders[name]
        assert isinstance(encoder, SpanEncoder | VideoEncoder)
        return encoder

    def masks(self, count: int) -> dict[str, Mask]:
        """Draw masks for ``count`` windows.

        Sensors hide whole spans, the same ones in every sensor if synchronised. Cameras hide tubes, which are the same
        patches in every span; as published, they are not synchronised with the sensors.
        """
        spans = self.encoder(self.model.modalities[0]).spans
        shared = self._order(count, spans)
        masks = {}
        for name, hidden in self.hidden.items():
            encoder = self.encoder(name)
            if isinstance(encoder, VideoEncoder):
                order = self._order(count, encoder.places)
                steps = encoder.places * torch.arange(spans, device=order.device)[:, None]
                tubes, open_ = order[:, None, :hidden], order[:, None, hidden:]
                masks[name] = Mask((tubes + steps).flatten(1), (open_ + steps).flatten(1))
            else:
                order = shared if self.recipe.masking == "synchronised" else self._order(count, spans)
                masks[name] = Mask(order[:, :hidden], order[:, hidden:])
        return masks

    def _order(self, count: int, size: int) -> Tensor:
        """(count, size) random orders; the first of each are hidden."""
        device = self.mask_token.device
        return distributed.rows(lambda rows: torch.rand(rows, size, device=device), count).argsort(dim=1)

    def targets(self, pieces: Tensor) -> Tensor:
        """What decoders should say of pieces (B, N, values): each piece with mean 0 and (unbiased) variance 1."""
        if self.recipe.target == "signal":
            return pieces
        mean = pieces.mean(dim=2, keepdim=True)
        return (pieces - mean) / (pieces.var(dim=2, keepdim=True) + VARIANCE_EPS).sqrt()

    def forward(self, views: tuple[dict[str, Tensor], ...], present: Tensor) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            views: One view: stream to (B, channels, samples), augmented and normalised.
            present: (B, streams) bool; an absent stream is neither seen nor predicted.

        Returns:
            ``loss`` and the mean squared error of each stream on its hidden pieces (0 where it is absent).
        """
        (windows,) = views
        masks = self.masks(present.shape[0])
        predictions = self.predict(windows, present, masks)
        loss = present.new_zeros((), dtype=torch.float32)
        terms = {}
        for visible, (name, prediction) in zip(present.unbind(1), predictions.items(), strict=True):
            encoder = self.encoder(name)
            wanted = _take(self.targets(encoder.pieces(windows[name])), masks[name].hidden)
            error = (prediction.float() - wanted.float()).pow(2).mean(dim=(1, 2))
            terms[name] = torch.where(visible, error, torch.zeros_like(error)).mean()
            is_video = isinstance(encoder, VideoEncoder)
            loss = loss + (self.recipe.video_weight if is_video else self.recipe.sensor_weight) * terms[name]
        return {"loss": loss, **terms}

    def predict(self, windows: Mapping[str, Tensor], present: Tensor, masks: Mapping[str, Mask]) -> dict[str, Tensor]:
        """Stream to (B, hidden, values): what the decoders say of hidden pieces, from the seen ones of all streams."""
        names = self.model.modalities
        seen = [_take(self.encoder(name).embedded(windows[name]), masks[name].seen) for name in names]
        counts = [part.shape[1] for part in seen]
        visible = torch.cat([present[:, at, None].expand(-1, count) for at, count in enumerate(counts)], dim=1)
        assert isinstance(self.model.aggregator, JointAggregator)
        encoded = self.narrow(self.model.aggregator.joint(torch.cat(seen, dim=1), visible)).split(counts, dim=1)
        return {name: self._decode(name, own, masks[name]) for name, own in zip(names, encoded, strict=True)}

    def _decode(self, name: str, encoded: Tensor, mask: Mask) -> Tensor:
        """(B, hidden, values) from a stream's own encoded tokens (B, seen, decoder width)."""
        blank = self.mask_token.to(encoded.dtype).expand(encoded.shape[0], mask.hidden.shape[1], -1)
        positions = self.get_buffer(f"positions_{name}")[torch.cat([mask.seen, mask.hidden], dim=1)]
        decoded = self.decoders[name](torch.cat([encoded, blank], dim=1) + positions)
        prediction: Tensor = self.says[name](decoded[:, mask.seen.shape[1] :])
        return prediction


def _take(pieces: Tensor, index: Tensor) -> Tensor:
    """(B, n, width) of pieces (B, N, width) by index (B, n)."""
    return pieces.gather(1, index[:, :, None].expand(-1, -1, pieces.shape[2]))
