"""From recordings to training windows: what can be drawn, what is present, labels, normalisation.

Windows are cut on the common time. A *tick* is one period of the fastest modality; ticks count through all recordings,
back to back, and a window is named by its first tick. Each modality has its own rate and its own samples a window; a
slower one begins with the sample that lies nearest to the tick.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.arrays import Bool, Float32, Int64
from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label
from armlet_runtime.windows import Normalisation, fill_gaps

from .grid import Piece, grid_count, merge_moments

NO_LABEL = -1


@dataclass(frozen=True)
class Corpus:
    """The recordings of some people on the model's grid, in memory or memory-mapped.

    Attributes:
        pieces: The recordings.
        modalities: In the model's order, each with its own rate.
        labels: Names of the labels.
        window_s: Length of a window.
        stride_s: From window to window in scoring.
        min_coverage: Share of a window's samples that a modality needs to be present.
        knee: Modality to the knee of its normalisation, where it has one.
        scale: Modality to the constant that it is divided by, instead of mean and deviation, where it has one.
        hold_out: Labels of which no window may have a sample. (Mean and deviation are those of all samples.)
        in_memory: Whether the pieces are; else they are mapped from files that may be larger than memory.
    """

    pieces: tuple[Piece, ...]
    modalities: tuple[Modality, ...]
    labels: tuple[str, ...]
    window_s: float
    stride_s: float
    min_coverage: float
    knee: dict[str, float]
    scale: dict[str, float]
    hold_out: tuple[str, ...] = ()
    in_memory: bool = True

    @property
    def tick_hz(self) -> float:
        """Ticks a second: the rate of the fastest modality."""
        return max(modality.rate_hz for modality in self.modalities)

    @property
    def length(self) -> int:
        """Ticks of a window."""
        return round(self.window_s * self.tick_hz)

    @property
    def stride(self) -> int:
        """Ticks from window to window in scoring."""
        return round(self.stride_s * self.tick_hz)

    @cached_property
    def lengths(self) -> dict[str, int]:
        """Samples of a window, by modality; as :meth:`armlet_runtime.windows.WindowSpec.samples`."""
        return {modality.name: round(self.window_s * modality.rate_hz) for modality in self.modalities}

    @property
    def wearers(self) -> list[str]:
        """Each person once, sorted."""
        return sorted({piece.person for piece in self.pieces})

    @cached_property
    def _firsts(self) -> Int64:
        """(pieces + 1,) first tick of each piece, and one past the last."""
        ticks = [grid_count(piece.duration_s, self.tick_hz) for piece in self.pieces]
        return np.concatenate([[0], np.cumsum(ticks)]).astype(np.int64)

    @cached_property
    def _stretches(self) -> tuple[Int64, Int64]:
        """First start, and one past the last, of each stretch of a recording that windows may be cut from."""
        first, end, code = self._label_stretches(self.hold_out)
        first, end = first[code == NO_LABEL], end[code == NO_LABEL]
        needed = [(modality.rate_hz, self.lengths[modality.name]) for modality in self.modalities]
        whole = np.array([
            all(grid_count(piece.duration_s, rate_hz) >= length for rate_hz, length in needed) for piece in self.pieces
        ], np.bool_)  # fmt: skip
        return first, np.where(whole[self._piece_of(first)], np.maximum(end - self.length + 1, first), first)

    @cached_property
    def _runs(self) -> tuple[Int64, Int64, Int64]:
        """:meth:`_label_stretches` of the corpus' labels."""
        return self._label_stretches(self.labels)

    def _label_stretches(self, names: tuple[str, ...]) -> tuple[Int64, Int64, Int64]:
        """First tick, one past the last, and index in ``names`` of each stretch of one label within a recording."""
        firsts, codes = [], []
        for begin, end, piece in zip(self._firsts, self._firsts[1:], self.pieces, strict=False):
            first, code = _label_runs(piece.labels, names, self.tick_hz, int(end - begin))
            firsts.append(begin + first)
            codes.append(code)
        first = np.concatenate(firsts)
        return first, np.concatenate([first[1:], self._firsts[-1:]]), np.concatenate(codes)

    @cached_property
    def _sample_firsts(self) -> dict[str, Int64]:
        """By modality, (pieces + 1,) first sample of each piece if all pieces lie back to back."""
        return {
            modality.name: np.concatenate(
                [[0], np.cumsum([grid_count(piece.duration_s, modality.rate_hz) for piece in self.pieces])]
            ).astype(np.int64)
            for modality in self.modalities
        }

    @cached_property
    def _gaps(self) -> dict[str, tuple[Int64, Int64, Int64]]:
        """By modality: first samples of all gaps, their lengths, and how many samples are missing before each."""
        result = {}
        for modality in self.modalities:
            firsts = self._sample_firsts[modality.name]
            parts = [np.zeros((0, 2), np.int64)]
            for first, end, piece in zip(firsts, firsts[1:], self.pieces, strict=False):
                gaps = piece.gaps.get(modality.name)
                parts.append(np.array([[first, end]]) if gaps is None else first + gaps)
            first, end = np.concatenate(parts).T
            result[modality.name] = (first, end - first, np.concatenate([[0], np.cumsum(end - first)]))
        return result

    def starts(self, labelled: bool, every: int) -> Int64:
        """First ticks of all windows that lie in one recording and have a modality present.

        Args:
            labelled: Only windows that carry one of ``labels`` from end to end.
            every: Ticks from start to start, counted from the first of each recording (and of what follows a held-out
                label); 1 for all windows.
        """
        parts = [np.zeros(0, np.int64)]
        parts += [np.arange(first, last, every) for first, last in zip(*self._stretches, strict=True)]
        starts = np.concatenate(parts)
        if labelled:
            _, ends, codes = self._runs
            run = self._run_of(starts)
            starts = starts[(codes[run] != NO_LABEL) & (ends[run] >= starts + self.length)]
        return starts[self.present(starts).any(axis=1)]

    def count(self, labelled: bool, every: int) -> int:
        """How many :meth:`starts` there are, those with no modality present among them; lists none of them."""
        first, last = self._stretches
        if not labelled:
            return int(np.sum(-(-(last - first) // every)))
        begin, end = self._labelled_starts
        origin = first[self._stretch_of(begin)] if len(begin) else begin
        return int(np.sum(-(-(end - origin) // every) - -(-(begin - origin) // every)))

    def draw(self, count: int, labelled: bool, rng: np.random.Generator) -> Int64:
        """``count`` random starts, each of those of :meth:`starts` at every tick equally likely.

        Raises:
            DataError: There is no window to draw.
        """
        firsts, lasts = self._labelled_starts if labelled else self._stretches
        ends = np.cumsum(lasts - firsts)
        if not len(ends) or ends[-1] == 0:
            kind = f" that carries one label ({', '.join(self.labels)}) from end to end" if labelled else ""
            raise DataError(f"the recordings have no window of {self.window_s:g} s{kind}")

        def some(count: int) -> Int64:
            number = rng.integers(0, ends[-1], count)
            at = np.searchsorted(ends, number, side="right")
            return np.asarray(lasts[at] - (ends[at] - number), np.int64)

        starts = some(count)
        for _ in range(1000):
            absent = ~self.present(starts).any(axis=1)
            if not absent.any():
                return starts
            starts[absent] = some(int(absent.sum()))
        raise DataError("almost no window of the recordings has a modality present; see 'armlet data check'")

    @cached_property
    def _labelled_starts(self) -> tuple[Int64, Int64]:
        """First start, and one past the last, of each stretch of one label that windows may be cut from."""
        run, end, code = self._runs
        first, last = self._stretches
        # A stretch may begin or end within a run, and a run within a stretch: all edges cut both.
        edges = np.unique(np.concatenate([run, first, last + self.length - 1]))
        inside = np.maximum(self._stretch_of(edges), 0)
        runs = self._run_of(edges)
        until = np.minimum(end[runs] - self.length + 1, last[inside])
        good = (code[runs] != NO_LABEL) & (edges >= first[inside]) & (edges < until)
        return edges[good], until[good]

    def centred(self) -> Int64:
        """(stretches of one label,) first ticks of the windows around their middles, however short they are.

        A window that would leave its recording is moved inside. Those without any modality present are left out.
        """
        first, end, code = self._runs
        middle = ((first + end) // 2)[code != NO_LABEL]
        begin, last = self._stretches
        stretch = np.maximum(self._stretch_of(middle), 0)
        starts: Int64 = np.clip(middle - self.length // 2, begin[stretch], last[stretch] - 1)
        starts = starts[last[stretch] > begin[stretch]]
        return starts[self.present(starts).any(axis=1)]

    def neighbours(self, starts: Int64, reach_s: float, rng: np.random.Generator) -> Int64:
        """For each start another one at most ``reach_s`` away in the same recording; itself where nothing is there."""
        reach = round(reach_s * self.tick_hz)
        first, last = self._stretches
        stretch = self._stretch_of(starts)
        moved = starts + rng.integers(-reach, reach, len(starts), endpoint=True)
        moved = np.clip(moved, first[stretch], last[stretch] - 1)
        near: Int64 = np.where(self.present(moved).any(axis=1), moved, starts)
        return near

    def windows(self, starts: Int64) -> dict[str, Float32]:
        """Modality name to (windows, channels, samples) in its unit.

        Gaps are filled within each window, as on the board; an absent modality's window is zeros.
        """
        piece = self._piece_of(starts)
        if not self.in_memory:
            self._read_ahead(starts, piece)
        result = {}
        for modality in self.modalities:
            length = self.lengths[modality.name]
            base = self._sample_firsts[modality.name]
            rows = self._rows(modality, starts, piece)
            missing = self._missing(modality, rows)
            out = np.zeros((len(starts), length, len(modality.channels)), np.float32)
            present = np.flatnonzero(missing < length)
            local = rows - base[piece]
            for row, at, first in zip(present.tolist(), piece[present].tolist(), local[present].tolist(), strict=True):
                out[row] = self.pieces[at].signals[modality.name][first : first + length]
            for row in np.flatnonzero((missing > 0) & (missing < length)).tolist():
                gaps = self.pieces[piece[row]].gaps[modality.name]
                out[row] = fill_gaps(out[row], _covered(gaps - local[row], length))
            result[modality.name] = np.ascontiguousarray(out.transpose(0, 2, 1))
        return result

    def _read_ahead(self, starts: Int64, piece: Int64) -> None:
        """Ask for all of the windows' rows at once: a disk serves many requests sooner than one after the other."""
        for modality in self.modalities:
            length = self.lengths[modality.name]
            local = self._rows(modality, starts, piece) - self._sample_firsts[modality.name][piece]
            for at, first in zip(piece.tolist(), local.tolist(), strict=True):
                recorded = self.pieces[at]
                if recorded.ahead is not None and modality.name in recorded.signals:
                    recorded.ahead(modality.name, first, first + length)

    def present(self, starts: Int64) -> Bool:
        """(windows, modalities): whether at least ``min_coverage`` of the modality's samples are there."""
        piece = self._piece_of(starts) if any(len(gaps[0]) for gaps in self._gaps.values()) else starts
        columns = []
        for modality in self.modalities:
            length = self.lengths[modality.name]
            if not len(self._gaps[modality.name][0]):
                columns.append(np.ones(len(starts), np.bool_))
                continue
            covered = length - self._missing(modality, self._rows(modality, starts, piece))
            columns.append(covered / length >= self.min_coverage)
        return np.stack(columns, axis=1)

    def labels_of(self, starts: Int64) -> Int64:
        """(windows,) index in ``labels`` of the label at each window's first tick, or :data:`NO_LABEL`."""
        codes: Int64 = self._runs[2][self._run_of(starts)]
        return codes

    def label_changes(self, hop_s: float) -> NDArray[np.float64]:
        """(labels, labels) how often a label is followed by another, or itself, one hop later.

        A span without a label belongs to the label before it: between sitting and standing nothing else begins.
        """
        first, _, code = self._runs
        counts = np.zeros((len(self.labels), len(self.labels)))
        for begin, end in itertools.pairwise(self._firsts.tolist()):
            mine = (first >= begin) & (first < end) & (code != NO_LABEL)
            starts, codes = first[mine], code[mine]
            hops = np.diff(np.append(starts, end)) / (hop_s * self.tick_hz)
            np.add.at(counts, (codes[:-1], codes[1:]), 1)
            np.add.at(counts, (codes, codes), np.maximum(hops - 1, 0))
        return counts

    def people_of(self, starts: Int64) -> NDArray[np.str_]:
        """(windows,) wearers."""
        return np.array([piece.person for piece in self.pieces])[self._piece_of(starts)]

    def recordings_of(self, starts: Int64) -> NDArray[np.str_]:
        """(windows,) names of the recordings."""
        return np.array([piece.name for piece in self.pieces])[self._piece_of(starts)]

    @cached_property
    def signals(self) -> dict[str, Float32]:
        """Modality name to (samples of all recordings, channels), for a device that cuts windows itself.

        Gaps are held over the whole recording; what a recording lacks is zeros.
        """
        return {
            modality.name: np.concatenate([
                piece.signals[modality.name] if modality.name in piece.signals
                else np.zeros((grid_count(piece.duration_s, modality.rate_hz), len(modality.channels)), np.float32)
                for piece in self.pieces
            ])
            for modality in self.modalities
        }  # fmt: skip

    def rows(self, starts: Int64) -> dict[str, Int64]:
        """Modality name to (windows,) first row of each window in :attr:`signals`."""
        piece = self._piece_of(starts)
        return {modality.name: self._rows(modality, starts, piece) for modality in self.modalities}

    def normalisation(self) -> dict[str, Normalisation]:
        """Mean and standard deviation of every channel over all samples that are there, or the recipe's scale; knees.

        Raises:
            DataError: A channel never changes.
        """
        result = {}
        for modality in self.modalities:
            name, channels = modality.name, len(modality.channels)
            if name in self.scale:
                result[name] = Normalisation((0.0,) * channels, (self.scale[name],) * channels, self.knee.get(name))
                continue
            every = merge_moments(piece.moments[name] for piece in self.pieces if name in piece.moments)
            if every.count == 0:
                raise DataError(f"no recording of these people has '{name}'; take it out of [data] modalities")
            flat = [channel for channel, square in zip(modality.channels, every.squares, strict=True) if square <= 0]
            if flat:
                raise DataError(f"'{name}' never changes in {', '.join(flat)}; leave it out of [data] modalities")
            std = tuple(float(np.sqrt(square / every.count)) for square in every.squares)
            result[name] = Normalisation(every.mean, std, self.knee.get(name))
        return result

    def _piece_of(self, starts: Int64) -> Int64:
        return np.searchsorted(self._firsts, starts, side="right") - 1

    def _stretch_of(self, starts: Int64) -> Int64:
        return np.searchsorted(self._stretches[0], starts, side="right") - 1

    def _run_of(self, starts: Int64) -> Int64:
        return np.searchsorted(self._runs[0], starts, side="right") - 1

    def _rows(self, modality: Modality, starts: Int64, piece: Int64) -> Int64:
        """First sample, in :attr:`signals`, of each window; moved by one where it would leave the recording."""
        base = self._sample_firsts[modality.name]
        local = np.rint((starts - self._firsts[piece]) * (modality.rate_hz / self.tick_hz)).astype(np.int64)
        return np.asarray(np.minimum(base[piece] + local, base[piece + 1] - self.lengths[modality.name]), np.int64)

    def _missing(self, modality: Modality, rows: Int64) -> Int64:
        """How many samples of each window are not there."""
        first, size, before = self._gaps[modality.name]
        if not len(first):
            return np.zeros(len(rows), np.int64)

        def missing_before(sample: Int64) -> Int64:
            gap = np.searchsorted(first, sample, side="right") - 1
            inside = np.clip(sample - first[gap], 0, size[gap])
            return np.where(gap >= 0, before[gap] + inside, 0)

        return missing_before(rows + self.lengths[modality.name]) - missing_before(rows)


def _label_runs(spans: Sequence[Label], names: Sequence[str], tick_hz: float, ticks: int) -> tuple[Int64, Int64]:
    """First tick and code of each stretch of one label in a piece; where spans overlap, the later one holds."""
    chosen = [(span, names.index(span.name)) for span in spans if span.name in names]
    # A tick belongs to a span if its time, rounded to nanoseconds, lies in it; 1e-6 ticks are less than that.
    edges = np.array([[span.start_ns, span.end_ns] for span, _ in chosen], np.float64).reshape(-1, 2)
    inside = np.clip(np.ceil(edges / 1e9 * tick_hz - 1e-6), 0, ticks).astype(np.int64)
    firsts = np.unique(np.concatenate([[0], inside.ravel()]))
    firsts = firsts[firsts < ticks]
    codes = np.full(len(firsts), NO_LABEL, np.int64)
    for (first, last), (_, code) in zip(inside, chosen, strict=True):
        codes[np.searchsorted(firsts, first) : np.searchsorted(firsts, last)] = code
    change = np.concatenate([[True], np.diff(codes) != 0])
    return firsts[change], codes[change]


def _covered(gaps: Int64, length: int) -> Bool:
    """(length,) which samples of a window are there, from gaps counted from its first sample."""
    covered = np.ones(length, np.bool_)
    for first, last in np.clip(gaps, 0, length):
        covered[first:last] = False
    return covered
