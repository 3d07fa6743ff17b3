"""Pieces: recordings on the model's grid, each modality at its own rate, with what is missing in them.

The grid begins with the first sample of any of the recording's streams. Values come onto it by the runtime's own
resampling, so that training sees what the board will see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from armlet_runtime.arrays import Bool, Float32, Int64
from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label, Recording, Stream
from armlet_runtime.windows import RATE_TOLERANCE, fill_gaps, resample


class Moments(msgspec.Struct, frozen=True):
    """Count, mean and sum of squared deviations of each channel over the samples that were really there."""

    count: int
    mean: tuple[float, ...]
    squares: tuple[float, ...]


@dataclass(frozen=True)
class Piece:
    """One recording on the grid.

    Attributes:
        name: The recording's.
        person: Who wore it.
        duration_s: From the first sample of any stream to the last of any.
        signals: By modality, (n, channels) float32 in its unit, gaps held; may be memory-mapped. Modalities that the
            recording lacks are not in it.
        gaps: By modality, (g, 2) first and one past the last sample of each gap, in order.
        moments: By modality.
        labels: Spans on the grid's clock, which begins at 0.
        ahead: For signals in files: begins to read rows from a first to one past a last of a modality, and returns.
    """

    name: str
    person: str
    duration_s: float
    signals: Mapping[str, Float32]
    gaps: Mapping[str, Int64]
    moments: Mapping[str, Moments]
    labels: tuple[Label, ...]
    ahead: Callable[[str, int, int], None] | None = None


def grid_count(duration_s: float, rate_hz: float) -> int:
    """Samples of a grid of that rate which begins at 0 and ends no later than ``duration_s``."""
    return int(duration_s * rate_hz + 1e-6) + 1  # 1e-6 samples of slack: times come through floating point


def on_grid(recording: Recording, modalities: Sequence[Modality]) -> Piece | None:
    """Bring a recording onto the grid; None if it has no sample of these modalities.

    A row with a NaN in it is a lost sample.

    Raises:
        DataError: A stream is not of its modality's channels, unit or rate.
    """
    streams = {name: _whole_rows(stream) for name, stream in recording.streams.items()}
    streams = {name: stream for name, stream in streams.items() if len(stream.times_ns)}
    wanted = [modality for modality in modalities if modality.name in streams]
    if not wanted:
        return None
    start_ns = min(int(stream.times_ns[0]) for stream in streams.values())
    duration_s = (max(int(stream.times_ns[-1]) for stream in streams.values()) - start_ns) / 1e9
    signals, gaps, moments = {}, {}, {}
    for modality in wanted:
        stream = streams[modality.name]
        _check(recording.name, stream.modality, modality)
        grid = np.arange(grid_count(duration_s, modality.rate_hz)) / modality.rate_hz
        if np.array_equal(np.rint(grid * 1e9), stream.times_ns - start_ns):
            # Every sample lies on the grid, where resampling would give it back.
            values, covered = stream.values, np.ones(len(grid), np.bool_)
        else:
            times = (stream.times_ns - start_ns) / 1e9
            values, covered = resample(times, stream.values, grid, 1 / stream.modality.rate_hz)
        signals[modality.name] = fill_gaps(values, covered)
        gaps[modality.name] = _gaps(covered)
        moments[modality.name] = _moments(values if covered.all() else values[covered])
    labels = tuple(Label(label.start_ns - start_ns, label.end_ns - start_ns, label.name) for label in recording.labels)
    return Piece(recording.name, recording.person, duration_s, signals, gaps, moments, labels)


def merge_moments(parts: Iterable[Moments]) -> Moments:
    """Moments of all samples together (Chan, Golub and LeVeque, 1983)."""
    count, mean, squares = 0, np.zeros(0), np.zeros(0)
    for part in parts:
        if part.count == 0:
            continue
        if count == 0:
            count, mean, squares = part.count, np.array(part.mean), np.array(part.squares)
            continue
        total = count + part.count
        step = np.array(part.mean) - mean
        mean = mean + step * part.count / total
        squares = squares + np.array(part.squares) + step**2 * count * part.count / total
        count = total
    return Moments(count, tuple(mean.tolist()), tuple(squares.tolist()))


def _whole_rows(stream: Stream) -> Stream:
    whole = ~np.isnan(stream.values).any(axis=1)
    return stream if whole.all() else Stream(stream.modality, stream.times_ns[whole], stream.values[whole])


def _check(recording: str, got: Modality, want: Modality) -> None:
    if (got.channels, got.unit) != (want.channels, want.unit):
        raise DataError(
            f"'{got.name}' of recording {recording} is {', '.join(got.channels)} in {got.unit}; "
            f"the data set's is {', '.join(want.channels)} in {want.unit}"
        )
    if abs(got.rate_hz / want.rate_hz - 1) > RATE_TOLERANCE:
        raise DataError(
            f"'{got.name}' of recording {recording} comes at {got.rate_hz:g} Hz, and the data set's at "
            f"{want.rate_hz:g} Hz: resample it first"
        )


def _gaps(covered: Bool) -> Int64:
    edges = np.flatnonzero(np.diff(np.concatenate([[True], covered, [True]])))
    return edges.reshape(-1, 2).astype(np.int64)


def _moments(values: Float32) -> Moments:
    mean = values.mean(axis=0, dtype=np.float64) if len(values) else np.zeros(values.shape[1])
    squares = np.zeros(values.shape[1])
    for first in range(0, len(values), 1 << 20):  # in parts: a night's float64 copy would be large
        squares += ((values[first : first + (1 << 20)] - mean) ** 2).sum(axis=0)
    return Moments(len(values), tuple(mean.tolist()), tuple(squares.tolist()))
