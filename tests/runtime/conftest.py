"""A small real model for the tests of this floor, which a process of its own makes (it needs torch)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from armlet_runtime.bundle import keys
from armlet_runtime.bundle.container import Bundle, open_bundle, write_bundle
from armlet_runtime.bundle.manifest import named_members
from armlet_runtime.bundle.trust import Trust
from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Recording, Stream
from armlet_runtime.signals.recording_file import write_recording
from tests.support import artefacts


@dataclass(frozen=True)
class SmallBundle:
    """A signed bundle, the key that signed it, and where they lie."""

    path: Path
    key: Ed25519PrivateKey
    public_key_path: Path

    def open(self) -> Bundle:
        return open_bundle(self.path, Trust((self.key.public_key(),)))


@pytest.fixture(scope="session")
def small_draft() -> Path:
    """Folder of the draft that :mod:`tests.support.small_model` makes; not to be written in."""
    return artefacts.small_draft()


@pytest.fixture(scope="session")
def small_bundle(small_draft: Path, tmp_path_factory: pytest.TempPathFactory) -> SmallBundle:
    """The small model as a signed bundle."""
    key_path = (folder := tmp_path_factory.mktemp("small")) / "signing.key"
    key = keys.generate(key_path)
    draft = Draft(small_draft)
    path = folder / "small.armlet"
    write_bundle(path, draft.manifest, {name: draft.read(name) for name in named_members(draft.manifest)}, [key])
    return SmallBundle(path, key, key_path.with_name("signing.key.pub"))


@pytest.fixture
def armlet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for keys; also that of the commands that the test starts."""
    home = tmp_path / "home"
    monkeypatch.setenv("ARMLET_HOME", str(home))
    assert os.environ["ARMLET_HOME"] == str(home)
    return home


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording to play: acc and gyro at 50 Hz."""
    rng = np.random.default_rng(5)
    times = (np.arange(50 * 60) * 20_000_000).astype(np.int64)
    streams = {
        name: Stream(
            Modality(name, ("x", "y", "z"), unit, 50.0), times, rng.normal(size=(len(times), 3)).astype(np.float32)
        )
        for name, unit in (("acc", "g"), ("gyro", "rad/s"))
    }
    path = tmp_path_factory.mktemp("played") / "played.mcap"
    write_recording(path, Recording("played", "nobody", streams=streams))
    return path
