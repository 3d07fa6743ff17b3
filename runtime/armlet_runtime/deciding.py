"""From logits to a decision: calibrated probabilities, and ``unknown`` where the model is not sure enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import UsageError
from .manifest import UNKNOWN, Manifest


@dataclass(frozen=True)
class Verdict:
    """What one window is decided to be.

    Attributes:
        label: A class, or ``unknown``.
        scores: Probabilities in the order of the manifest's labels.
    """

    label: str
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
        self._temperature = confidence.temperature if confidence is not None else {}

    def decide(self, subset: str, logits: Sequence[float]) -> Verdict:
        """The verdict on a window.

        Args:
            subset: Name of the modalities that it rests on.
            logits: Of the model, (labels,).
        """
        scores = softmax(logits, self._temperature.get(subset, 1.0))
        best = max(range(len(scores)), key=scores.__getitem__)
        label = self._labels[best] if scores[best] >= self.unknown_below else UNKNOWN
        return Verdict(label, scores)


def softmax(logits: Sequence[float], temperature: float = 1.0) -> tuple[float, ...]:
    """Shares that add up to 1, of logits divided by a temperature."""
    # The C library's exp: NumPy's differs between its releases in the last bit, and so would replays.
    highest = max(logits)
    powers = [math.exp((logit - highest) / temperature) for logit in logits]
    total = math.fsum(powers)
    return tuple(power / total for power in powers)
