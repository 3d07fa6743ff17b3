"""From recordings to training windows: signals on the model's grid, starts of windows, labels, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.recording import Recording
from armlet_runtime.windows import Float32, Normalisation, WindowSpec, cut, fill_gaps, resample

from . import hapt
from .recipes import DataRecipe

Int64 = NDArray[np.int64]
NO_LABEL = -1


@dataclass(frozen=True)
class Corpus:
    """The recordings of some people, joined on the model's grid.

    Attributes:
        modalities: In the model's order; all of one rate in this version.
        signals: Modality name to (n, channels) float32 in its unit, recordings back to back.
        codes: (n,) index of each sample's label in ``labels``, or :data:`NO_LABEL`.
        labels: Names of the labels.
        people: (n,) wearer of each sample.
        ends: (n,) index just past the end of each sample's recording.
        length: Samples of a window.
        stride: Samples from window to window in scoring.
        knee: Modality to the knee of its normalisation, where it has one.
    """

    modalities: tuple[Modality, ...]
    signals: dict[str, Float32]
    codes: Int64
    labels: tuple[str, ...]
    people: NDArray[np.str_]
    ends: Int64
    length: int
    stride: int
    knee: dict[str, float]

    @property
    def wearers(self) -> list[str]:
        """Each of ``people`` once, sorted."""
        return sorted({str(person) for person in self.people})

    @cached_property
    def run_ends(self) -> Int64:
        """(n,) index just past the stretch of one label, within one recording, that each sample lies in."""
        change = np.flatnonzero((np.diff(self.codes) != 0) | (np.diff(self.ends) != 0)) + 1
        edges = np.concatenate([change, [len(self.codes)]])
        ends: Int64 = edges[np.searchsorted(change, np.arange(len(self.codes)), side="right")]
        return ends

    def starts(self, labelled: bool, every: int) -> Int64:
        """First samples of all windows that lie in one recording.

        Args:
            labelled: Only windows that carry one of ``labels`` from end to end.
            every: Samples from start to start, counted from each recording's first sample; 1 for all windows.
        """
        firsts = np.concatenate([[0], np.unique(self.ends)[:-1]])
        regular = [np.arange(first, self.ends[first] - self.length + 1, every) for first in firsts]
        starts = np.concatenate(regular).astype(np.int64)
        if labelled:
            starts = starts[(self.codes[starts] != NO_LABEL) & (self.run_ends[starts] >= starts + self.length)]
        return starts

    @property
    def lengths(self) -> dict[str, int]:
        """Modality name to samples of a window."""
        return dict.fromkeys(self.signals, self.length)

    @property
    def in_memory(self) -> bool:
        """Whether the signals are small enough to lie on the device that trains."""
        return True

    def rows(self, starts: Int64) -> dict[str, Int64]:
        """Modality name to the first row of each window in its signal."""
        return dict.fromkeys(self.signals, starts)

    def present(self, starts: Int64) -> NDArray[np.bool_]:
        """(windows, modalities): which modalities each window has."""
        return np.ones((len(starts), len(self.modalities)), np.bool_)

    def labels_of(self, starts: Int64) -> Int64:
        """(windows,) index of each window's label in ``labels``, or :data:`NO_LABEL`."""
        return self.codes[starts]

    def neighbours(self, starts: Int64, reach_s: float, draw: np.random.Generator) -> Int64:
        """For each start another one at most ``reach_s`` seconds away, whose window lies in the same recording."""
        reach = round(reach_s * self.modalities[0].rate_hz)
        firsts = np.concatenate([[0], np.unique(self.ends)[:-1]])
        first = firsts[np.searchsorted(firsts, starts, side="right") - 1]
        moved = starts + draw.integers(-reach, reach, len(starts), endpoint=True)
        inside: Int64 = np.clip(moved, first, self.ends[starts] - self.length)
        return inside

    def windows(self, starts: Int64) -> dict[str, Float32]:
        """Modality name to (windows, channels, samples) in its unit."""
        return {name: cut(signal, self.length, self.stride, starts) for name, signal in self.signals.items()}

    def normalisation(self) -> dict[str, Normalisation]:
        """Mean and standard deviation of every channel over all samples, and the recipe's knees."""
        return {
            name: Normalisation(
                tuple(map(float, signal.mean(axis=0, dtype=np.float64))),
                tuple(map(float, signal.std(axis=0, dtype=np.float64))),
                self.knee.get(name),
            )
            for name, signal in self.signals.items()
        }


