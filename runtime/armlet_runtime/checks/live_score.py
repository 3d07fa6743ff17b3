"""Scores of a live run with known labels: a recording with labels was played, and the decisions are compared.

Every decision is compared with the recording's label, and with the offline result of the same programs on the same span
of the recording and the same subset. So the score separates errors of the model from those of the live path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np

from ..decisions import Decision
from ..metrics import accuracy, confusion_matrix, macro_f1
from ..modalities import subset_name
from ..model import BundleModel
from ..signals import Label, Recording
from ..windows import fill_gaps, resample, sample_times


class SubsetScore(msgspec.Struct, frozen=True):
    """Score of all decisions on a subset; ``macro_f1`` over the classes that occur in them."""

    subset: str
    windows: int
    """Windows whose decision has a class for a label."""
    unknown: int
    """Windows labelled ``unknown``, before or after smoothing, which the figures leave out."""
    macro_f1_live: float
    macro_f1_offline: float
    agreement: float
    """Share of windows with the same label live, before smoothing, and offline."""
    confusion: list[list[int]]
    """Confusion matrix live; rows are true labels, columns decisions, in the order of the manifest."""


class Loss(msgspec.Struct, frozen=True):
    """The effect of a link loss; all times in seconds."""

    wearable: str | None
    lost_at_s: float
    """Time since the wearables began to stream."""
    masked_after_s: float | None
    """Time from the staleness limit (link loss + ``stale_after_s``) to the first decision without the sensor."""
    whole_after_s: float | None
    """Time from the link's return to the first decision on all modalities."""


class LiveScore(msgspec.Struct, frozen=True):
    """Scores of a live run."""

    decisions: int
    missed: int
    """Windows without a decision between the first and the last decision."""
    scored: int
    """Decisions for a class whose window has a single label of the model for its whole length."""
    subsets: list[SubsetScore]
    losses: list[Loss]


class PlayEvent(msgspec.Struct, frozen=True):
    """A line of the events of ``armlet wearables simulate``."""

    event: str
    """``start``, ``link_lost``, ``link_back`` or ``end``."""
    monotonic_ns: int
    wearable: str | None = None
    recording_ns: int = 0
    """For ``start``: time of the recording that was played at ``monotonic_ns``."""


def single_label(labels: Sequence[Label], start_ns: int, end_ns: int) -> str | None:
    """The label that covers all of ``[start_ns, end_ns)``, or None."""
    return next((label.name for label in labels if label.start_ns <= start_ns and end_ns <= label.end_ns), None)


def score_live(
    decisions: Sequence[Decision], log: Sequence[PlayEvent], recording: Recording, model: BundleModel
) -> LiveScore:
    """Score the decisions of a run during which ``recording`` was played on this machine.

    Args:
        decisions: Decisions in order; ``window_end_ns`` is on the clock of ``log``.
        log: Events of the player.
        recording: The recording that was played.
        model: The model of the run, on the same engine, for the offline comparison.
    """
    manifest = model.manifest
    start = next(event for event in log if event.event == "start")
    length_ns = round(manifest.window.length_s * 1e9)
    unknown: Counter[str] = Counter()
    labels: dict[str, list[tuple[int, int, int, int]]] = {}  # subset to true, live, raw and offline labels
    for decision in decisions:
        end_ns = decision.window_end_ns - start.monotonic_ns + start.recording_ns
        name = single_label(recording.labels, end_ns - length_ns, end_ns)
        if decision.label is None or name not in manifest.labels:
            continue
        key = subset_name(decision.subset)
        if decision.label not in manifest.labels or decision.raw_label not in manifest.labels:
            unknown[key] += 1
            continue
        true, live, raw = map(manifest.labels.index, (name, decision.label, decision.raw_label))
        labels.setdefault(key, []).append((true, live, raw, _offline(recording, model, decision.subset, end_ns)))

    classes = len(manifest.labels)
    scores = []
    for key in sorted(labels, key=lambda key: (-key.count("+"), key)):
        truth, lived, raws, offline = zip(*labels[key], strict=True)
        scores.append(
            SubsetScore(
                subset=key,
                windows=len(truth),
                unknown=unknown[key],
                macro_f1_live=macro_f1(truth, lived, classes),
                macro_f1_offline=macro_f1(truth, offline, classes),
                agreement=accuracy(offline, raws),
                confusion=confusion_matrix(truth, lived, classes).tolist(),
            )
        )
    missed = sum(later.index - earlier.index - 1 for earlier, later in pairwise(decisions))
    return LiveScore(len(decisions), missed, sum(map(len, labels.values())), scores, _losses(decisions, log, model))


def _offline(recording: Recording, model: BundleModel, subset: Sequence[str], end_ns: int) -> int:
    """Arg max of the model on the recording's samples of the window that ends at ``end_ns``."""
    windows = {}
    for modality in model.manifest.modalities:
        if modality.name not in subset:
            continue
        stream = recording.streams[modality.name]
        # Seconds relative to the window's end keep float64 times exact to well below a nanosecond.
        near = np.abs(stream.times_ns - end_ns) < 2 * model.manifest.window.length_s * 1e9
        times = (stream.times_ns[near] - end_ns) / 1e9
        grid = sample_times(0.0, modality.rate_hz, model.manifest.window.samples(modality))
        values, covered = resample(times, stream.values[near], grid, 1 / stream.modality.rate_hz)
        windows[modality.name] = fill_gaps(values, covered).T
    return int(model.predict(windows)[0].argmax())


def _losses(decisions: Sequence[Decision], log: Sequence[PlayEvent], model: BundleModel) -> list[Loss]:
    """For each link loss of ``log``: when decisions left the sensor out, and when they used all sensors again."""
    start = next(event for event in log if event.event == "start")
    everything = {modality.name for modality in model.manifest.modalities}
    # When each decision was out: its window's end plus the latency that the live clock measured.
    out = [(d.window_end_ns + round((d.latency_s or 0.0) * 1e9), set(d.subset)) for d in decisions]
    losses = []
    for i, event in enumerate(log):
        if event.event != "link_lost":
            continue
        back = next((e for e in log[i:] if e.event == "link_back" and e.wearable == event.wearable), None)
        limit_ns = event.monotonic_ns + round(model.manifest.presence.stale_after_s * 1e9)
        until_ns = back.monotonic_ns if back else out[-1][0] + 1
        masked = [at for at, subset in out if event.monotonic_ns < at < until_ns and subset != everything]
        whole = [at for at, subset in out if at > until_ns and subset == everything]
        losses.append(
            Loss(
                event.wearable,
                (event.monotonic_ns - start.monotonic_ns) / 1e9,
                (masked[0] - limit_ns) / 1e9 if masked else None,
                (whole[0] - until_ns) / 1e9 if back and whole else None,
            )
        )
    return losses
