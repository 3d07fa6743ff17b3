"""What the training tests share: HAPT, and one thread."""

from __future__ import annotations

import pytest
import torch

from armlet_runtime.errors import DataError
from armlet_runtime.signals.recording import Recording
from armlet_train.data.datasets import hapt


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As the commands train on a CPU: more threads are slower on models this small, and very slow on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def recordings() -> list[Recording]:
    """All of HAPT; the test is skipped where it cannot be fetched."""
    try:
        return hapt.load()
    except DataError as error:
        pytest.skip(f"HAPT cannot be fetched: {error}")
