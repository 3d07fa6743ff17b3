"""Figures of a model: on every subset, over all people of a split and for each of them; and with few labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from armlet_runtime.arrays import Float32, Int64
from armlet_runtime.errors import DataError
from armlet_runtime.metrics import confusion_matrix, macro_f1
from armlet_runtime.modalities import subset_name, subsets
from armlet_runtime.windows import Normalisation

from ..data import Corpus, Scored, in_batches
from ..models import ArmletModel

FEW_LABELS = (1, 5, 10, 20)
SEEDS = 10

Features = Callable[[Scored, tuple[str, ...]], Float32]
"""From windows and a subset of their modalities to features (n, F)."""


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


class People(NamedTuple):
    """Whom a probe learns from and is scored on.

    Attributes:
        unlabelled: All windows of training people; features get their mean and deviation here.
        labelled: Their windows with one label.
        scored: Labelled windows of other people.
    """

    unlabelled: Scored
    labelled: Scored
    scored: Scored


def probe_people(train: Corpus, scored: Corpus, normalisation: dict[str, Normalisation] | None) -> People:
    """Whom a probe learns from and is scored on; windows stay in their units if there is no normalisation."""
    return People(
        _cut(train, False, normalisation), _cut(train, True, normalisation), _cut(scored, True, normalisation)
    )


def _cut(corpus: Corpus, labelled: bool, normalisation: dict[str, Normalisation] | None) -> Scored:
    starts = corpus.starts(labelled, corpus.stride)
    windows = corpus.windows(starts)
    if normalisation is not None:
        windows = {name: normalisation[name].apply(window) for name, window in windows.items()}
    return Scored(windows, corpus.labels_of(starts), corpus.people_of(starts), corpus.present(starts))


def score(
    predictions: NDArray[np.int64], names: Sequence[str], scored: Scored, labels: Sequence[str]
) -> list[SubsetScore]:
    """Figures of predictions (subsets, n) in the order of :func:`armlet_runtime.modalities.subsets`."""
    return [
        score_subset(subset, predicted, scored, labels)
        for subset, predicted in zip(subsets(names), predictions, strict=True)
    ]


def score_subset(
    subset: tuple[str, ...], predicted: NDArray[np.int64], scored: Scored, labels: Sequence[str]
) -> SubsetScore:
    """Figures of the predictions (n,) that rest on one subset."""
    classes = len(labels)
    people = {
        str(person): macro_f1(scored.truth[scored.people == person], predicted[scored.people == person], classes)
        for person in sorted(set(scored.people), key=_by_number)
    }
    return SubsetScore(
        subset_name(subset),
        macro_f1(scored.truth, predicted, classes),
        people,
        confusion_matrix(scored.truth, predicted, classes).tolist(),
    )


def _by_number(person: str) -> tuple[int, str]:
    return (int(person), "") if person.isdecimal() else (0, person)


def model_features(model: ArmletModel) -> Features:
    """What a frozen model shows to a linear probe; see :meth:`armlet_train.models.base.ArmletModel.features`."""

    def features(windows: Scored, subset: tuple[str, ...]) -> Float32:
        return in_batches(model.features, windows.windows, visible(windows, model, subset))

    return features


def visible(windows: Scored, model: ArmletModel, subset: tuple[str, ...]) -> NDArray[np.bool_]:
    """(n, modalities): what a model sees of windows if only a subset is there."""
    seen: NDArray[np.bool_] = windows.present & np.array([name in subset for name in model.modalities])
    return seen


class Standardised(NamedTuple):
    """Features (n, F) of :class:`People`, less the mean and over the deviation of the unlabelled ones."""

    labelled: Float32
    scored: Float32
    mean: Float32
    deviation: Float32

    def apply(self, features: Float32) -> Float32:
        """The same for other features (n, F)."""
        return (features - self.mean) / self.deviation


def standardise(features: Features, people: People, subset: tuple[str, ...]) -> Standardised:
    """Features as a linear probe takes them. Nothing of the people who are scored goes into the numbers."""
    every = features(people.unlabelled, subset)
    mean, deviation = every.mean(axis=0), every.std(axis=0) + 1e-6  # a dead unit must not be divided by zero
    labelled, scored = ((features(part, subset) - mean) / deviation for part in (people.labelled, people.scored))
    return Standardised(labelled, scored, mean, deviation)


def few_label(
    features: Standardised,
    truth: Int64,
    scored_truth: Int64,
    labels: Sequence[str],
    seeds: int = SEEDS,
    ks: Sequence[int] = FEW_LABELS,
) -> list[FewLabelScore]:
    """Logistic regression that has seen k labelled windows of each class.

    Args:
        features: On all modalities.
        truth: Labels of the training people's windows, of which the k are drawn.
        scored_truth: Labels of the windows to score.
        labels: Names of the classes.
        seeds: Draws of k windows.
        ks: How many labelled windows of each class.

    Raises:
        DataError: A class has fewer windows than are to be drawn from it.
    """
    counts = np.bincount(truth, minlength=len(labels))
    scarce = int(counts.argmin())
    if counts[scarce] < max(ks):
        raise DataError(
            f"the training people have {counts[scarce]} windows of '{labels[scarce]}', and a probe with {max(ks)} "
            "labelled windows of each class needs as many; record more of it, or leave it out of [data] labels"
        )
    results = []
    for k in ks:
        scores = []
        for seed in range(seeds):
            chosen = _few(truth, k, len(labels), np.random.default_rng(seed))
            predicted = fit(features.labelled[chosen], truth[chosen]).predict(features.scored)
            scores.append(macro_f1(scored_truth, predicted, len(labels)))
        results.append(FewLabelScore(k, seeds, float(np.mean(scores)), float(np.std(scores))))
    return results


def fit(features: Float32, truth: Int64) -> LogisticRegression:
    """The linear probe: logistic regression on standardised features (n, F)."""
    return LogisticRegression(max_iter=1000).fit(features, truth)


def _few(truth: Int64, k: int, classes: int, draw: np.random.Generator) -> Int64:
    return np.concatenate([draw.choice(np.flatnonzero(truth == label), k, replace=False) for label in range(classes)])
