"""Temperatures and the threshold for ``unknown``, on logits whose right temperature is known."""

from __future__ import annotations

import numpy as np
import pytest

from armlet_export.pipeline.proven import BANK_PER_LABEL, bank
from armlet_export.proof import calibration as calibrate
from armlet_runtime.bundle.manifest import Confidence
from armlet_train.data import Scored

NAMES = ("acc", "gyro")


def made(temperatures: tuple[float, ...], count: int = 4000, people: int = 4) -> tuple[Scored, np.ndarray]:
    """Labels drawn from the very probabilities that the logits (subsets, n, 3) give over each subset's temperature."""
    rng = np.random.default_rng(3)
    true = rng.normal(size=(count, 3)) * 2
    shares = calibrate.probabilities(true.astype(np.float32), 1.0)
    truth = (shares.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    who = np.array([str(number % people) for number in range(count)])
    logits = np.stack([true * temperature for temperature in temperatures]).astype(np.float32)
    return Scored({}, truth, who, np.ones((count, 2), np.bool_)), logits


def test_the_temperature_of_each_subset_is_found() -> None:
    people, logits = made((1.0, 3.0, 0.4))
    confidence = calibrate.fit(NAMES, people, [logits, logits], 0.02)
    assert confidence.temperature == pytest.approx({"acc+gyro": 1.0, "acc": 3.0, "gyro": 0.4}, rel=0.06)
    measured = calibrate.measure(NAMES, people, logits, confidence, True)
    assert measured.ece_uncalibrated["acc"] > 0.1 and measured.ece_uncalibrated["gyro"] > 0.1
    assert all(error < 0.03 for error in measured.ece.values())


def test_the_threshold_costs_no_more_right_decisions_than_allowed() -> None:
    people, logits = made((1.0, 1.0, 1.0))
    assert calibrate.fit(NAMES, people, [logits], 0.0).unknown_below == 0.0
    confidence = calibrate.fit(NAMES, people, [logits], 0.1)
    shares = calibrate.probabilities(logits[0], confidence.temperature["acc+gyro"])
    right = shares.argmax(axis=1) == people.truth
    below = shares.max(axis=1) < confidence.unknown_below
    assert 0.09 < below[right].mean() <= 0.1 < below[~right].mean()
    assert calibrate.measure(NAMES, people, logits, confidence, False).unknown["acc"] == pytest.approx(below.mean())


def test_windows_without_the_subset_do_not_count() -> None:
    people, logits = made((1.0, 2.0, 1.0))
    people.present[::2, 0] = False  # acc
    logits[:2, ::2] = 50.0 * np.eye(3, dtype=np.float32)[(people.truth[::2] + 1) % 3]  # sure, and wrong
    confidence = calibrate.fit(NAMES, people, [logits], 0.0)
    assert confidence.temperature == pytest.approx({"acc+gyro": 1.0, "acc": 2.0, "gyro": 1.0}, rel=0.1)
    people.present[:, 0] = False
    assert calibrate.fit(NAMES, people, [logits], 0.0).temperature["acc"] == 1.0
    assert set(calibrate.measure(NAMES, people, logits, confidence, True).ece) == {"gyro"}


def test_the_error_on_the_people_of_the_fit_is_not_flattered() -> None:
    people, logits = made((1.0, 1.0, 1.0), count=400, people=2)
    logits[:, people.people == "0"] *= 4  # one person's logits are far too sure
    confidence = calibrate.fit(NAMES, people, [logits], 0.0)
    fair = calibrate.measure(NAMES, people, logits, confidence, True)
    flattered = calibrate.measure(NAMES, people, logits, confidence, False)
    assert fair.ece["acc"] > flattered.ece["acc"] + 0.02


def test_logits_that_are_never_wrong_have_a_temperature_too() -> None:
    truth = np.array([0, 1, 2])
    assert calibrate.fit_temperature(np.eye(3, dtype=np.float32), truth) == pytest.approx(calibrate.RANGE[0], rel=0.01)
    assert Confidence({"acc": calibrate.fit_temperature(np.zeros((3, 3), np.float32), truth)}).temperature["acc"] > 0


def test_the_bank_has_windows_of_all_labels_and_people() -> None:
    people, _ = made((1.0, 1.0, 1.0), count=3000)
    people.present[::3, 1] = False
    tokens = {name: np.arange(3000, dtype=np.float32)[:, None] + place / 2 for place, name in enumerate(NAMES)}
    rows = bank(people, tokens)
    assert rows.shape == (3 * BANK_PER_LABEL, 2) and np.array_equal(rows[:, 1], rows[:, 0] + 0.5)
    chosen = rows[:, 0].astype(int)
    assert people.present[chosen].all() and len(set(chosen)) == len(chosen)
    assert np.unique(people.truth[chosen], return_counts=True)[1].tolist() == [BANK_PER_LABEL] * 3
    for label in range(3):  # from the first to the last of the label's windows, and of every person
        mine = chosen[people.truth[chosen] == label]
        assert mine[0] < 100 and mine[-1] > 2900 and set(people.people[mine]) == set("0123")
    people.present[:, 1] = False
    assert bank(people, tokens).shape == (0, 2)
