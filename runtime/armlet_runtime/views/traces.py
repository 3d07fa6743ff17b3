"""A signal as a trace of a few points."""

from __future__ import annotations

import numpy as np

from ..arrays import Float32
from ..modalities import Modality
from ..wearables import XYZ


def one_channel(modality: Modality, values: Float32) -> Float32:
    """(n,) from (n, channels): the length of the vector of three axes, else the first channel."""
    if modality.channels == XYZ:
        length: Float32 = np.sqrt(np.square(values).sum(axis=1))
        return length
    return values[:, 0]


def binned(times_ns: np.ndarray, values: Float32, span_ns: int, points: int) -> list[float | None]:
    """Means of the samples in ``points`` equal parts of the ``span_ns`` before 0; None for a part without samples."""
    within = (times_ns > -span_ns) & (times_ns <= 0) & np.isfinite(values)
    part = ((times_ns[within] + span_ns) * points // (span_ns + 1)).astype(np.int64)
    counts = np.bincount(part, minlength=points)[:points]
    sums = np.bincount(part, values[within], minlength=points)[:points]
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
