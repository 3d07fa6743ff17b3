"""Scores of a live run whose truth is known, on a real model and made decisions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from armlet_runtime.bundle.manifest import UNKNOWN
from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.checks.live_score import PlayEvent, score_live
from armlet_runtime.decisions import Decision
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.signals.recording import Label, Recording, Stream

SECOND = 1_000_000_000
STARTED_NS = 50 * SECOND


@pytest.fixture(scope="module")
def board(small_draft: Path) -> Iterator[BundleModel]:
    draft = Draft(small_draft)
    one = BundleModel(draft.manifest, draft.read, "litert")
    yield one
    one.close()


@pytest.fixture(scope="module")
def recording(board: BundleModel) -> Recording:
    """Twenty seconds; the first ten labelled as what the model calls the window that ends at 5 s."""
    times = np.arange(50 * 20, dtype=np.int64) * 20_000_000
    values = np.random.default_rng(2).normal(size=(2, 50, 3)).astype(np.float32)
    streams = {
        modality.name: Stream(modality, times, np.tile(values[place], (20, 1)))
        for place, modality in enumerate(board.manifest.modalities)
    }
    labels = [Label(0, 10 * SECOND, label_of(board, streams)), Label(10 * SECOND, 20 * SECOND, "standing")]
    return Recording("r", "p", {}, streams, labels)


def label_of(board: BundleModel, streams: dict[str, Stream]) -> str:
    windows = {name: stream.values[200:250].T.copy() for name, stream in streams.items()}
    return board.manifest.labels[int(board.predict(windows)[0].argmax())]


def decided(index: int, end_s: float, label: str | None, raw: str | None) -> Decision:
    end_ns = STARTED_NS + round(end_s * SECOND)
    subset = ("acc", "gyro") if label else ()
    reason = None if label else "no sensor"
    return Decision(index, end_ns, end_ns, subset, label, (), (), {}, {}, "litert", reason, raw, (), 0.01)


def test_unknown_and_smoothed_labels_are_told_apart(board: BundleModel, recording: Recording) -> None:
    right = recording.labels[0].name
    wrong = next(label for label in board.manifest.labels if label not in (right, "standing"))
    decisions = [
        decided(0, 2.0, right, right),
        decided(1, 3.0, right, wrong),  # smoothing mended it
        decided(2, 4.0, wrong, right),  # smoothing spoilt it
        decided(3, 5.0, UNKNOWN, UNKNOWN),
        decided(4, 6.0, right, UNKNOWN),  # smoothing knows better: no offline label to agree with
        decided(5, 7.0, "a class that was enrolled", "a class that was enrolled"),
        decided(6, 8.0, None, None),
        decided(8, 10.5, right, right),  # two labels in its window
    ]
    log = [PlayEvent("start", STARTED_NS, None, 0), PlayEvent("end", STARTED_NS + 20 * SECOND)]
    score = score_live(decisions, log, recording, board)
    assert (score.decisions, score.missed, score.scored) == (8, 1, 3)
    (subset,) = score.subsets
    assert (subset.subset, subset.windows, subset.unknown) == ("acc+gyro", 3, 3)
    # Live two of three are right; offline all are, and two of the raw labels say the same.
    assert subset.macro_f1_offline == 1.0 and subset.macro_f1_live == pytest.approx((0.8 + 0.0) / 2)
    assert subset.agreement == pytest.approx(2 / 3)
    truth = board.manifest.labels.index(right)
    assert subset.confusion[truth][truth] == 2 and sum(map(sum, subset.confusion)) == 3
