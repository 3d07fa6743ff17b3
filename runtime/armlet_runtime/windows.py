"""Windows: a fixed span of the common clock, cut, resampled, gap-filled and normalised.

Training and the board both go through the functions here, so that a model never sees on the board a signal that was
treated otherwise in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from .arrays import Bool, Float32, Float64
from .modalities import Modality

# Neighbouring samples further apart than this many sampling periods have a gap between them: nothing is interpolated
# across it. 1.5 lies half-way between "next sample" (1) and "one sample lost" (2).
GAP_PERIODS = 1.5

# A wearable's own rate may be off the model's by this share, and is then interpolated. Further off, interpolation would
# alias the signal or invent some, and the stream is not used.
RATE_TOLERANCE = 0.1

# Of the samples at -1, 0, 1 and 2 around a grid time: where they lie from the place that searchsorted gives; Lagrange's
# polynomials: for each, which of the nodes give its three factors, and what it is divided by; and what linear
# interpolation gives it, as multiples of the share and of 1.
_AROUND = np.array([-2, -1, 0, 1])[:, None]
_NODES = np.array([0, 1, 2, -1], np.float32)[:, None]
_FACTORS = np.array([[0, 3, 3, 3], [1, 1, 0, 0], [2, 2, 2, 1]])
_DIVISORS = np.array([-6, 2, -2, 6], np.float32)[:, None]
_LINEAR_SHARE = np.array([0, -1, 1, 0], np.float32)[:, None]
_LINEAR_ONE = np.array([0, 1, 0, 0], np.float32)[:, None]

# Samples that are not there, before the first and after the last: far from any grid time and from each other.
_NEVER_BEFORE, _NEVER_AFTER = np.array([-2e15, -1e15]), np.array([1e15, 2e15])

# Grid times that are computed at once, so that a day's recording needs little memory beside its samples.
_BLOCK = 65_536


class WindowSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Length and hop of the windows, in seconds of the common clock."""

    length_s: float
    hop_s: float

    def samples(self, modality: Modality) -> int:
        """Samples of ``modality`` in one window."""
        return round(self.length_s * modality.rate_hz)


class Normalisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Per-channel mean and standard deviation of one modality, taken from training people only.

    Attributes:
        mean: In the modality's unit.
        std: In the modality's unit.
        knee: Where the scale bends, in standard deviations: linear below, logarithmic above, one standard deviation
            staying one (``asinh(z / knee) / asinh(1 / knee)``). A gyroscope at rest shows within 0.03 standard
            deviations whether its wearer stands or lies; without a knee that is less than a step of an int8 input.
            None: linear.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    knee: float | None = None

    def apply(self, window: Float32) -> Float32:
        """Normalise a window of shape (..., channels, samples), as float32.

        Computed in float64 and rounded once, so that machines whose libraries differ in the last bit agree.
        """
        normal = (window - _column(self.mean)) / _column(self.std)
        if self.knee is not None:
            normal = np.arcsinh(normal / self.knee) / np.arcsinh(1 / self.knee)
        return normal.astype(np.float32, order="C")

    def undo(self, window: Float32) -> Float32:
        """The window (..., channels, samples) in physical units that normalises to ``window``."""
        normal = window.astype(np.float64)
        if self.knee is not None:
            normal = np.sinh(normal * np.arcsinh(1 / self.knee)) * self.knee
        return np.ascontiguousarray(normal * _column(self.std) + _column(self.mean), dtype=np.float32)


@cache
def _column(numbers: tuple[float, ...]) -> Float64:
    """(n, 1), made once: a live loop asks for the same few hop after hop."""
    column = np.asarray(numbers, np.float64)[:, None]
    column.setflags(write=False)
    return column


@cache
def sample_times(end_s: float, rate_hz: float, count: int) -> Float64:
    """The ``count`` grid times (s) of a window that ends at ``end_s``: the last lies one period before the end.

    So two windows one length apart share no sample.
    """
    times = end_s - np.arange(count, 0, -1, dtype=np.float64) / rate_hz
    times.setflags(write=False)
    return times


