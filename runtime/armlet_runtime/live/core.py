"""The live loop without input and output: packets with their arrivals go in, decisions come out.

**The grid.** The first sample of one of the model's modalities starts it: window 0 ends one window length after that
sample's host time, and window k ends k hops later. From then on every window has its decision, also when every sensor
is gone.

**When a window is decided.** At its end, or when the last stream that is waited for covers its end, whichever is
later. Waited for is a stream that was present in the decision before, whose link is up, and whose newest sample is not
stale; no longer than ``max_wait_s`` after the window's end. A stream covers a window's end when it has a sample at or
after the window's last grid time.

**Presence.** A modality is present when its newest sample at the window's end is not older than ``stale_after_s`` (or
two of its periods, for slow modalities) and its coverage is at least ``min_coverage``; an absent modality returns at
``return_coverage``. At the start all are absent. A sample that is NaN or infinite counts as not received.

**Windows** are cut hop by hop, each grid point once (:mod:`armlet_runtime.signals.window_cutter`).

**No decision.** Every window has its record; a record without a label has a ``reason``.

**Determinism.** Decisions are a pure function of the packets with their arrivals: before a packet that arrived at *a*
is taken in, everything that fell due before *a* is decided; after it, everything due at *a* or earlier. The caller
gives :meth:`LiveCore.advance` only times up to which all packets were passed on. So a live run and its replay give the
same decisions, but for ``latency_s`` and ``compute_s``, which only a live run has.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..bundle import Presence
from ..decisions import Decision
from ..errors import DataError, NotANumberError
from ..modalities import Modality, subset_name
from ..model import BundleModel, Carried, Decider, Policy
from ..signals import Cut, Cutter, Packet, SampleRing, Wearable
from ..windows import RATE_TOLERANCE

if TYPE_CHECKING:
    from ..model import Layer

# Samples are kept for this long beyond the window and the wait, for windows that a busy host decides late.
KEEP_MARGIN_NS = 1_000_000_000

RECENT_WINDOWS = 64
"""Number of windows whose tokens are kept for enrolment."""

NO_SENSOR, BELOW_FLOOR, NOT_A_NUMBER = "no sensor", "below floor", "not a number"
"""Reasons for a window without a label."""

MADE = "made"
"""Name of the wearable of samples that did not come as packets."""

# Packets of a recording that are further apart are of different runs, stamped with different clocks.
LONGEST_SILENCE_NS = 7 * 24 * 3600 * 1_000_000_000


@dataclass
class _Slot:
    """State of one of the model's modalities."""

    modality: Modality
    samples: int
    period_ns: int
    stale_ns: int
    wearable: Wearable | None = None
    ring: SampleRing | None = None
    cutter: Cutter | None = None
    present: bool = False
    token: Float32 | None = None
    token_total: int = -1
    carried: Carried | None = None


