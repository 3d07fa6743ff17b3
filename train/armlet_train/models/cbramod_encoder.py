"""CBraMod as the encoder of a modality, its concatenating aggregator, and published weights."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armlet_runtime.errors import DataError, RecipeError
from armlet_runtime.modalities import Modality

from .. import distributed
from ..recipes import CBraModModel
from . import base
from .cbramod import PUBLISHED, CBraMod

RATE_HZ = 200.0
"""Sampling rate of the published weights (EEG of the TUEG corpus, resampled)."""

UNIT_UV = 100.0
"""The published weights take microvolts divided by this."""


PUBLISHED_NAME = "pretrained_weights.pth"
PUBLISHED_BYTES = 19_775_842
PUBLISHED_SHA256 = "0792cb808c14e6b7a2bb2ce1dff379bc47bc54c49a779825bdfeb33bf8157178"
"""Of the published file, revision 500543c of weighting666/CBraMod on the Hugging Face Hub."""


class CBraModEncoder(base.Encoder):
    """One modality's window to its token: cut into patches, encoded, pooled, mapped.

    Attributes:
        sizes: Of the CBraMod inside.
        cbramod: The CBraMod.
    """

    uses_all = False  # the reconstruction (``proj_out``) serves pretraining

    def __init__(self, recipe: CBraModModel, modality: Modality, length: int) -> None:
        """Build the layers.

        Args:
            recipe: Sizes of all encoders.
            modality: What comes in.
            length: Samples of a window.

        Raises:
            RecipeError: The recipe has no sizes for the modality, or a window is not a whole number of patches.
        """
        super().__init__()
        if modality.name not in recipe.encoders:
            raise RecipeError(f"[model.encoders] lacks '{modality.name}', which is among [data] modalities")
        self.sizes = recipe.encoders[modality.name]
        patch = self.sizes.patch
        if length % patch or length == 0:
            raise RecipeError(
                f"[model.encoders.{modality.name}] patch = {patch}: a window of {modality.name} has {length} samples "
                f"({modality.rate_hz:g} Hz), which is not a whole number of patches; change patch or [data] window_s"
            )
        self.cbramod = CBraMod(self.sizes)
        self._flat = recipe.pool == "flat"
        places = len(modality.channels) * (length // patch) if self._flat else 1
        self.token = nn.Linear(places * self.sizes.width, recipe.token_dim)

    def patches(self, window: Tensor) -> Tensor:
        """(B, channels, patches, patch samples) of (B, channels, samples)."""
        return window.reshape(window.shape[0], window.shape[1], -1, self.sizes.patch)

    def features(self, window: Tensor) -> Tensor:
        """(B, F): the patches' features, their mean or side by side."""
        features = self.cbramod.features(self.patches(window))
        return features.flatten(1) if self._flat else features.mean(dim=(1, 2))

    def forward(self, window: Tensor) -> Tensor:
        """Encode a batch."""
        token: Tensor = self.token(self.features(window))
        return token


class ConcatAggregator(base.Aggregator):
    """Concatenated tokens through one hidden layer to the head: the "simple fusion" of arXiv 2512.15250.

    Neither the paper's head sizes nor its activation are known; ELU is that of CBraMod's own classification heads.
    """

    def __init__(self, recipe: CBraModModel, modalities: int, labels: int) -> None:
        """Build the layers for that many modalities and labels."""
        super().__init__()
        self.embedding_dim = recipe.embedding_dim
        self.hidden = nn.Linear(modalities * recipe.token_dim, recipe.embedding_dim)
        self.dropout = distributed.Dropout(recipe.dropout)
        self.head = nn.Linear(recipe.embedding_dim, labels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregate a batch."""
        embedding = F.elu(self.hidden(tokens))
        return self.head(self.dropout(embedding)), embedding


def build(
    recipe: CBraModModel, modalities: Sequence[Modality], lengths: Mapping[str, int], labels: int
) -> base.ArmletModel:
    """A fresh model, its weights from PyTorch's generator; see :func:`armlet_train.models.build.build_model`.

    Raises:
        RecipeError: The recipe's sizes do not fit the modalities.
    """
    encoders = {modality.name: CBraModEncoder(recipe, modality, lengths[modality.name]) for modality in modalities}
    aggregator = ConcatAggregator(recipe, len(modalities), labels)
    return base.ArmletModel([modality.name for modality in modalities], encoders, recipe.token_dim, aggregator)


def start_from_weights(model: base.ArmletModel, recipe: CBraModModel, modalities: Sequence[Modality]) -> None:
    """Load the weights that the recipe names for its encoders; other encoders are not changed.

    Raises:
        RecipeError: The weights were trained on other patches or units than the modality has.
        DataError: A file is not what it should be.
    """
    for modality in modalities:
        encoder = model.encoders[modality.name]
        assert isinstance(encoder, CBraModEncoder)
        if encoder.sizes.weights is None:
            continue
        place = f"[model.encoders.{modality.name}] weights"
        if msgspec.structs.replace(encoder.sizes, weights=None, dropout=PUBLISHED.dropout) != PUBLISHED:
            raise RecipeError(f"{place}: published weights need the published sizes; leave all but dropout out")
        if modality.rate_hz != RATE_HZ or modality.unit != "uV":
            raise RecipeError(
                f"{place}: published weights take microvolts at {RATE_HZ:g} Hz, and {modality.name} comes in "
                f"{modality.unit} at {modality.rate_hz:g} Hz"
            )
        encoder.cbramod.load_state_dict(load_state(Path(encoder.sizes.weights)))


def load_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a CBraMod of the published sizes, from a file of PyTorch.

    The file is read as weights only: nothing in it is executed. Every one of its tensors must have its place, and every
    place its tensor. A file with the published name, ``pretrained_weights.pth``, must be the published file.

    Raises:
        DataError: It is not such a file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read CBraMod's weights: {error}") from None
    if path.name == PUBLISHED_NAME:
        digest = hashlib.sha256(content).hexdigest()
        if len(content) != PUBLISHED_BYTES or digest != PUBLISHED_SHA256:
            raise DataError(
                f"{path} is not CBraMod's published {PUBLISHED_NAME}: it has {len(content):,} bytes and SHA-256 "
                f"{digest[:12]}..., instead of {PUBLISHED_BYTES:,} and {PUBLISHED_SHA256[:12]}...; fetch it again, or "
                "give weights of your own another name"
            )
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's reader fails in many ways; each means the same here
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a file of weights that PyTorch reads safely ({reason})") from None
    wanted = {name: tuple(value.shape) for name, value in CBraMod().state_dict().items()}
    shapes = {}
    if isinstance(state, dict):
        shapes = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
    wrong = sorted(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name))
    if wrong:
        raise DataError(
            f"{path} does not hold a CBraMod of the published sizes: {len(wrong)} of its tensors are missing, strange "
            f"or of another shape, '{wrong[0]}' for one (wanted {wanted.get(wrong[0])}, found {shapes.get(wrong[0])})"
        )
    return {name: value.float() for name, value in state.items()}