def resample(times_s: Float64, values: Float32, grid_s: Float64, period_s: float) -> tuple[Float32, Bool]:
    """Values at the grid times, and which of them are covered by samples.

    Four-point cubic (Lagrange, uniform nodes) interpolation where four consecutive samples surround the grid time,
    linear at the edges of a gap-free stretch; a grid time that meets a sample takes that sample's value exactly. A grid
    time in a gap (neighbours further apart than :data:`GAP_PERIODS` periods), or more than half a period outside the
    samples, is not covered and is returned as 0.

    Args:
        times_s: (n,) strictly increasing times of the samples, in seconds of the grid's clock.
        values: (n, channels) float32 samples, all finite.
        grid_s: (m,) increasing times asked for.
        period_s: Nominal sampling period of the samples.

    Returns:
        ``(m, channels)`` float32 values and ``(m,)`` bool coverage.
    """
    n = len(times_s)
    if n == 0:
        return np.zeros((len(grid_s), values.shape[1]), np.float32), np.zeros(len(grid_s), np.bool_)
    if len(grid_s) > _BLOCK:
        starts = range(0, len(grid_s), _BLOCK)
        blocks = [resample(times_s, values, grid_s[start : start + _BLOCK], period_s) for start in starts]
        return np.concatenate([block for block, _ in blocks]), np.concatenate([covered for _, covered in blocks])
    # Two samples before each grid time and two after it, (4, m).
    padded_s = np.concatenate([_NEVER_BEFORE, times_s, _NEVER_AFTER])
    places = padded_s.searchsorted(grid_s, side="right") + _AROUND
    around_s = padded_s.take(places)
    steps = around_s[1:] - around_s[:-1]
    together = steps <= GAP_PERIODS * period_s
    inside = together[1]
    covered = four = together[0] & inside & together[2]
    since = grid_s - around_s[1]
    share = (since / steps[1]).astype(np.float32)
    factors = (share - _NODES).take(_FACTORS, axis=0)
    weights = factors[0] * factors[1] * factors[2] / _DIVISORS
    if np.count_nonzero(four) < len(four):  # the others are linear
        covered = inside
        if np.count_nonzero(inside) < len(inside):  # and those in a gap the nearest sample's, or nothing
            until = around_s[2] - grid_s
            # 1 ns of slack: times come from integer nanoseconds through floating point.
            covered = inside | (np.minimum(since, until) <= 0.5 * period_s + 1e-9)
            share = np.where(inside, share, since > until)
        linear = (share * _LINEAR_SHARE + _LINEAR_ONE) * covered
        weights = np.where(four, weights, linear)
    # At the ends the first or last sample is repeated for missing neighbours, which have no weight.
    before, left, right, after = values.take(places - 2, axis=0, mode="clip") * weights[:, :, None]
    return before + left + right + after, covered


def all_finite(values: Float32) -> bool:
    """Whether none is NaN or infinite. A live loop asks often, of few: counting them is quicker than ``all``."""
    return int(np.count_nonzero(np.isfinite(values))) == values.size


def fill_gaps(values: Float32, covered: Bool) -> Float32:
    """Fill the uncovered samples of a window by holding the nearest covered sample (the earlier on a tie).

    Args:
        values: (samples, channels).
        covered: (samples,) bool.

    Returns:
        (samples, channels); all zeros if nothing is covered (such a window is never used: its modality is masked).
    """
    received = np.count_nonzero(covered)
    if received == len(covered) or not received:
        return values
    known = np.flatnonzero(covered)
    where = np.arange(len(covered))
    position = np.searchsorted(known, where)
    later = known[np.clip(position, 0, len(known) - 1)]
    earlier = known[np.clip(position - 1, 0, len(known) - 1)]
    nearest = np.where(np.abs(where - earlier) <= np.abs(later - where), earlier, later)
    return values[nearest]


def cut(values: Float32, length: int, stride: int, starts: Sequence[int] | NDArray[np.int64] | None = None) -> Float32:
    """Windows of a gap-free stretch of samples.

    Args:
        values: (n, channels) samples at the model's rate.
        length: Samples a window.
        stride: Samples between starts (ignored when ``starts`` is given).
        starts: First samples of the windows, if not regular.

    Returns:
        (windows, channels, length) float32.
    """
    first = np.arange(0, len(values) - length + 1, stride) if starts is None else np.asarray(starts, np.int64)
    index = first[:, None] + np.arange(length)[None, :]
    return np.ascontiguousarray(values[index].transpose(0, 2, 1), dtype=np.float32)
