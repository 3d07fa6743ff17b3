"""A recorded stream brought to another rate.

To a lower rate it goes through a low-pass filter first, which a live run could not do without being late; to a higher
one it is interpolated, and what the wearable did not measure stays out of it. A live run refuses both, see
:mod:`armlet_runtime.live.core`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..modalities import Modality
from ..windows import GAP_PERIODS, resample
from .recording import Stream

# The low-pass filter before a lower rate: a Kaiser window whose stop band is 60 dB down (Oppenheim & Schafer, 7.5.3),
# from 0.4 to 0.5 of the new rate.
_PASS, _STOP, _DECIBELS = 0.4, 0.5, 60.0


def at_rate(stream: Stream, rate_hz: float) -> Stream:
    """A stream at another rate, on a grid that begins with its first sample; where it has gaps, so has the result."""
    own_hz = stream.modality.rate_hz
    finite = np.isfinite(stream.values).all(axis=1)
    times, values = stream.times_ns[finite], stream.values[finite]
    seconds = (times - times[0]) / 1e9 if len(times) else np.zeros(0)
    if own_hz > rate_hz and len(times):
        seconds, values = _low_passed(seconds, values, own_hz, rate_hz)
    count = math.floor(seconds[-1] * rate_hz + 1e-6) + 1 if len(seconds) else 0
    grid = np.arange(count) / rate_hz
    resampled, covered = resample(seconds, values, grid, 1 / own_hz)
    start = int(times[0]) if len(times) else 0
    stamps = start + np.rint(grid[covered] * 1e9).astype(np.int64)
    return Stream(_with_rate(stream.modality, rate_hz), stamps, resampled[covered])


def _with_rate(modality: Modality, rate_hz: float) -> Modality:
    return Modality(modality.name, modality.channels, modality.unit, rate_hz)


def _low_passed(
    seconds: NDArray[np.float64], values: Float32, own_hz: float, rate_hz: float
) -> tuple[NDArray[np.float64], Float32]:
    """Each gap-free stretch on a grid of its own rate, without what the new rate cannot carry."""
    width = (_STOP - _PASS) * rate_hz / own_hz
    taps = 2 * math.ceil((_DECIBELS - 7.95) / (14.36 * width) / 2) + 1
    n = np.arange(taps) - taps // 2
    cutoff = (_PASS + _STOP) * rate_hz / own_hz  # of half the own rate
    beta = 0.1102 * (_DECIBELS - 8.7)
    kernel = cutoff * np.sinc(cutoff * n) * np.kaiser(taps, beta)
    kernel /= kernel.sum()
    edges = np.flatnonzero(np.diff(seconds) > GAP_PERIODS / own_hz) + 1
    times, filtered = [], []
    for part in np.split(np.arange(len(seconds)), edges):
        grid = (
            seconds[part[0]]
            + np.arange(math.floor((seconds[part[-1]] - seconds[part[0]]) * own_hz + 1e-6) + 1) / own_hz
        )
        even, _ = resample(seconds[part], values[part], grid, 1 / own_hz)
        # Held at its ends, so that a stretch does not fade in and out.
        held = np.pad(even.astype(np.float64), ((taps // 2, taps // 2), (0, 0)), "edge")
        times.append(grid)
        filtered.append(np.stack([np.convolve(column, kernel, "valid") for column in held.T], axis=1))
    return np.concatenate(times), np.concatenate(filtered).astype(np.float32)
