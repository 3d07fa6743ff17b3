"""Figures of merit that training, the certificate and the live report share; a board has no scikit-learn."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def confusion_matrix(truth: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """(classes, classes) counts; row = truth, column = prediction. Both arguments are class indices of one length."""
    flat = np.asarray(truth, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def f1_per_class(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """(classes,) F1 scores, ``2 TP / (2 TP + FP + FN)``; NaN for a class that is nowhere truth or prediction."""
    true_positive = np.diag(confusion).astype(np.float64)
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    scores = np.full(len(total), np.nan)
    np.divide(2 * true_positive, total, out=scores, where=total > 0)
    return scores


def macro_f1(truth: ArrayLike, predicted: ArrayLike, classes: int) -> float:
    """Unweighted mean of the per-class F1 scores over the classes that occur; NaN for no samples at all."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.size == 0:
        return float("nan")
    return float(np.nanmean(f1_per_class(confusion_matrix(truth, predicted, classes))))


ECE_BINS = 15
"""Bins of equal width over the highest probability, as Guo et al. 2017 (arXiv 1706.04599) have them."""


def expected_calibration_error(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """How far confidence is from accuracy, averaged over :data:`ECE_BINS` bins by their numbers of samples.

    Args:
        probabilities: (n, classes); the highest is the confidence.
        truth: (n,) class indices.

    Returns:
        0 to 1; NaN for no samples at all.
    """
    shares, truth = np.asarray(probabilities, np.float64), np.asarray(truth)
    if truth.size == 0:
        return float("nan")
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == truth
    bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gaps = np.bincount(bins, right - confidence, ECE_BINS)
    return float(np.abs(gaps).sum() / truth.size)


def accuracy(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Share of equal entries; NaN for no samples at all."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    return float(np.mean(truth == predicted)) if truth.size else float("nan")
