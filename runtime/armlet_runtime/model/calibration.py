"""From logits to a decision: calibrated probabilities, ``unknown`` where the model is not sure enough, smoothing.

Smoothing looks back only. A window whose own label is ``unknown`` is a vote for that in a majority; to the hidden
Markov model it is no evidence, so that it keeps its label for as long as it is sure enough of it. Windows without a
decision have no vote and are no evidence; the windows before them count less and less.

Classes that were enrolled on this board (:mod:`armlet_runtime.model.prototypes`) come after the bundle's own. With *r*
the distance of a window's embedding from a class's nearest prototype, in radii of that prototype, the class is ``r **
-8`` times as probable as the most probable of the bundle's classes: inside the radius it is decided for, and soon
outside it counts for nothing. In a window of which the bundle's model is sure (:data:`SURE`) it counts for nothing
either: this wearer's walking may lie where nobody's in the bundle's bank does, and stays walking. Whether a window is
``unknown`` is asked of the bundle's classes, where no enrolled one is nearer.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..bundle import UNKNOWN, HiddenMarkov, Majority, Manifest
from .policy import Policy

if TYPE_CHECKING:
    from .enrolled_classes import Example, Prototype


class Verdict(NamedTuple):
    """The outcome of one window.

    Attributes:
        label: A class, or ``unknown``; smoothed.
        raw_label: That of this window alone.
        scores: Probabilities in the order of the manifest's labels, then of the enrolled classes.
    """

    label: str
    raw_label: str
    scores: tuple[float, ...]


SURE = 0.92
"""Calibrated probability of a class of the bundle's above which a window is that, and shows nothing new: the highest at
which no more than one of 135 examples (45 of HAPT's postural transitions, of its validation people, in three subsets)
cost its wearer a point of macro-F1 (``benchmarks/enrolment.py``)."""

STEEPNESS = 8
"""How fast the probability of an enrolled class falls with the distance."""

NEAREST = 1e4
"""Odds of an enrolled class to the bundle's best class, for a window that equals its prototype."""


class Decider:
    """Turns the logits of a model into verdicts, by the rules of its bundle and with the classes enrolled for it.

    Attributes:
        labels: The manifest's, then the enrolled classes.
        enrolled: Those alone.
        unknown_below: The probability below which a window is ``unknown``.
    """

    def __init__(self, manifest: Manifest, policy: Policy | None = None) -> None:
        """For one model.

        Args:
            manifest: Of the bundle.
            policy: The threshold and the enrolled classes; None for the bundle's own rules.

        Raises:
            UsageError: The threshold would take the name of a class.
        """
        confidence = manifest.confidence
        policy = policy or Policy()
        self.unknown_below = policy.threshold(manifest)
        classes = policy.layer.classes()
        self.enrolled = tuple(classes)
        self.labels = (*manifest.labels, *classes)
        self._temperature = confidence.temperature if confidence is not None else {}
        self._prototypes = _by_subset(classes.values())
        self._smoother = _smoother(manifest.smoothing, self.labels, len(classes), self.unknown_below)

    def decide(self, subset: str, logits: Sequence[float], embedding: Sequence[float]) -> Verdict:
        """The verdict on a window.

        Args:
            subset: Name of the modalities that it rests on.
            logits: Of the model, (labels,).
            embedding: Of the model, (embedding_dim,).
        """
        scores = softmax(logits, self._temperature.get(subset, 1.0))
        best = scores.index(max(scores))
        raw = self.labels[best] if scores[best] >= self.unknown_below else UNKNOWN
        if self.enrolled:
            known = self._prototypes.get(subset) if scores[best] <= SURE else None
            times = known.nearness(embedding) if known is not None else [0.0] * len(self.enrolled)
            nearest = max(range(len(times)), key=times.__getitem__)
            if times[nearest] > 1:
                raw = self.labels[len(scores) + nearest]
            shares = (*scores, *(factor * scores[best] for factor in times))
            total = math.fsum(shares)
            scores = tuple(share / total for share in shares)
        return Verdict(self._smoother.next(raw, scores), raw, scores)

    def skip(self) -> None:
        """A window has no decision."""
        self._smoother.skip()


class _Unsmoothed:
    """Every window is decided alone."""

    def next(self, label: str, scores: Sequence[float]) -> str:
        """The smoothed label of a window with this label and these probabilities."""
        return label

    def skip(self) -> None:
        """A window has no decision."""


class _Majority(_Unsmoothed):
    """See :class:`armlet_runtime.bundle.manifest.Majority`."""

    def __init__(self, windows: int) -> None:
        self._last: deque[str | None] = deque(maxlen=windows)

    def next(self, label: str, scores: Sequence[float]) -> str:
        self._last.append(label)
        votes = Counter(vote for vote in reversed(self._last) if vote is not None)
        return votes.most_common(1)[0][0]  # of several with as many, the first counted, which is the newest

    def skip(self) -> None:
        self._last.append(None)


class _HiddenMarkov(_Unsmoothed):
    """See :class:`armlet_runtime.bundle.manifest.HiddenMarkov`."""

    def __init__(self, model: HiddenMarkov, labels: Sequence[str], unknown_below: float) -> None:
        self._columns = list(zip(*model.transitions, strict=True))
        self._prior, self._evidence = model.prior, model.evidence
        self._labels, self._unknown_below = labels, unknown_below
        self._belief: Sequence[float] = ()

    def next(self, label: str, scores: Sequence[float]) -> str:
        self.skip()
        if label != UNKNOWN:
            # A probability of zero would rule a label out for ever.
            likelihood = (max(p, 1e-9) / prior for p, prior in zip(scores, self._prior, strict=True))
            joint = [b * math.pow(factor, self._evidence) for b, factor in zip(self._belief, likelihood, strict=True)]
            total = math.fsum(joint)
            self._belief = [value / total for value in joint]
        best = max(range(len(self._belief)), key=self._belief.__getitem__)
        return self._labels[best] if self._belief[best] >= self._unknown_below else UNKNOWN

    def skip(self) -> None:
        before = self._belief
        if before:
            self._belief = [math.fsum(map(operator.mul, before, column)) for column in self._columns]
        else:
            self._belief = self._prior


def _smoother(
    smoothing: Majority | HiddenMarkov | None, labels: Sequence[str], enrolled: int, unknown_below: float
) -> _Unsmoothed:
    match smoothing:
        case Majority(windows=windows):
            return _Majority(windows)
        case HiddenMarkov() as model:
            for _ in range(enrolled):
                model = _with_one_more(model)
            return _HiddenMarkov(model, labels, unknown_below)
    return _Unsmoothed()


def _with_one_more(model: HiddenMarkov) -> HiddenMarkov:
    """With an enrolled class, of whose comings and goings nothing is known: it behaves as the others do on average."""
    count = len(model.prior)
    stays = math.fsum(row[place] for place, row in enumerate(model.transitions)) / count
    rows = []
    for place, row in enumerate(model.transitions):
        leaves = (1 - row[place]) / count  # of those who leave, the new class gets its even share
        others = (1 - row[place] - leaves) / (1 - row[place]) if row[place] < 1 else 0.0
        rows.append((*(p if other == place else p * others for other, p in enumerate(row)), leaves))
    rows.append((*[(1 - stays) / count] * count, stays))
    share = 1 / (count + 1)
    prior = (*(p * (1 - share) for p in model.prior), share)
    return HiddenMarkov(tuple(rows), prior, model.evidence)


class _Prototypes:
    """The prototypes of all enrolled classes in one subset."""

    def __init__(self, classes: Sequence[Sequence[Prototype]]) -> None:
        self._classes = classes
        every = [prototype for prototypes in classes for prototype in prototypes]
        self._points = np.array([prototype.embedding for prototype in every])
        self._weights = np.array([prototype.radius for prototype in every]) ** -2
        self._ends = list(itertools.accumulate(map(len, classes)))

    def nearness(self, embedding: Sequence[float]) -> list[float]:
        """Of each class, how many times as probable as the bundle's best it is; 0 where it has no prototype."""
        away = self._points - np.array(embedding)
        squares = np.einsum("ij,ij->i", away, away) * self._weights
        times = []
        for prototypes, end in zip(self._classes, self._ends, strict=True):
            if not prototypes:
                times.append(0.0)
                continue
            nearest = prototypes[int(squares[end - len(prototypes) : end].argmin())]
            # The distance itself by the C library: NumPy's sums differ between its releases in the last bit.
            distance = math.dist(nearest.embedding, embedding) / nearest.radius
            times.append(min(NEAREST, max(distance, 1e-3) ** -STEEPNESS))
        return times


def _by_subset(classes: Iterable[Sequence[Example]]) -> dict[str, _Prototypes]:
    """Subset to the prototypes of all classes in it, for the subsets in which there are any."""
    every = list(classes)
    subsets = {
        subset
        for examples in every
        for example in examples
        for subset, prototypes in example.prototypes.items()
        if prototypes
    }
    return {
        subset: _Prototypes(
            [[prototype for example in mine for prototype in example.prototypes.get(subset, ())] for mine in every]
        )
        for subset in sorted(subsets)
    }


def softmax(logits: Sequence[float], temperature: float = 1.0) -> tuple[float, ...]:
    """Shares that add up to 1, of logits divided by a temperature."""
    # The C library's exp: NumPy's differs between its releases in the last bit, and so would replays.
    highest = max(logits)
    powers = [math.exp((logit - highest) / temperature) for logit in logits]
    total = math.fsum(powers)
    return tuple([power / total for power in powers])
