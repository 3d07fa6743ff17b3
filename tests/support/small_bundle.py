"""The small model as a signed bundle, and a recording that it can decide on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from armlet_runtime.bundle import Bundle, Trust, keys, named_members, open_bundle, write_bundle
from armlet_runtime.checks import Draft
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Recording, Stream, write_recording

from . import artefacts


@dataclass(frozen=True)
class SmallBundle:
    """A signed bundle, and the key that signed it."""

    path: Path
    key: Ed25519PrivateKey
    public_key_path: Path

    def open(self) -> Bundle:
        """The verified bundle."""
        return open_bundle(self.path, Trust((self.key.public_key(),)))


def write_small_bundle(folder: Path) -> SmallBundle:
    """Sign the draft of :mod:`tests.support.small_model` with a new key; both are written into ``folder``."""
    key = keys.generate(folder / "signing.key")
    draft = Draft(artefacts.small_draft())
    path = folder / "small.armlet"
    write_bundle(path, draft.manifest, {name: draft.read(name) for name in named_members(draft.manifest)}, [key])
    return SmallBundle(path, key, folder / "signing.key.pub")


def write_noise(path: Path, seconds: float = 60.0) -> None:
    """Write a recording of acceleration and angular rate at 50 Hz, all noise."""
    rng = np.random.default_rng(5)
    times_ns = (np.arange(round(50 * seconds)) * 20_000_000).astype(np.int64)
    streams = {
        name: Stream(
            Modality(name, ("x", "y", "z"), unit, 50.0),
            times_ns,
            rng.normal(size=(len(times_ns), 3)).astype(np.float32),
        )
        for name, unit in (("acc", "g"), ("gyro", "rad/s"))
    }
    write_recording(path, Recording("played", "nobody", streams=streams))
