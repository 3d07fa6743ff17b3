"""A CBraMod encoder becomes a program of every engine; its two ways of going faster in PyTorch leave no trace in it."""

from __future__ import annotations

import pytest
import torch

from armlet_export.backends.base import Part, Signature
from armlet_export.backends.registry import lower_part
from armlet_runtime import engines
from armlet_runtime.modalities import Modality
from armlet_train.models import CBraModEncoder
from armlet_train.recipes import CBraModModel, CBraModSizes

from .conftest import run_tiny

# Fewer channels and patches than the positions reach over, and one channel only in the second.
SIZES = CBraModSizes(patch=16, stride=4, maps=8, groups=4, layers=1, heads=4, feedforward=32, positions=(7, 9))
RECIPE = CBraModModel(
    encoders={"eeg": SIZES, "ecg": SIZES}, pool="mean", token_dim=8, embedding_dim=8, dropout=0.1
)  # fmt: skip


EEG, ECG = Modality("eeg", ("C3", "C4"), "uV", 50.0), Modality("ecg", ("1",), "mV", 50.0)


@pytest.mark.parametrize(("engine", "modality"), [("executorch", EEG), ("onnx", EEG), ("litert", ECG)])
def test_encoder_is_the_same_on_every_engine(engine: str, modality: Modality) -> None:
    reason = engines.available()[engine]
    if reason is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    channels = len(modality.channels)
    encoder = CBraModEncoder(RECIPE, modality, 48).eval()
    part = Part(encoder, Signature("window", (1, channels, 48), {"token": (1, 8)}), "fp32")
    windows = torch.randn(4, channels, 48)
    (found,) = run_tiny(engine, lower_part(engine, part), part, windows)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), encoder(windows), rtol=0, atol=1e-5)
