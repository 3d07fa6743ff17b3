"""A small real model for the tests of this floor, which a process of its own makes (it needs torch)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import artefacts
from tests.support.small_bundle import SmallBundle, write_noise, write_small_bundle


@pytest.fixture(scope="session")
def small_draft() -> Path:
    """Folder of the draft that :mod:`tests.support.small_model` makes; not to be written in."""
    return artefacts.small_draft()


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> SmallBundle:
    """The small model as a signed bundle."""
    return write_small_bundle(tmp_path_factory.mktemp("small"))


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
    path = tmp_path_factory.mktemp("played") / "played.mcap"
    write_noise(path)
    return path
