"""The summary of a live run or a replay, which ``--json`` of ``armlet run`` and ``armlet replay`` writes."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from .. import machine
from ..bundle import CertificateRow
from ..decisions import Decision
from ..modalities import subset_name
from .core import LiveCore
from .histogram import Histogram
from .outputs import Output
from .run import Run
from .sinks import SinkReport


class Spread(msgspec.Struct, frozen=True):
    """Percentiles in seconds, to :data:`armlet_runtime.live.histogram.RESOLUTION`; ``max`` is exact."""

    p50: float
    p90: float
    p99: float
    max: float


class Transition(msgspec.Struct, frozen=True):
    """A change of the subset, which is ``subset`` from the decision ``index`` on."""

    index: int
    window_end_ns: int
    subset: str
    age_s: dict[str, float | None]


class LinkSummary(msgspec.Struct, frozen=True):
    """One wearable. ``profiles``: profile name to :class:`armlet_runtime.signals.placement.Counts`."""

    state: str
    problem: str
    profiles: dict[str, dict[str, int]]


class Summary(msgspec.Struct, frozen=True):
    """Figures of a live run or a replay."""

    bundle: str
    version: str
    digest: str
    engine: str
    engine_version: str
    engine_detail: str
    decisions: int
    missed: int
    """Windows that fell due before the end and have no decision."""
    late: int
    """Decisions that were out more than 50 ms after ``max_wait_s`` had passed; 0 in a replay."""
    subsets: dict[str, int]
    """Subset to its number of decisions."""
    labels: dict[str, int]
    """Label to its number of decisions."""
    stepped: int
    """Windows of single modalities encoded by a step from the window before; 0 without incremental encoders."""
    undecided: dict[str, int]
    """Reason for no label, to its number of windows."""
    certified: dict[str, CertificateRow]
    """Each subset that occurred, to its row of the bundle's certificate for the engine."""
    floor: float | None
    """The certified macro-F1 below which there is no decision."""
    transitions: list[Transition]
    """The newest changes of the subset, at most :data:`MOST_TRANSITIONS`."""
    latency_s: Spread | None
    """Window's end to the decision being out; null in a replay or without decisions."""
    compute_s: Spread | None
    """Time in encoders and aggregator; null in a replay or without decisions."""
    cold_start_s: float | None
    """Start of the process to the first decision: model, links and the first window; null in a replay."""
    ready_s: float
    """Start of the process to the model being loaded."""
    ran_s: float
    """How long the loop ran."""
    memory: dict[str, int]
    """``resident_bytes`` at the end and ``peak_bytes`` of this process."""
    wearables: dict[str, LinkSummary]
    problems: dict[str, str]
    """``wearable/modality`` to the reason for which it was not used."""
    dropped_packets: int
    """Packets lost because this process was too busy."""
    sinks: list[SinkReport]
    """Decisions sent to MQTT and the Lab Streaming Layer, and those for a file if some were lost; empty in a replay."""
    machine: machine.Machine
    transitions_left_out: int = 0
    """Number of earlier changes of the subset."""
    certified_on: str = ""
    """The data that the certificate was measured on; its figures hold for sensors worn as in these data."""


MOST_TRANSITIONS = 1000
"""Changes of the subset that a summary lists: a loose contact makes thousands a day."""

LATE_S = 0.05
"""A decision that is out later than this after the longest wait is late: the host was busy."""


class Tally(Output):
    """Counts decisions as they come, in memory that does not grow with their number."""

    def __init__(self, core: LiveCore) -> None:
        """``core``: the live loop that makes the decisions."""
        self.first_decision_s: float | None = None
        self._core = core
        self._latency_s, self._compute_s = Histogram(), Histogram()
        self._late = 0
        self._subsets: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._undecided: Counter[str] = Counter()
        self._transitions: deque[Transition] = deque(maxlen=MOST_TRANSITIONS)
        self._changes = 0

    def decision(self, decision: Decision) -> None:
        """Count a decision."""
        if self.first_decision_s is None:
            self.first_decision_s = since_process_start_s()
        if decision.latency_s is not None and decision.compute_s is not None:
            self._latency_s.add(decision.latency_s)
            self._compute_s.add(decision.compute_s)
            self._late += decision.latency_s > self._core.model.manifest.presence.max_wait_s + LATE_S
        subset = subset_name(decision.subset)
        self._subsets[subset] += 1
        if decision.label is not None:
            self._labels[decision.label] += 1
        if decision.reason is not None:
            self._undecided[decision.reason] += 1
        if not self._transitions or self._transitions[-1].subset != subset:
            self._changes += 1
            self._transitions.append(Transition(decision.index, decision.window_end_ns, subset, decision.age_s))

    def summary(
        self,
        run: Run,
        ready_s: float,
        ran_s: float,
        links: Mapping[str, tuple[str, str]] | None = None,
        dropped: int = 0,
        sinks: Sequence[SinkReport] = (),
    ) -> Summary:
        """The summary of a run that ended; ``links``: wearable name to state and problem, None for a replay.

        The other arguments are fields of :class:`Summary`.
        """
        core = run.core
        model, policy = core.model, core.policy
        decisions = sum(self._subsets.values())
        live = links is not None
        wearables = {
            name: LinkSummary(
                *(links or {}).get(name, ("linked" if wearable.linked else "missing", wearable.problem)),
                {profile: asdict(counts) for profile, counts in wearable.counts.items()},
            )
            for name, wearable in core.wearables.items()
        }
        for name, (state, problem) in (links or {}).items():
            wearables.setdefault(name, LinkSummary(state, problem, {}))
        return Summary(
            bundle=model.manifest.name,
            version=model.manifest.version,
            digest=run.opened.bundle.digest,
            engine=model.engine.name,
            engine_version=model.engine.version,
            engine_detail=model.engine.detail,
            decisions=decisions,
            missed=max(0, core.due_count(run.newest_ns) - decisions),
            late=self._late,
            subsets=dict(self._subsets),
            labels=dict(self._labels),
            stepped=model.stepped,
            undecided=dict(self._undecided),
            certified={name: row for name, row in policy.certified.items() if name in self._subsets},
            floor=policy.floor,
            transitions=list(self._transitions),
            latency_s=_spread(self._latency_s),
            compute_s=_spread(self._compute_s),
            cold_start_s=self.first_decision_s if live else None,
            ready_s=ready_s,
            ran_s=ran_s,
            memory={"resident_bytes": machine.resident_bytes(), "peak_bytes": machine.peak_resident_bytes()},
            wearables=wearables,
            problems=core.problems,
            dropped_packets=dropped,
            sinks=list(sinks),
            machine=machine.describe(),
            transitions_left_out=self._changes - len(self._transitions),
            certified_on=policy.certified_on,
        )


def _spread(durations: Histogram) -> Spread | None:
    if not durations.count:
        return None
    p50, p90, p99 = map(durations.percentile, (0.5, 0.9, 0.99))
    return Spread(p50, p90, p99, durations.longest_s)


def since_process_start_s() -> float:
    """Seconds since the kernel started this process."""
    # Field 22 of /proc/self/stat (proc(5)): clock ticks since boot; the name in field 2 may hold spaces and brackets.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
