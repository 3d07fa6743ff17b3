"""Checkpoints: written atomically, resumed exactly.

All randomness of a training is drawn from generators that are seeded by (seed, epoch) at the start of each epoch. So
weights, optimiser, the step that comes next and the state of PyTorch's generators there are the whole state, and an
interrupted training ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from armlet_runtime.errors import RunError
from armlet_runtime.files import write_atomic

from .. import distributed
from ..recipes import CheckpointRecipe


def fingerprint(*parts: Any) -> str:
    """A digest of everything that a training depends on; a checkpoint with another digest is not resumed."""
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


class Keeper:
    """The checkpoints of one training, of which the last few are kept.

    Files lie in the run's ``checkpoints`` folder: ``NAME-PRINT-STEP.pt``, where PRINT begins the fingerprint of what
    the training depends on. Only the first of many processes writes.
    """

    def __init__(self, folder: Path, name: str, expected: str, recipe: CheckpointRecipe) -> None:
        """Look at nothing yet.

        Args:
            folder: For the files.
            name: Of the training.
            expected: From :func:`fingerprint`.
            recipe: How often, and how many.
        """
        self._folder = folder
        self._name = f"{name}-{expected[:12]}"
        self._expected = expected
        self._recipe = recipe
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint, the same in all processes, or None.

        Raises:
            RunError: It is not a file of PyTorch.
        """
        written = self._written() if distributed.is_first() else []
        return distributed.from_first(load_checkpoint(written[-1], self._expected) if written else None)

    def due(self) -> bool:
        """Whether a checkpoint is due, and this process writes it."""
        return distributed.is_first() and time.monotonic() - self._saved >= self._recipe.every_s

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state that :meth:`load` gives, after that many steps; old checkpoints are removed."""
        if not distributed.is_first():
            return
        save(self._folder / f"{self._name}-{step:09d}.pt", {"fingerprint": self._expected, **state})
        for old in self._written()[: -self._recipe.last]:
            old.unlink()
        self._saved = time.monotonic()

    def _written(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._name}-[0-9]*.pt"))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of PyTorch's generators that a training on ``device`` draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Go on from :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


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
