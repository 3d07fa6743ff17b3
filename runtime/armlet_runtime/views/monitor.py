"""The monitor of a live run or a replay, from which screens and pages are drawn.

A :class:`Monitor` receives links and decisions, and makes a :class:`State` whenever a screen is drawn. Its memory does
not grow: samples stay in the live loop's own rings.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..arrays import Float32
from ..bundle import CertificateRow
from ..decisions import Decision
from ..live import Output
from ..modalities import Modality, subset_name
from ..printable import one_line
from ..wearables import XYZ
from .state import ClockState, Point, SignalState, State, WearableState

if TYPE_CHECKING:
    from ..bluetooth import Link
    from ..live import LiveCore
    from ..signals import PacketClock, SampleRing, Wearable

TIMELINE = 600
"""Number of decisions kept for the timeline."""

# Rates are measured over at least this time, because packets come in bursts.
_RATE_NS = 2_000_000_000


class Monitor(Output):
    """Collects links and decisions, and makes the state that a screen shows.

    Attributes:
        timeline: The newest decisions, oldest first.
    """

    def __init__(self, core: LiveCore, live: bool = True) -> None:
        """Begin before the first packet; ``live``: False for a replay."""
        self.timeline: deque[Point] = deque(maxlen=TIMELINE)
        self._core = core
        self._live = live
        self._links: Mapping[str, Link] = {}
        self._newest: Decision | None = None
        self._first_end_ns = 0
        self._counted: dict[str, tuple[int, int]] = {}  # wearable to the time of a count of its samples, and the count
        self._rates: dict[str, float] = {}

    @property
    def certified(self) -> Mapping[str, CertificateRow]:
        """Subset to its row of the certificate of the bundle in use; a new object with each bundle."""
        return self._core.policy.certified

    def links(self, links: Mapping[str, Link]) -> None:
        """Show these links; each state reads them anew."""
        self._links = links

    def decision(self, decision: Decision) -> None:
        """Note a decision."""
        if self._newest is None:
            self._first_end_ns = decision.window_end_ns
        self._newest = decision
        self.timeline.append(
            Point(
                decision.index,
                (decision.window_end_ns - self._first_end_ns) / 1e9,
                decision.subset,
                decision.label,
                decision.reason,
                max(decision.scores, default=None),
            )
        )

    def state(self, now_ns: int) -> State:
        """The state at a time on the clock of the arrivals."""
        newest = self._newest
        manifest, engine = self._core.model.manifest, self._core.model.engine
        names = [*self._links, *(name for name in self._core.wearables if name not in self._links)]
        return State(
            bundle=f"{manifest.name} {manifest.version}",
            engine=f"{engine.name} {engine.version}",
            live=self._live,
            decisions=newest.index + 1 if newest else 0,
            labels=self._core.labels,
            scores=newest.scores if newest else (),
            newest=self.timeline[-1] if self.timeline else None,
            latency_s=newest.latency_s if newest else None,
            compute_s=newest.compute_s if newest else None,
            certified=self.certified.get(subset_name(newest.subset)) if newest else None,
            certified_on=self._core.policy.certified_on,
            signals=tuple(map(self._signal, manifest.modalities)),
            wearables=tuple(self._wearable(name, now_ns) for name in names),
            problems=dict(self._core.problems),
        )

    def _signal(self, modality: Modality) -> SignalState:
        newest = self._newest
        source = self._core.source(modality.name)
        return SignalState(
            modality.name,
            modality.unit,
            modality.channels,
            modality.rate_hz,
            source.name if source else "",
            newest is not None and modality.name in newest.subset,
            newest.age_s.get(modality.name) if newest else None,
            newest.coverage.get(modality.name, 0.0) if newest else 0.0,
        )

    def _wearable(self, name: str, now_ns: int) -> WearableState:
        link, wearable = self._links.get(name), self._core.wearables.get(name)
        counts = list(wearable.counts.values()) if wearable else []
        samples = sum(count.samples for count in counts)
        since_ns, before = self._counted.setdefault(name, (now_ns, samples))
        if now_ns - since_ns >= _RATE_NS:
            self._rates[name] = (samples - before) / ((now_ns - since_ns) / 1e9)
            self._counted[name] = (now_ns, samples)
        if link is not None:
            state, problem = link.state, link.problem
        else:
            state, problem = ("linked" if wearable and wearable.linked else "gone"), ""
        return WearableState(
            one_line(name),
            state,
            one_line(problem or (wearable.problem if wearable else "")),
            self._rates.get(name, 0.0),
            sum(count.lost for count in counts),
            sum(count.malformed + count.implausible for count in counts),
            _clock_state(wearable),
            link.rssi if link else None,
            link.battery if link else None,
        )

    def line(self, modality: Modality, now_ns: int, points: int) -> list[float | None]:
        """A modality's newest samples as ``points`` means over equal times, oldest first; None without samples.

        The value is the length of the vector of three axes, else the first channel.
        """
        ring = self._ring(modality.name)
        if ring is None:
            return [None] * points
        times, values = ring.samples(now_ns)
        span_ns = round(self._core.model.manifest.window.length_s * 1e9)
        return binned(times, one_channel(modality, values), span_ns, points)

    def since(self, modality: Modality, since_ns: int, until_ns: int) -> tuple[list[float], list[list[float | None]]]:
        """Samples later than ``since_ns`` and up to ``until_ns``: seconds before ``until_ns``, and rows of channels."""
        ring = self._ring(modality.name)
        if ring is None:
            return [], []
        times, values = ring.samples(until_ns)
        within = (times > since_ns - until_ns) & (times <= 0)
        rows: list[list[float]] = values[within].tolist()
        clean = [[value if math.isfinite(value) else None for value in row] for row in rows]
        return (times[within] / 1e9).round(4).tolist(), clean

    def _ring(self, name: str) -> SampleRing | None:
        source = self._core.source(name)
        ring = source.rings.get(name) if source else None
        return ring if ring is not None and ring.total else None


def _clock_state(wearable: Wearable | None) -> ClockState | None:
    """The state of a wearable's worst clock; None if all its samples are placed by their arrival."""
    clocks = [clock for clock in wearable.clocks.values() if clock.has_counters] if wearable else []
    if not clocks:
        return None

    def badness(clock: PacketClock) -> float:
        return float("inf") if clock.bound_ns is None else clock.bound_ns

    worst = max(clocks, key=badness)
    return ClockState(worst.fit.drift_ppm, None if worst.bound_ns is None else worst.bound_ns / 1e6)


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
