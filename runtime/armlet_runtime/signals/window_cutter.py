"""Windows of a live stream: cut hop by hop, each grid point once.

**The grid.** Windows that follow each other by a hop of whole samples share all grid points but the newest. A point is
*settled* as soon as two samples after it are there: what it is made of then (the four samples around it, or a gap) does
not change by what comes later. Settled points are kept and the others cut again, so that ``window[:, hop:]`` and the
next ``window[:, :-hop]`` are the same bits up to the newest settled point.

**The clock.** Host times are those of a line that is held for each run of the device clock. When the fit's own line has
moved away from it by more than :data:`HELD_WITHIN_NS` anywhere in the window, it is taken instead, and the whole window
is cut anew. So every window is what a fresh cut with the held lines gives (to a nanosecond of rounding), and no sample
in it is further from where the fit has it than that.

**Whatever else changes what was there** has the window cut anew too: a packet that came late enough to be put before
another one, a packet whose samples turned out to lie closer together, a new run of the clock, a run that was dropped,
or a window that does not end one hop after the one before.

Gaps are filled in each window from the points that are covered in it, as in training; so a gap that is not yet over, or
that the window's beginning has reached, may be filled otherwise in the next window.

All this depends on the packets and on the windows asked for alone: a replay cuts the same windows. If a hop is no whole
number of samples, nothing is kept and no line is held.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..arrays import Bool, Float32, Float64
from ..modalities import Modality
from ..windows import all_finite, fill_gaps, resample, sample_times
from .clock_fit import FINEST_BOUND_NS, Line
from .sample_ring import Run, SampleRing

HELD_WITHIN_NS = FINEST_BOUND_NS
"""How far a held line may be from the clock's: what a host's time stamps are good for, and no stated bound is finer."""


class Cut(NamedTuple):
    """One window of one modality.

    Attributes:
        window: (channels, samples) float32 at the model's rate, gaps filled by holding.
        coverage: Share of the samples that were received.
        age_ns: Age of the newest sample at the window's end; None without a sample.
        total: Samples up to the window's end that were ever received; unchanged without new samples.
    """

    window: Float32
    coverage: float
    age_ns: int | None
    total: int


class Cutter:
    """Cuts the windows of one modality from a ring; see the module's text for the rule.

    Attributes:
        ring: Its samples.
        lines: The runs that the last window was cut from, and the lines that are held for them.
    """

    def __init__(self, ring: SampleRing, modality: Modality, samples: int, hop_ns: int) -> None:
        """Begin without any window.

        Args:
            ring: Its samples.
            modality: At the model's rate.
            samples: Of a window.
            hop_ns: From the end of a window to the end of the next.
        """
        self.ring = ring
        self.lines: dict[Run, Line] = {}
        self._grid_s = sample_times(0.0, modality.rate_hz, samples)
        self._span_ns = round(samples * 1e9 / modality.rate_hz)
        self._hop_ns = hop_ns
        self._hop = round(hop_ns * modality.rate_hz / 1e9)
        if abs(self._hop * 1e9 / modality.rate_hz - hop_ns) > 1:  # ns; the hop itself is rounded to them
            self._hop = samples  # nothing is kept
        # Of the window before:
        self._end_ns: int | None = None
        self._edits = self._total = 0
        self._values: Float32 = np.zeros((0, 0), np.float32)
        self._covered: Bool = np.zeros(0, np.bool_)
        self._settled = 0  # so many of its points
        self._open = 0  # so many of its newest samples have a part in what is not settled

    def cut(self, end_ns: int) -> Cut:
        """The window that ends at ``end_ns`` (host)."""
        ring, kept = self.ring, self._kept(end_ns)
        if not kept:
            self.lines = {run: run.clock.line for run in ring.runs}
        times_s, values = self._samples(end_ns, kept)
        taken = len(times_s)
        if not all_finite(values):  # a sample that is no number was not received
            finite = np.all(np.isfinite(values), axis=1)
            times_s, values = times_s[finite], values[finite]
        cut, covered = resample(times_s, values, self._grid_s[kept:], ring.period_ns / 1e9)
        if kept:
            cut = np.concatenate([self._values[self._hop : self._hop + kept], cut])
            covered = np.concatenate([self._covered[self._hop : self._hop + kept], covered])
        up_to_end = int(times_s.searchsorted(0.0, side="right"))
        later = len(times_s) - up_to_end
        self._end_ns, self._edits, self._total = end_ns, ring.edits, ring.total
        self._values, self._covered = cut, covered
        self._settled = int(self._grid_s.searchsorted(times_s[-2])) if len(times_s) > 1 else 0
        # Two before the first point that is not settled, which is the end itself if all are, and those after it.
        self._open = max(3, later + 2) + taken - len(times_s)
        return Cut(
            window=np.ascontiguousarray(fill_gaps(cut, covered).T),
            coverage=int(np.count_nonzero(covered)) / len(covered),
            age_ns=round(-1e9 * float(times_s[up_to_end - 1])) if up_to_end else None,
            total=ring.total - later,
        )

    def _samples(self, end_ns: int, kept: int) -> tuple[Float64, Float32]:
        """Samples for the points after the kept points: host times (n,) in seconds, and values (n, channels).

        The times are relative to the end, so that they are exact to the nanosecond however large the host's clock is.
        """
        ring = self.ring
        if kept and (newest := self._open + ring.total - self._total) <= len(ring.runs[-1]):
            device_ns, values = ring.runs[-1].samples(newest)
            return self.lines[ring.runs[-1]].seconds_to_host(device_ns, end_ns), values
        times, values = ring.samples(end_ns, self.lines)
        return times / 1e9, values

    def _kept(self, end_ns: int) -> int:
        """How many points of the window before stay, from the hop on; 0 to cut the window anew."""
        if self._end_ns is None or end_ns != self._end_ns + self._hop_ns or self.ring.edits != self._edits:
            return 0
        for run, held in self.lines.items():
            line = run.clock.line
            if line is held:
                continue
            at_end = line.apart_ns(held, held.to_device(end_ns))
            at_start = at_end - (line.slope - held.slope) * self._span_ns
            if max(at_end, at_start) > HELD_WITHIN_NS or min(at_end, at_start) < -HELD_WITHIN_NS:
                return 0
        return max(0, self._settled - self._hop)
