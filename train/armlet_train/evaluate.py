"""Figures of a model: on every subset, over all people of a split and for each of them; and with few labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from armlet_runtime.metrics import confusion_matrix, macro_f1
from armlet_runtime.modalities import subset_name, subsets
from armlet_runtime.windows import Float32

from .batches import in_batches
from .data import Scored
from .models import ArmletModel
from .pieces import Int64

FEW_LABELS = (1, 5, 10, 20)
SEEDS = 10


class SubsetScore(msgspec.Struct, frozen=True):
    """Figures of one subset. ``people``: wearer to macro-F1; ``confusion``: rows truth, columns predictions."""

    subset: str
    macro_f1: float
    people: dict[str, float]
    confusion: list[list[int]]


class FewLabelScore(msgspec.Struct, frozen=True):
    """Macro-F1 of a linear probe with ``k`` labelled windows of each class: mean and deviation over the seeds."""

    k: int
    seeds: int
    macro_f1: float
    deviation: float


class Evaluation(msgspec.Struct, frozen=True):
    """What ``armlet evaluate --json`` writes."""

    source: str
    engine: str
    """``pytorch``, or the engine of a bundle with its version and detail."""
    split: str
    labels: tuple[str, ...]
    windows: int
    subsets: list[SubsetScore] = []
    few_label: list[FewLabelScore] = []


def score(
    predictions: NDArray[np.int64], names: Sequence[str], scored: Scored, labels: Sequence[str]
) -> list[SubsetScore]:
    """Figures of predictions (subsets, n) in the order of :func:`armlet_runtime.modalities.subsets`."""
    classes = len(labels)
    scores = []
    for subset, predicted in zip(subsets(names), predictions, strict=True):
        people = {
            str(person): macro_f1(scored.truth[scored.people == person], predicted[scored.people == person], classes)
            for person in sorted(set(scored.people), key=int)
        }
        scores.append(
            SubsetScore(
                subset_name(subset),
                macro_f1(scored.truth, predicted, classes),
                people,
                confusion_matrix(scored.truth, predicted, classes).tolist(),
            )
        )
    return scores


def few_label(
    model: ArmletModel, unlabelled: Mapping[str, Float32], train: Scored, test: Scored, classes: int
) -> list[FewLabelScore]:
    """Linear probe on the frozen encoders: logistic regression on the features of k windows a class.

    Args:
        model: Pretrained, in evaluation mode.
        unlabelled: Normalised windows of training people, all of them; the features' mean and deviation come from here.
        train: Labelled windows of training people, from which the k are drawn.
        test: Windows to score.
        classes: How many labels there are.
    """
    every = in_batches(model.features, unlabelled)
    mean, deviation = every.mean(axis=0), every.std(axis=0) + 1e-6  # a dead unit must not be divided by zero
    train_features = (in_batches(model.features, train.windows, train.present) - mean) / deviation
    test_features = (in_batches(model.features, test.windows, test.present) - mean) / deviation
    results = []
    for k in FEW_LABELS:
        scores = []
        for seed in range(SEEDS):
            chosen = _few(train.truth, k, classes, np.random.default_rng(seed))
            probe = LogisticRegression(max_iter=1000).fit(train_features[chosen], train.truth[chosen])
            scores.append(macro_f1(test.truth, probe.predict(test_features), classes))
        results.append(FewLabelScore(k, SEEDS, float(np.mean(scores)), float(np.std(scores))))
    return results


def _few(truth: Int64, k: int, classes: int, draw: np.random.Generator) -> Int64:
    return np.concatenate([draw.choice(np.flatnonzero(truth == label), k, replace=False) for label in range(classes)])
