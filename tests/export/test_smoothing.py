"""The transitions that a bundle's smoothing is made of, counted on recordings that are known."""

from __future__ import annotations

import numpy as np
import pytest

from armlet_export.bundle.smoothing import smoothing_of
from armlet_runtime.bundle.manifest import HiddenMarkov, Majority
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Label, Recording, Stream
from armlet_runtime.windows import WindowSpec
from armlet_train.data import Corpus, join_recordings
from armlet_train.recipes import DataRecipe, ExportRecipe

SECOND = 1_000_000_000


def corpus(*recordings: list[tuple[float, float, str]]) -> Corpus:
    times = np.arange(50 * 100, dtype=np.int64) * 20_000_000
    stream = Stream(Modality("acc", ("x",), "g", 50.0), times, np.ones((len(times), 1), np.float32))
    made = [
        Recording(f"r{number}", f"p{number}", {}, {"acc": stream}, [
            Label(round(start * SECOND), round(end * SECOND), name) for start, end, name in labels
        ])
        for number, labels in enumerate(recordings)
    ]  # fmt: skip
    return join_recordings(made, DataRecipe("made", ("acc",), ("a", "b", "c"), 2.0, 1.0, 0.5))


def test_what_has_no_label_belongs_to_the_label_before() -> None:
    people = corpus([(0, 20, "a"), (25, 60, "b"), (60, 70, "a")], [(10, 100, "c")])
    changes = people.label_changes(0.5)
    # 25 s of a, and 40 s of it again until the end, are 130 hops, one of them the change to b; and so on.
    expected = np.array([[49 + 79, 1, 0], [1, 69, 0], [0, 0, 179]])
    assert np.allclose(changes, expected)


def test_the_recipe_chooses() -> None:
    people, window = corpus([(0, 20, "a"), (25, 60, "b")]), WindowSpec(2.0, 0.5)
    assert smoothing_of(ExportRecipe(), people, window) is None
    assert smoothing_of(ExportRecipe(smoothing="majority", majority_windows=7), people, window) == Majority(7)
    made = smoothing_of(ExportRecipe(smoothing="hidden markov"), people, window)
    assert isinstance(made, HiddenMarkov) and made.evidence == 0.25
    assert np.allclose(np.sum(made.transitions, axis=1), 1) and sum(made.prior) == pytest.approx(1)
    assert made.transitions[0][0] == pytest.approx((49 + 1) / (50 + 3))
    assert all(share > 0 for row in made.transitions for share in row)  # never seen is not impossible
    assert made.prior[2] < made.prior[0] < made.prior[1]
    with pytest.raises(ValueError, match="majority_windows must lie from 1 to 1000"):
        ExportRecipe(majority_windows=0)
