"""Calibration: a temperature for each subset, and the probability below which a decision is unknown.

Both are fitted on validation people, on the logits of the finished programs, and on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.arrays import Float32
from armlet_runtime.bundle import Confidence
from armlet_runtime.metrics import ECE_BINS, expected_calibration_error
from armlet_runtime.modalities import subset_name, subsets
from armlet_train.data import Scored

RANGE = (0.05, 20.0)
"""Bounds of a temperature: the lower for logits that are always right, the upper for logits that never are."""

LEAVE_ONE_OUT = f"{ECE_BINS} bins; each person's windows with the temperature fitted on the other people"
FITTED_ELSEWHERE = f"{ECE_BINS} bins; temperatures fitted on validation people"


def probabilities(logits: Float32, temperature: float) -> NDArray[np.float64]:
    """Softmax of (n, labels) logits over a temperature."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def fit_temperature(logits: Float32, truth: NDArray[np.int64]) -> float:
    """The temperature of the smallest mean negative log-likelihood, in :data:`RANGE`; 1 for no windows.

    The likelihood is convex in 1/temperature, so a golden-section search finds its one minimum. scipy.optimize finds it
    within 0.1 %, but gave the same four digits in only 37 of 60 trials, and was not faster. Calibration errors of small
    groups then differ in their third digit: a bundle exported again would have another certificate for no gain.
    """
    if not len(truth):
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / math.exp(log_temperature)
        highest = scaled.max(axis=1)
        total = highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=1))
        return float(np.mean(total - scaled[np.arange(len(truth)), truth]))

    ratio = (math.sqrt(5) - 1) / 2
    low, high = map(math.log, RANGE)
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    losses = [loss(inner[0]), loss(inner[1])]
    while high - low > 1e-3:
        if losses[0] < losses[1]:
            high, inner[1], losses[1] = inner[1], inner[0], losses[0]
            inner[0] = high - ratio * (high - low)
            losses[0] = loss(inner[0])
        else:
            low, inner[0], losses[0] = inner[0], inner[1], losses[1]
            inner[1] = low + ratio * (high - low)
            losses[1] = loss(inner[1])
    return float(f"{math.exp((low + high) / 2):.4g}")


@dataclass(frozen=True)
class Calibration:
    """Figures for the certificate rows of one engine: subset to value; see the certificate."""

    ece_uncalibrated: dict[str, float]
    ece: dict[str, float]
    unknown: dict[str, float]

    def of(self, subset: str) -> dict[str, float]:
        """The fields that a subset's row gets."""
        return {
            "ece_uncalibrated": self.ece_uncalibrated[subset],
            "ece": self.ece[subset],
            "unknown": self.unknown[subset],
        }


def fit(names: Sequence[str], people: Scored, logits: Sequence[Float32], max_unknown: float) -> Confidence:
    """Temperatures and threshold from validation people.

    The threshold is the highest that makes no more than ``max_unknown`` of the right decisions unknown, all subsets
    counted alike.

    Args:
        names: The model's modalities.
        people: Validation people.
        logits: Of each engine, (subsets, n, labels): one temperature serves all engines, which differ by rounding.
        max_unknown: A share; 0 for no threshold.
    """
    temperature, right = {}, []
    for place, subset in enumerate(subsets(names)):
        complete = people.having(names, subset)
        every = np.concatenate([engine[place][complete] for engine in logits])
        truth = np.tile(people.truth[complete], len(logits))
        fitted = temperature[subset_name(subset)] = fit_temperature(every, truth)
        shares = probabilities(every, fitted)
        right.append(shares.max(axis=1)[shares.argmax(axis=1) == truth])
    sure = np.sort(np.concatenate(right))
    if max_unknown <= 0 or not len(sure):
        return Confidence(temperature)
    below = float(sure[math.floor(max_unknown * len(sure))])
    return Confidence(temperature, math.floor(below * 1000) / 1000)


def measure(
    names: Sequence[str], certified: Scored, logits: Float32, confidence: Confidence, fitted_on_them: bool
) -> Calibration:
    """Calibration errors and shares of unknown of one engine on the certificate's people.

    Where the temperatures were fitted on these very people, each person's probabilities are taken with the temperature
    of all others, so that the figure is not flattered; of a single person that cannot be done.
    """
    plain, calibrated, unknown = {}, {}, {}
    for place, subset in enumerate(subsets(names)):
        complete = certified.having(names, subset)
        if not complete.any():
            continue
        name = subset_name(subset)
        mine, truth, people = logits[place][complete], certified.truth[complete], certified.people[complete]
        shares = probabilities(mine, confidence.temperature[name])
        unknown[name] = float(np.mean(shares.max(axis=1) < confidence.unknown_below))
        if fitted_on_them and len(np.unique(people)) > 1:
            for person in np.unique(people):
                theirs = people == person
                shares[theirs] = probabilities(mine[theirs], fit_temperature(mine[~theirs], truth[~theirs]))
        plain[name] = expected_calibration_error(probabilities(mine, 1.0), truth)
        calibrated[name] = expected_calibration_error(shares, truth)
    return Calibration(plain, calibrated, unknown)
