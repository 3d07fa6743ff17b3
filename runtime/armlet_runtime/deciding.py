"""From logits to a decision: calibrated probabilities, ``unknown`` where the model is not sure enough, smoothing.

Smoothing looks back only. A window whose own label is ``unknown`` is a vote for that in a majority; to the hidden
Markov model it is no evidence, so that it keeps its label for as long as it is sure enough of it. Windows without a
decision have no vote and are no evidence; the windows before them count less and less.
"""

from __future__ import annotations

import math
import operator
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import UsageError
from .manifest import UNKNOWN, HiddenMarkov, Majority, Manifest


@dataclass(frozen=True)
class Verdict:
    """What one window is decided to be.

    Attributes:
        label: A class, or ``unknown``; smoothed.
        raw_label: That of this window alone.
        scores: Probabilities in the order of the manifest's labels.
    """

    label: str
    raw_label: str
    scores: tuple[float, ...]


class Decider:
    """Turns the logits of a model into verdicts, by the rules of its bundle.

    Attributes:
        unknown_below: The probability below which a window is ``unknown``.
    """

    def __init__(self, manifest: Manifest, unknown_below: float | None = None) -> None:
        """For one model.

        Args:
            manifest: Of the bundle.
            unknown_below: Instead of the bundle's own threshold; 0 for none.

        Raises:
            UsageError: The threshold is no probability, or would take the name of a class.
        """
        confidence = manifest.confidence
        if unknown_below is None:
            unknown_below = confidence.unknown_below if confidence is not None else 0.0
        if not 0 <= unknown_below <= 1:
            raise UsageError(f"unknown below {unknown_below:g}: a probability lies between 0 and 1")
        if unknown_below > 0 and UNKNOWN in manifest.labels:
            raise UsageError(f"this bundle has a class '{UNKNOWN}' of its own: no threshold can be set for it")
        self.unknown_below = unknown_below
        self._labels = manifest.labels
        self._smoother = _smoother(manifest, unknown_below)
        self._temperature = confidence.temperature if confidence is not None else {}

    def decide(self, subset: str, logits: Sequence[float]) -> Verdict:
        """The verdict on a window.

        Args:
            subset: Name of the modalities that it rests on.
            logits: Of the model, (labels,).
        """
        scores = softmax(logits, self._temperature.get(subset, 1.0))
        best = max(range(len(scores)), key=scores.__getitem__)
        raw = self._labels[best] if scores[best] >= self.unknown_below else UNKNOWN
        return Verdict(self._smoother.next(raw, scores), raw, scores)

    def skip(self) -> None:
        """A window has no decision."""
        self._smoother.skip()


class _Unsmoothed:
    """Each window stands for itself."""

    def next(self, label: str, scores: Sequence[float]) -> str:
        """The smoothed label of a window with this label and these probabilities."""
        return label

    def skip(self) -> None:
        """A window has no decision."""


class _Majority(_Unsmoothed):
    """See :class:`armlet_runtime.manifest.Majority`."""

    def __init__(self, windows: int) -> None:
        self._last: deque[str | None] = deque(maxlen=windows)

    def next(self, label: str, scores: Sequence[float]) -> str:
        self._last.append(label)
        votes = Counter(vote for vote in reversed(self._last) if vote is not None)
        return votes.most_common(1)[0][0]  # of several with as many, the first counted, which is the newest

    def skip(self) -> None:
        self._last.append(None)


class _HiddenMarkov(_Unsmoothed):
    """See :class:`armlet_runtime.manifest.HiddenMarkov`."""

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
            joint = [b * math.pow(one, self._evidence) for b, one in zip(self._belief, likelihood, strict=True)]
            total = math.fsum(joint)
            self._belief = [one / total for one in joint]
        best = max(range(len(self._belief)), key=self._belief.__getitem__)
        return self._labels[best] if self._belief[best] >= self._unknown_below else UNKNOWN

    def skip(self) -> None:
        before = self._belief
        if before:
            self._belief = [math.fsum(map(operator.mul, before, column)) for column in self._columns]
        else:
            self._belief = self._prior


def _smoother(manifest: Manifest, unknown_below: float) -> _Unsmoothed:
    match manifest.smoothing:
        case Majority(windows=windows):
            return _Majority(windows)
        case HiddenMarkov() as model:
            return _HiddenMarkov(model, manifest.labels, unknown_below)
    return _Unsmoothed()


def softmax(logits: Sequence[float], temperature: float = 1.0) -> tuple[float, ...]:
    """Shares that add up to 1, of logits divided by a temperature."""
    # The C library's exp: NumPy's differs between its releases in the last bit, and so would replays.
    highest = max(logits)
    powers = [math.exp((logit - highest) / temperature) for logit in logits]
    total = math.fsum(powers)
    return tuple(power / total for power in powers)
