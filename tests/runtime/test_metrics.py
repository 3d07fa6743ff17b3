"""The shared figures of merit against scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from armlet_runtime.metrics import accuracy, confusion_matrix, macro_f1


def test_figures_agree_with_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with armlet[train]")
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, predicted = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
        assert macro_f1(truth, predicted, 5) == pytest.approx(reference.f1_score(truth, predicted, average="macro"))
        np.testing.assert_array_equal(
            confusion_matrix(truth, predicted, 5), reference.confusion_matrix(truth, predicted)
        )


def test_classes_that_occur_nowhere_do_not_count() -> None:
    assert macro_f1([0, 1], [0, 1], 6) == 1.0


def test_nothing_to_score_is_not_a_number() -> None:
    assert math.isnan(macro_f1([], [], 3))
    assert math.isnan(accuracy([], []))