@dataclass(frozen=True)
class Scored:
    """Windows to score: regular ones with one label each, of some people.

    Attributes:
        windows: Modality name to (n, channels, samples) normalised float32.
        truth: (n,) label indices.
        people: (n,) wearers.
    """

    windows: dict[str, Float32]
    truth: Int64
    people: NDArray[np.str_]


def window_spec(recipe: DataRecipe) -> WindowSpec:
    """The windows of the live loop."""
    return WindowSpec(recipe.window_s, recipe.hop_s)


def load_corpus(recipe: DataRecipe, split: str) -> Corpus:
    """The recordings of one split (``train``, ``validation`` or ``test``) of the recipe's data set.

    Raises:
        DataError: The data cannot be had, or lack one of the recipe's modalities or labels.
    """
    recordings = [recording for recording in hapt.load() if recording.person in hapt.SPLITS[split]]
    unknown = set(recipe.labels) - set(hapt.LABELS.values())
    if unknown:
        raise DataError(
            f"{recipe.name} has no label {', '.join(sorted(unknown))}; it has {', '.join(hapt.LABELS.values())}"
        )
    return join(recordings, recipe)


def join(recordings: Sequence[Recording], recipe: DataRecipe) -> Corpus:
    """Bring recordings onto the model's grid and put them back to back.

    Raises:
        DataError: There is no recording, or one lacks a modality.
    """
    strange = set(recipe.knee) - set(recipe.modalities)
    if strange:
        raise DataError(f"[data] knee names {', '.join(sorted(strange))}, which is not among [data] modalities")
    if not recordings:
        raise DataError(f"{recipe.name} has no recordings of the people asked for")
    modalities = []
    for name in recipe.modalities:
        lacking = next((recording for recording in recordings if name not in recording.streams), None)
        if lacking is not None:
            has = ", ".join(lacking.streams)
            raise DataError(f"recording {lacking.name} has no modality '{name}' (it has {has}); mend [data] modalities")
        modalities.append(recordings[0].streams[name].modality)
    rate = modalities[0].rate_hz
    if any(modality.rate_hz != rate for modality in modalities):
        raise DataError("modalities of different rates cannot be trained on together in this version")

    signals: dict[str, list[Float32]] = {modality.name: [] for modality in modalities}
    codes, people, ends = [], [], []
    total = 0
    for recording in recordings:
        grid_ns, values = _on_grid(recording, modalities)
        for name, part in values.items():
            signals[name].append(part)
        code = np.full(len(grid_ns), NO_LABEL, np.int64)
        for label in recording.labels:
            if label.name in recipe.labels:
                first, last = np.searchsorted(grid_ns, [label.start_ns, label.end_ns])
                code[first:last] = recipe.labels.index(label.name)
        total += len(grid_ns)
        codes.append(code)
        people.append(np.full(len(grid_ns), recording.person))
        ends.append(np.full(len(grid_ns), total, np.int64))
    return Corpus(
        tuple(modalities),
        {name: np.concatenate(parts) for name, parts in signals.items()},
        np.concatenate(codes),
        recipe.labels,
        np.concatenate(people),
        np.concatenate(ends),
        round(recipe.window_s * rate),
        round(recipe.stride_s * rate),
        dict(recipe.knee),
    )


def _on_grid(recording: Recording, modalities: Sequence[Modality]) -> tuple[Int64, dict[str, Float32]]:
    """A recording's signals at the model's rate, over the time that all of them cover; gaps held as on the board."""
    streams = [recording.streams[modality.name] for modality in modalities]
    start = max(int(stream.times_ns[0]) for stream in streams)
    end = min(int(stream.times_ns[-1]) for stream in streams)
    rate = modalities[0].rate_hz
    grid = np.arange(int((end - start) / 1e9 * rate + 1e-6) + 1) / rate
    values = {}
    for modality, stream in zip(modalities, streams, strict=True):
        on_grid, covered = resample((stream.times_ns - start) / 1e9, stream.values, grid, 1 / stream.modality.rate_hz)
        values[modality.name] = fill_gaps(on_grid, covered)
    return start + np.round(grid * 1e9).astype(np.int64), values


def score_windows(corpus: Corpus, normalisation: dict[str, Normalisation]) -> Scored:
    """The windows that figures are computed on."""
    starts = corpus.starts(labelled=True, every=corpus.stride)
    windows = {name: normalisation[name].apply(raw) for name, raw in corpus.windows(starts).items()}
    return Scored(windows, corpus.codes[starts], corpus.people[starts])
