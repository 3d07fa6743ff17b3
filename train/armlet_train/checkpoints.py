"""Checkpoints: written atomically, resumed exactly.

All randomness of a training is drawn from generators that are seeded by (seed, epoch) at the start of each epoch. So
weights, optimiser and the number of the next epoch are the whole state, and an interrupted training ends with the same
weights as one that was not.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from armlet_runtime.errors import RunError
from armlet_runtime.files import write_atomic


def fingerprint(*parts: Any) -> str:
    """A digest of what a training depends on; a checkpoint with another one is not gone on from."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(msgspec.json.encode(part))
    return digest.hexdigest()


def state_digest(model: nn.Module) -> str:
    """SHA-256 over a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint or a model's state atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Read tensors and plain values; nothing in the file is executed.

    Raises:
        RunError: It is not a file of PyTorch.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in many ways; each means the same here
        raise RunError(f"{path} cannot be read ({type(error).__name__}); delete it and train again") from None
    return state


def load_checkpoint(path: Path, expected: str) -> dict[str, Any] | None:
    """A checkpoint with that fingerprint, or None.

    Raises:
        RunError: It is not a file of PyTorch.
    """
    if not path.exists():
        return None
    state = load(path)
    return state if state.get("fingerprint") == expected else None


def seed_epoch(seed: int, epoch: int, stage: int) -> np.random.Generator:
    """Seed PyTorch's global generators for an epoch, and give NumPy's for the order of the data.

    Args:
        seed: The recipe's.
        epoch: Its number.
        stage: Tells trainings with the same seed apart (1 pretraining, 2 fine-tuning, 3 quantisation-aware training).
    """
    sequence = np.random.SeedSequence([seed, stage, epoch])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
    return np.random.default_rng(sequence)
