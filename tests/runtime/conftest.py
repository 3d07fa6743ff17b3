"""A small real model for the tests of this floor, made once a session in a process of its own (it needs torch)."""

from __future__ import annotations

import os
import subprocess
import sys
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
from armlet_runtime.signals.recording import Recording, Stream, write_recording

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class SmallBundle:
    """A signed bundle, the key that signed it, and where they lie."""

    path: Path
    key: Ed25519PrivateKey
    public_key_path: Path

    def open(self) -> Bundle:
        return open_bundle(self.path, Trust((self.key.public_key(),)))


@pytest.fixture(scope="session")
def small_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the draft that :mod:`tests.support.small_model` makes."""
    folder = tmp_path_factory.mktemp("small") / "draft"
    command = [sys.executable, "-m", "tests.support.small_model", str(folder)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert made.returncode == 0, made.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def small_bundle(small_draft: Path) -> SmallBundle:
    """The small model as a signed bundle."""
    key_path = small_draft.parent / "signing.key"
    key = keys.generate(key_path)
    draft = Draft(small_draft)
    path = small_draft.parent / "small.armlet"
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
