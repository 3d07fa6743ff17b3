"""HAPT as the training tests use it."""

from __future__ import annotations

import pytest

from armlet_runtime.errors import DataError
from armlet_runtime.recording import Recording
from armlet_train import hapt


@pytest.fixture(scope="session")
def recordings() -> list[Recording]:
    """All of HAPT; the test is skipped where it cannot be fetched."""
    try:
        return hapt.load()
    except DataError as error:
        pytest.skip(f"HAPT cannot be fetched: {error}")
