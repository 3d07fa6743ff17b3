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

from .modalities import Modality

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

# Neighbouring samples further apart than this many sampling periods have a gap between them: nothing is interpolated
# across it. 1.5 lies half-way between "next sample" (1) and "one sample lost" (2).
GAP_PERIODS = 1.5


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
            staying one (``asinh(z / knee) / asinh(1 / knee)``). A gyroscope at rest says in 0.03 standard deviations
            whether its wearer stands or lies; without a knee that is less than one step of an int8 input. None: linear.
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
        return np.ascontiguousarray(normal, dtype=np.float32)

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
    """The ``count`` grid times (s) of a window that ends at ``end_s``: the last one lies one period before the end.

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
        values: (n, channels) float32 samples.
        grid_s: (m,) increasing times asked for.
        period_s: Nominal sampling period of the samples.

    Returns:
        ``(m, channels)`` float32 values and ``(m,)`` bool coverage.
    """
    n, limit = len(times_s), GAP_PERIODS * period_s
    left = np.searchsorted(times_s, grid_s, side="right") - 1
    # Of a stretch without gaps, all but the last grid times have two samples on each side; a window is mostly that.
    rows = int(np.searchsorted(left, n - 2)) if n > 3 and left[0] > 0 else 0
    if rows and (np.diff(times_s[left[0] - 1 : left[rows - 1] + 3]) <= limit).all():
        at = left[:rows]
        before = times_s.take(at)
        f = ((grid_s[:rows] - before) / (times_s.take(at + 1) - before))[:, None].astype(np.float32)
        inner = _cubic(values, at - 1, at, at + 1, at + 2, f)
        if rows == len(grid_s):
            return inner, np.ones(rows, np.bool_)
        rest, covered = _resample_with_gaps(times_s, values, grid_s[rows:], period_s)
        return np.concatenate([inner, rest]), np.concatenate([np.ones(rows, np.bool_), covered])
    return _resample_with_gaps(times_s, values, grid_s, period_s)


def _resample_with_gaps(times_s: Float64, values: Float32, grid_s: Float64, period_s: float) -> tuple[Float32, Bool]:
    """What :func:`resample` says, whatever the samples are like."""
    out = np.zeros((len(grid_s), values.shape[1]), np.float32)
    covered = np.zeros(len(grid_s), np.bool_)
    n = len(times_s)
    if n == 0:
        return out, covered
    # minimum and maximum in place of clip, which costs more than all else here for arrays as short as these.
    right = np.searchsorted(times_s, grid_s, side="right")
    left = np.maximum(right - 1, 0)
    right = np.minimum(right, n - 1)
    nearest_distance = np.minimum(np.abs(grid_s - times_s[left]), np.abs(times_s[right] - grid_s))
    span = times_s[right] - times_s[left]
    inside = (span > 0) & (span <= GAP_PERIODS * period_s)
    # 1 ns of slack: times come from integer nanoseconds through floating point.
    covered = inside | (nearest_distance <= 0.5 * period_s + 1e-9)

    fraction = np.zeros(len(grid_s))
    np.divide(grid_s - times_s[left], span, out=fraction, where=inside)
    f = fraction[:, None].astype(np.float32)
    out = values[left] * (1 - f) + values[right] * f
    if not inside.all():
        hold = np.where(np.abs(grid_s - times_s[left]) <= np.abs(times_s[right] - grid_s), left, right)
        out = np.where(inside[:, None], out, values[hold])

    before, after = left - 1, right + 1
    four = inside & (before >= 0) & (after < n)
    if four.any():
        b, a = np.maximum(before, 0), np.minimum(after, n - 1)
        limit = GAP_PERIODS * period_s
        four &= (times_s[left] - times_s[b] <= limit) & (times_s[a] - times_s[right] <= limit)
        out = np.where(four[:, None], _cubic(values, b, left, right, a, f), out)
    out[~covered] = 0
    return out.astype(np.float32, copy=False), covered


def _cubic(
    values: Float32,
    before: NDArray[np.int64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    after: NDArray[np.int64],
    f: Float32,
) -> Float32:
    """Between ``left`` and ``right``, ``f`` (m, 1) of the way; always in this order, so that all give the same bits."""
    g: Float32 = f - np.float32(1)
    h: Float32 = f - np.float32(2)
    e: Float32 = f + np.float32(1)
    six, two = np.float32(6), np.float32(2)
    value: Float32 = (
        values.take(before, axis=0) * (-f * g * h / six)
        + values.take(left, axis=0) * (e * g * h / two)
        + values.take(right, axis=0) * (-e * f * h / two)
        + values.take(after, axis=0) * (e * f * g / six)
    )
    return value


def fill_gaps(values: Float32, covered: Bool) -> Float32:
    """Fill the uncovered samples of a window by holding the nearest covered one (the earlier one on a tie).

    Args:
        values: (samples, channels).
        covered: (samples,) bool.

    Returns:
        (samples, channels); all zeros if nothing is covered (such a window is never used: its modality is masked).
    """
    if covered.all() or not covered.any():
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
