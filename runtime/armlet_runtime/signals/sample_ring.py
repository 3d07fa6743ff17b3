"""The newest samples of one modality, in device time with the runs of the clock that they belong to."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..modalities import Modality
from .clock_fit import ClockFit, Line
from .placement import QUICKER

# Room for so many samples is made at least.
LEAST_ROOM = 256


class Run:
    """Samples of one run of a device clock, in the order of their device times.

    Attributes:
        clock: The run's.
        newest_device_ns: Device time of the newest sample.
    """

    def __init__(self, clock: ClockFit, channels: int) -> None:
        """Without samples yet, of so many ``channels``."""
        self.clock = clock
        self.newest_device_ns = 0
        self._chunks: deque[tuple[int, int, int]] = deque()  # of each packet: first and last device time, samples
        self._times = np.empty(LEAST_ROOM, np.int64)
        self._values = np.empty((LEAST_ROOM, channels), np.float32)
        self._begin = self._end = 0  # of those in use

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def newest_ns(self) -> int:
        """Host time of the newest sample."""
        return self.clock.line.to_host(self.newest_device_ns)

    def add(self, times_ns: NDArray[np.int64], values: Float32) -> bool:
        """Put a packet's samples (n,), (n, channels) in their place; False if they would overlap another's."""
        chunk = first, last, count = int(times_ns[0]), int(times_ns[-1]), len(times_ns)
        place = self._end
        if not self._chunks or first > self.newest_device_ns:
            self._chunks.append(chunk)
            self.newest_device_ns = last
        else:
            at = bisect_left(self._chunks, (first,))
            later = list(islice(self._chunks, at, None))
            place -= sum(count for _, _, count in later)
            if later and later[0][0] <= last:
                return False
            if at > 0 and self._chunks[at - 1][1] >= first and not self._squeeze(at - 1, place, first):
                return False
            self._chunks.insert(at, chunk)
            self.newest_device_ns = self._chunks[-1][1]
        if self._end + count > len(self._times):
            place -= self._begin
            self._make_room(count)
        after, end = slice(place, self._end), self._end + count
        if place < self._end:
            self._times[place + count : end] = self._times[after].copy()
            self._values[place + count : end] = self._values[after].copy()
        self._times[place : place + count] = times_ns
        self._values[place : place + count] = values
        self._end = end
        return True

    def _squeeze(self, at: int, end: int, before_ns: int) -> bool:
        """Make a packet's samples, which lie up to place ``end``, end before a time, if they overlap it by little.

        A packet that stamps its first sample leaves the distance of its samples open; the next packet's stamp gives it.
        """
        first, last, count = self._chunks[at]
        if before_ns - first < (1 - QUICKER) * (last - first):
            return False
        squeezed = first + np.arange(count) * ((before_ns - first) / count)
        self._times[end - count : end] = squeezed
        self._chunks[at] = first, int(squeezed[-1]), count
        return True

    def _make_room(self, count: int) -> None:
        """Move the samples to the beginning of new arrays, so that results of :meth:`samples` do not change."""
        used = len(self)
        # A power of two, so that the new arrays fit into the memory of older arrays.
        times = np.empty(max(LEAST_ROOM, 1 << (2 * (used + count) - 1).bit_length()), np.int64)
        values = np.empty((len(times), self._values.shape[1]), np.float32)
        times[:used], values[:used] = self.samples()
        self._times, self._values, self._begin, self._end = times, values, 0, used

    def forget_before(self, device_ns: int) -> None:
        """Drop the packets that end before a device time; the newest packet stays."""
        while len(self._chunks) > 1 and self._chunks[0][1] < device_ns:
            self._begin += self._chunks.popleft()[2]

    def samples(self, newest: int | None = None) -> tuple[NDArray[np.int64], Float32]:
        """Device times (n,) and values (n, channels) of all, or of so many; to be read only, and not kept."""
        begin = self._begin if newest is None else self._end - newest
        return self._times[begin : self._end], self._values[begin : self._end]


class SampleRing:
    """The newest samples of one modality.

    Samples are kept in device time, with the run of the clock that they belong to. They get their host times only when
    they are looked at, all samples of a run by the one line that is known then.

    Attributes:
        modality: As the wearable sends it.
        total: Samples that were ever taken in.
        edits: How often something else was done to them than to put newer ones after all others.
        period_ns: Nominal time between two of them.
        runs: By the time of their clocks, oldest first.
    """

    def __init__(self, modality: Modality, keep_ns: int) -> None:
        """``modality``: as the wearable sends it; ``keep_ns``: how much time before the newest sample to keep."""
        self.modality = modality
        self.total = 0
        self.edits = 0
        self.period_ns = 1e9 / modality.rate_hz
        self.runs: list[Run] = []
        self._keep_ns = keep_ns

    def add(self, clock: ClockFit, times_ns: NDArray[np.int64], values: Float32) -> bool:
        """Add samples with their device times in the run of ``clock``; False if they overlap others of that run."""
        run = next((run for run in reversed(self.runs) if run.clock is clock), None)
        if run is None:
            run = Run(clock, values.shape[1])
            self.runs.append(run)
            self.edits += 1
        elif run is not self.runs[-1] or times_ns[0] <= run.newest_device_ns:
            self.edits += 1
        if not run.add(times_ns, values):
            return False
        self.total += len(values)
        limit_ns = self.newest_ns() - self._keep_ns
        if len(self.runs) > 1:
            self._keep([run for run in self.runs if run.newest_ns >= limit_ns])
        for run in self.runs:
            run.forget_before(limit_ns - run.clock.line.offset_ns)
        return True

    def drop(self, clock: ClockFit) -> None:
        """Remove the samples of a run that proved to be wrong."""
        self.total -= sum(len(run) for run in self.runs if run.clock is clock)
        self._keep([run for run in self.runs if run.clock is not clock])

    def _keep(self, runs: list[Run]) -> None:
        if len(runs) < len(self.runs):
            self.runs = runs
            self.edits += 1

    def newest_ns(self) -> int:
        """Host time of the newest sample; a sample must have been added."""
        return self.runs[0].newest_ns if len(self.runs) == 1 else max(run.newest_ns for run in self.runs)

    def samples(self, end_ns: int, lines: Mapping[Run, Line] | None = None) -> tuple[NDArray[np.int64], Float32]:
        """Host times relative to ``end_ns`` (n,), strictly rising, and values (n, channels), to be read only.

        ``lines``: Of each run, the line that gives its host times; None for those that the clocks have now.
        """
        parts: list[tuple[NDArray[np.int64], Float32]] = []
        before: int | None = None
        for run in reversed(self.runs):
            device_ns, values = run.samples()
            times = (run.clock.line if lines is None else lines[run]).to_host(device_ns) - end_ns
            # Runs follow each other; where the estimates of their clocks make them overlap, the newer run holds.
            stop = len(times) if before is None else int(np.searchsorted(times, before, side="left"))
            if stop:
                parts.append((times[:stop], values[:stop]))
                before = int(times[0])
        if len(parts) == 1:
            return parts[0]
        parts.reverse()
        return np.concatenate([times for times, _ in parts]), np.concatenate([values for _, values in parts])
