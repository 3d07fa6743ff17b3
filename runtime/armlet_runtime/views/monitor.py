"""What a screen shows of a live run or a replay, in a terminal or on a page: one state, taken when it is wanted.

A :class:`Monitor` is told what happens and asked, as often as its screen is drawn, how things stand. It keeps nothing
that grows: samples stay in the live loop's own rings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from ..arrays import Float32
from ..bundle import CertificateRow
from ..decisions import Decision
from ..live import Output
from ..modalities import Modality, subset_name
from ..wearables import XYZ

if TYPE_CHECKING:
    from ..live import LiveCore
    from ..signals import PacketClock, SampleRing, Wearable

TIMELINE = 600
"""Decisions whose subsets are kept for the timeline."""

# Rates are counted over at least so long: packets come in bursts.
_RATE_NS = 2_000_000_000


class LinkView(Protocol):
    """What a screen shows of a link (see :class:`armlet_runtime.bluetooth.Link`)."""

    @property
    def state(self) -> str:
        """``streaming``, ``missing`` and others."""

    @property
    def problem(self) -> str:
        """Why it is not streaming; empty if nothing went wrong."""

    @property
    def rssi(self) -> int | None:
        """Signal strength in dBm."""

    @property
    def battery(self) -> int | None:
        """Charge in percent."""


class ClockState(msgspec.Struct, frozen=True):
    """How well a wearable's clock is known: the worst of its groups. ``bound_ms`` null: not valid yet."""

    drift_ppm: float
    bound_ms: float | None


class WearableState(msgspec.Struct, frozen=True):
    """One wearable. ``rate_hz``: samples a second of all its modalities together; ``clock`` null: it has none."""

    name: str
    state: str
    problem: str
    rate_hz: float
    lost: int
    malformed: int
    clock: ClockState | None = None
    rssi: int | None = None
    battery: int | None = None


class SignalState(msgspec.Struct, frozen=True):
    """One of the model's modalities. ``source``: the wearable it comes from, empty if none has brought it."""

    modality: str
    unit: str
    channels: tuple[str, ...]
    rate_hz: float
    source: str
    present: bool
    age_s: float | None
    coverage: float


class Point(msgspec.Struct, frozen=True):
    """One decision on the timeline. ``end_s``: end of its window, since the end of the first."""

    index: int
    end_s: float
    subset: tuple[str, ...]
    label: str | None
    reason: str | None
    score: float | None


class State(msgspec.Struct, frozen=True):
    """How things stand. ``live`` false: a replay. Times in seconds."""

    bundle: str
    engine: str
    live: bool
    decisions: int
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    newest: Point | None
    latency_s: float | None
    compute_s: float | None
    certified: CertificateRow | None
    signals: tuple[SignalState, ...]
    wearables: tuple[WearableState, ...]
    problems: dict[str, str]


class Monitor(Output):
    """Is told what happens; says how things stand.

    Attributes:
        timeline: The newest decisions, oldest first.
    """

    def __init__(self, core: LiveCore, live: bool = True) -> None:
        """Begin with nothing heard; ``live``: false for a replay."""
        self.timeline: deque[Point] = deque(maxlen=TIMELINE)
        self._core = core
        self._live = live
        self._links: Mapping[str, LinkView] = {}
        self._newest: Decision | None = None
        self._first_end_ns = 0
        self._counted: dict[str, tuple[int, int]] = {}  # wearable to when its samples were counted, and how many
        self._rates: dict[str, float] = {}

    @property
    def certified(self) -> Mapping[str, CertificateRow]:
        """Subset to its row of the certificate of the bundle in use; a new object with each bundle."""
        return self._core.policy.certified

    def links(self, links: Mapping[str, LinkView]) -> None:
        """The links as they are, and will be: their objects are looked at again for each state."""
        self._links = links

    def decision(self, decision: Decision) -> None:
        """A decision was made."""
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
        """How things stand at a time on the clock of the arrivals."""
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
        link, known = self._links.get(name), self._core.wearables.get(name)
        counts = list(known.counts.values()) if known else []
        samples = sum(one.samples for one in counts)
        since_ns, before = self._counted.setdefault(name, (now_ns, samples))
        if now_ns - since_ns >= _RATE_NS:
            self._rates[name] = (samples - before) / ((now_ns - since_ns) / 1e9)
            self._counted[name] = (now_ns, samples)
        if link is not None:
            state, problem = link.state, link.problem
        else:
            state, problem = ("linked" if known and known.linked else "gone"), ""
        return WearableState(
            one_line(name),
            state,
            one_line(problem or (known.problem if known else "")),
            self._rates.get(name, 0.0),
            sum(one.lost for one in counts),
            sum(one.malformed + one.implausible for one in counts),
            _clock_state(known),
            link.rssi if link else None,
            link.battery if link else None,
        )

    def line(self, modality: Modality, now_ns: int, points: int) -> list[float | None]:
        """A modality's newest samples as ``points`` means over equal times, oldest first; None where none was received.

        Of three axes the length of the vector, else the first channel.
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
        wanted = (times > since_ns - until_ns) & (times <= 0)
        rows: list[list[float]] = values[wanted].tolist()
        clean = [[one if one - one == 0 else None for one in row] for row in rows]
        return (times[wanted] / 1e9).round(4).tolist(), clean

    def _ring(self, name: str) -> SampleRing | None:
        source = self._core.source(name)
        ring = source.rings.get(name) if source else None
        return ring if ring is not None and ring.total else None


def _clock_state(wearable: Wearable | None) -> ClockState | None:
    """The worst of a wearable's clocks; those that place samples by their arrival are none."""
    clocks = [clock for clock in wearable.clocks.values() if clock.has_counters] if wearable else []
    if not clocks:
        return None

    def badness(clock: PacketClock) -> float:
        return float("inf") if clock.bound_ns is None else clock.bound_ns

    worst = max(clocks, key=badness)
    return ClockState(worst.fit.drift_ppm, None if worst.bound_ns is None else worst.bound_ns / 1e6)


def one_channel(modality: Modality, values: Float32) -> Float32:
    """(n,) of (n, channels): the length of a vector of three axes, else the first channel."""
    if modality.channels == XYZ:
        length: Float32 = np.sqrt(np.square(values).sum(axis=1))
        return length
    return values[:, 0]


def binned(times_ns: np.ndarray, values: Float32, span_ns: int, points: int) -> list[float | None]:
    """Means of the samples in ``points`` equal parts of the ``span_ns`` before 0; None for a part without any."""
    wanted = (times_ns > -span_ns) & (times_ns <= 0) & np.isfinite(values)
    part = ((times_ns[wanted] + span_ns) * points // (span_ns + 1)).astype(np.int64)
    counts = np.bincount(part, minlength=points)[:points]
    sums = np.bincount(part, values[wanted], minlength=points)[:points]
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]


def subsets_line(timeline: Sequence[Point], modalities: int, width: int) -> str:
    """The newest subsets, one character each: ``=`` all modalities, ``-`` some, ``.`` none or no decision."""
    return "".join(
        "." if point.reason or not point.subset else "=" if len(point.subset) == modalities else "-"
        for point in list(timeline)[-width:]
    )


def one_line(text: str) -> str:
    """Text that came over the air, as one line without control characters."""
    return "".join(one if one.isprintable() else " " for one in text)
