"""Recordings that the bridge's tests play."""

from __future__ import annotations

import numpy as np
import pytest

from armlet_runtime.modalities import Modality
from armlet_runtime.recording import Recording, Stream


def make_recording(seconds: float, names: tuple[str, ...] = ("acc", "gyro"), rate_hz: float = 50.0) -> Recording:
    """A recording whose channel x counts the samples (in 1/1000 of the unit), so that a lost one shows."""
    count = round(seconds * rate_hz)
    times_ns = (np.arange(count) * 1e9 / rate_hz).astype(np.int64)
    units = {"acc": "g", "gyro": "rad/s", "mag": "uT"}
    streams = {}
    for name in names:
        values = np.zeros((count, 3), np.float32)
        values[:, 0] = np.arange(count) % 1000 / 1000
        streams[name] = Stream(Modality(name, ("x", "y", "z"), units[name], rate_hz), times_ns, values)
    return Recording("counting", "nobody", streams=streams)


@pytest.fixture
def recording() -> Recording:
    """Two seconds of acc and gyro."""
    return make_recording(2.0)
