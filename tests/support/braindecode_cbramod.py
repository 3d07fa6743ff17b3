"""braindecode's CBraMod (BSD-3), which the tests and the benchmark hold ours against."""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec
from unittest.mock import MagicMock

import torch
from torch import nn

# braindecode imports torchaudio for other models than this. The index has it as a CUDA build only, which does not load
# beside a PyTorch for CPUs, so while braindecode is imported something that does nothing stands in its place.
TORCHAUDIO = ("torchaudio", "torchaudio.functional", "torchaudio.transforms")

MISSING = None if find_spec("braindecode") else "braindecode is not installed (pip install 'armlet[dev]')"


def build(channels: int, patches: int) -> nn.Module:
    """A CBraMod of the published sizes for that many channels and patches, every weight random, in evaluation mode.

    It takes (B, channels, patches * 200) and gives what comes out of ``proj_out``, (B, channels, patches, 200).
    """
    stand_ins = {name: MagicMock() for name in TORCHAUDIO if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from braindecode.models import CBraMod
    finally:
        for name in stand_ins:
            del sys.modules[name]
    model: nn.Module = CBraMod(
        n_outputs=2, n_chans=channels, n_times=200 * patches, sfreq=200, return_encoder_output=True
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                # Biases, norms and the mask begin as zeros and ones, and a fault in one of them would not show.
                parameter.add_(0.05 * torch.randn_like(parameter))
            else:
                # As drawn, twelve layers add up to outputs of 20, whose last bits in float32 are 2e-6 each.
                parameter.mul_(0.5)
    return model.eval()