class LiveCore:
    """The live loop for a model, by the rules above.

    Attributes:
        wearables: Wearables by name, in order of appearance, with their links and counts.
        problems: ``wearable/modality`` to the reason for which that modality is not used.
    """

    def __init__(
        self, model: BundleModel, clock_ns: Callable[[], int] | None = None, policy: Policy | None = None
    ) -> None:
        """Begin without any packet.

        Args:
            model: The model to run.
            clock_ns: The clock that arrivals are stamped with, for ``latency_s``; None for a replay.
            policy: Rules by which scores become decisions; None for the bundle's own rules.

        Raises:
            UsageError: The policy's threshold would take the name of one of the model's classes.
        """
        self._recent: deque[tuple[int, dict[str, Float32]]] = deque(maxlen=RECENT_WINDOWS)
        self._use(model, policy or Policy())
        manifest = model.manifest
        self.wearables: dict[str, Wearable] = {}
        self.problems: dict[str, str] = {}
        self._clock_ns = clock_ns
        self._presence = manifest.presence
        self._hop_ns = round(manifest.window.hop_s * 1e9)
        self._length_ns = round(manifest.window.length_s * 1e9)
        self._max_wait_ns = round(self._presence.max_wait_s * 1e9)
        self._slots = {
            modality.name: _Slot(
                modality,
                manifest.window.samples(modality),
                round(1e9 / modality.rate_hz),
                stale_ns(self._presence, modality),
            )
            for modality in manifest.modalities
        }
        self._keep_ns = self._length_ns + self._max_wait_ns + KEEP_MARGIN_NS
        self._start_ns: int | None = None
        self._index = 0
        self._due_ns: int | None = None
        self._newest_arrival_ns: int | None = None

    def packet(self, packet: Packet) -> list[Decision]:
        """Take in a packet; the decisions that fell due before it and because of it.

        Raises:
            DataError: The packet arrived before its predecessor, or (in a replay) a week after it.
            EngineError: The engine failed.
        """
        decisions = self._arrived(packet.arrival_ns, packet.wearable)
        self._take_in(packet)
        return decisions + self._decide_until(packet.arrival_ns)

    def samples(
        self, arrival_ns: int, modality: Modality, times_ns: NDArray[np.int64], values: Float32
    ) -> list[Decision]:
        """Take in samples (n, channels) that did not come as a packet, such as simulated samples; as :meth:`packet`.

        ``times_ns``: (n,) sampling times on the clock of the arrivals.
        """
        decisions = self._arrived(arrival_ns, MADE)
        wearable = self.wearables.setdefault(MADE, Wearable(MADE, self._keep_ns))
        wearable.made(modality, times_ns, values)
        self._claim(modality.name, wearable)
        self._find_due()
        return decisions + self._decide_until(arrival_ns)

    def can_become(self, model: BundleModel) -> bool:
        """Whether :meth:`become` can take that model: it needs the same signals, windows and presence rules."""
        old, new = self._model.manifest, model.manifest
        return (old.modalities, old.window, old.presence) == (new.modalities, new.window, new.presence)

    def become(self, model: BundleModel, policy: Policy | None = None) -> None:
        """Decide with another model from the next window on; links, samples and grid stay, so no decision is missed.

        ``policy``: as for the constructor.

        Raises:
            UsageError: The policy's threshold would take the name of one of the model's classes; the present model
                stays in use.
        """
        self._use(model, policy or Policy())
        self._recent.clear()
        for slot in self._slots.values():
            slot.token, slot.carried = None, None

    def _use(self, model: BundleModel, policy: Policy) -> None:
        self._decider = Decider(model.manifest, policy)
        self._refused = policy.refused_subsets(model.manifest)
        self._model, self._policy = model, policy

    def _arrived(self, arrival_ns: int, wearable: str) -> list[Decision]:
        if self._newest_arrival_ns is not None:
            silence_ns = arrival_ns - self._newest_arrival_ns
            if silence_ns < 0 or (self._clock_ns is None and silence_ns >= LONGEST_SILENCE_NS):
                raise DataError(
                    f"a packet of '{wearable}' arrived at {arrival_ns} ns, and its predecessor at "
                    f"{self._newest_arrival_ns} ns: packets must come in order of arrival, within a week"
                )
        decisions = self._decide_until(arrival_ns - 1)
        self._newest_arrival_ns = arrival_ns
        return decisions

    def advance(self, now_ns: int) -> list[Decision]:
        """The decisions that fell due before ``now_ns``; all packets that arrived before must have been passed on.

        Raises:
            EngineError: The engine failed.
        """
        return self._decide_until(now_ns - 1)

    def due_ns(self) -> int | None:
        """The time at which the next decision falls due if no packet arrives; None before the first sample."""
        return self._due_ns

    def _find_due(self) -> None:
        """Update the due time: after a packet, and after a decision."""
        if self._start_ns is None:
            return
        self._due_ns = end_ns = self._end_ns()
        for slot in self._slots.values():
            ring = slot.ring
            if not slot.present or ring is None or slot.wearable is None or not slot.wearable.linked:
                continue
            newest_ns = ring.newest_ns()
            if newest_ns < end_ns - slot.period_ns:
                self._due_ns = max(self._due_ns, min(newest_ns + slot.stale_ns, end_ns + self._max_wait_ns))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the scores: the bundle's labels, and the classes enrolled for it."""
        return self._decider.labels

    @property
    def model(self) -> BundleModel:
        """The model that decides."""
        return self._model

    @property
    def policy(self) -> Policy:
        """The rules by which its scores become decisions."""
        return self._policy

    def set_layer(self, layer: Layer) -> None:
        """Use these enrolled classes from the next window on; smoothing begins anew."""
        self._use(self._model, self._policy.with_layer(layer))

    def recent(self, seconds: float) -> list[dict[str, Float32]]:
        """Tokens of the windows within the last ``seconds`` before the end of the newest window, oldest first.

        At least the newest window, at most :data:`RECENT_WINDOWS`; windows without a sensor are left out. Input of
        :func:`armlet_runtime.model.prototypes.make_example`.
        """
        if not self._recent:
            return []
        since_ns = self._recent[-1][0] - max(round(seconds * 1e9), self._length_ns)
        return [tokens for end_ns, tokens in self._recent if tokens and end_ns - self._length_ns >= since_ns]

    @property
    def complete(self) -> bool:
        """Whether each of the model's modalities has a wearable whose link is up."""
        return all(slot.wearable is not None and slot.wearable.linked for slot in self._slots.values())

    def source(self, modality: str) -> Wearable | None:
        """The wearable that one of the model's modalities comes from; None before any wearable brought it."""
        return self._slots[modality].wearable

    @property
    def start_ns(self) -> int | None:
        """End of window 0; None before the first sample."""
        return self._start_ns

    def due_count(self, until_ns: int) -> int:
        """Number of windows due by ``until_ns``: those whose end and longest wait lie before it."""
        if self._start_ns is None:
            return 0
        return max(0, (until_ns - 1 - self._max_wait_ns - self._start_ns) // self._hop_ns + 1)

    def _end_ns(self) -> int:
        assert self._start_ns is not None
        return self._start_ns + self._index * self._hop_ns

    def _take_in(self, packet: Packet) -> None:
        wearable = self.wearables.get(packet.wearable)
        if wearable is None:
            wearable = self.wearables[packet.wearable] = Wearable(packet.wearable, self._keep_ns)
        for name in wearable.take(packet):
            self._claim(name, wearable)
        self._find_due()

    def _claim(self, name: str, wearable: Wearable) -> None:
        """Make the first wearable that brings a modality as the model needs it its source, for good."""
        slot, ring = self._slots.get(name), wearable.rings[name]
        if slot is None or slot.ring is ring:
            return
        problem = self._mismatch(slot, wearable)
        if problem:
            self.problems[f"{wearable.name}/{name}"] = problem
            if slot.wearable is wearable:  # it came back with another format
                slot.wearable, slot.ring, slot.cutter, slot.present = None, None, None, False
            return
        slot.wearable, slot.ring, slot.token = wearable, ring, None
        slot.cutter = Cutter(ring, slot.modality, slot.samples, self._hop_ns)
        if self._start_ns is None:
            self._start_ns = ring.newest_ns() + self._length_ns

    @staticmethod
    def _mismatch(slot: _Slot, wearable: Wearable) -> str:
        """The reason for which a wearable cannot be the source of a modality; empty if it can."""
        want = slot.modality
        got = wearable.rings[want.name].modality
        if slot.wearable is not None and slot.wearable is not wearable:
            return f"comes from '{slot.wearable.name}' already"
        if (got.channels, got.unit) != (want.channels, want.unit):
            return f"is {got.channels} in {got.unit}; the model wants {want.channels} in {want.unit}"
        if abs(got.rate_hz / want.rate_hz - 1) > RATE_TOLERANCE:
            return f"comes at {got.rate_hz:g} Hz; the model wants {want.rate_hz:g} Hz"
        return ""

    def _decide_until(self, limit_ns: int) -> list[Decision]:
        decisions = []
        while self._due_ns is not None and self._due_ns <= limit_ns:
            assert self._newest_arrival_ns is not None
            decisions.append(self._decide(max(self._due_ns, self._newest_arrival_ns)))
            self._index += 1
            self._find_due()
        return decisions

    def _encode(self, end_ns: int) -> tuple[dict[str, Float32], dict[str, float | None], dict[str, float]]:
        """Tokens of the present modalities in a window, and age in seconds and coverage of all modalities."""
        tokens: dict[str, Float32] = {}
        age_s: dict[str, float | None] = {}
        coverage: dict[str, float] = {}
        for name, slot in self._slots.items():
            cut = slot.cutter.cut(end_ns) if slot.cutter is not None else None
            age_s[name] = None if cut is None or cut.age_ns is None else cut.age_ns / 1e9
            coverage[name] = 0.0 if cut is None else cut.coverage
            slot.present = cut is not None and self._is_present(slot, cut)
            if cut is None or not slot.present:
                continue
            if slot.token is None or slot.token_total != cut.total:
                try:
                    slot.token, slot.carried = self._model.encode_next(name, cut.window, slot.carried)
                except NotANumberError:  # finite samples that normalisation makes infinite
                    slot.present, slot.token = False, None
                    continue
                slot.token_total = cut.total
            tokens[name] = slot.token
        return tokens, age_s, coverage

    def _decide(self, decided_ns: int) -> Decision:
        began_ns = time.perf_counter_ns()
        end_ns = self._end_ns()
        tokens, age_s, coverage = self._encode(end_ns)
        label: str | None = None
        raw_label: str | None = None
        scores: tuple[float, ...] = ()
        embedding: tuple[float, ...] = ()
        reason: str | None = None
        subset = tuple(tokens)
        if not subset:
            reason = NO_SENSOR
        elif subset_name(subset) in self._refused:
            reason = BELOW_FLOOR
        else:
            try:
                logits, vector = self._model.aggregate(tokens)
                embedding = tuple(vector.tolist())
                verdict = self._decider.decide(subset_name(subset), logits.tolist(), embedding)
                label, raw_label, scores = verdict.label, verdict.raw_label, verdict.scores
            except NotANumberError:
                reason = NOT_A_NUMBER
        if reason is not None:
            self._decider.skip()
        self._recent.append((end_ns, tokens))
        return Decision(
            index=self._index,
            window_end_ns=end_ns,
            decided_ns=decided_ns,
            subset=subset,
            label=label,
            scores=scores,
            embedding=embedding,
            age_s=age_s,
            coverage=coverage,
            engine=self._model.engine.name,
            reason=reason,
            raw_label=raw_label,
            enrolled=self._decider.enrolled,
            latency_s=(self._clock_ns() - end_ns) / 1e9 if self._clock_ns is not None else None,
            compute_s=(time.perf_counter_ns() - began_ns) / 1e9 if self._clock_ns is not None else None,
        )

    def _is_present(self, slot: _Slot, cut: Cut) -> bool:
        needed = self._presence.min_coverage if slot.present else self._presence.return_coverage
        return cut.age_ns is not None and cut.age_ns <= slot.stale_ns and cut.coverage >= needed


def stale_ns(presence: Presence, modality: Modality) -> int:
    """The age in ns from which on a sample is stale: ``stale_after_s``, or two periods of a slow modality."""
    return round(max(presence.stale_after_s, 2 / modality.rate_hz) * 1e9)
