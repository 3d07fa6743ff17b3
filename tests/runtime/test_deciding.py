"""From logits to decisions: temperatures, the threshold for ``unknown``, and what bundles may say of them."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from armlet_runtime.bundle.manifest import UNKNOWN, Confidence, HiddenMarkov, Majority, Manifest
from armlet_runtime.bundle.manifest_file import decode_manifest, encode_manifest
from armlet_runtime.errors import SchemaError, UsageError
from armlet_runtime.live.core import LiveCore
from armlet_runtime.metrics import expected_calibration_error
from armlet_runtime.model.calibration import Decider, softmax
from armlet_runtime.model.policy import Policy

from .test_live import CountingModel, both, feed, loaded, model  # noqa: F401

SHARP = {"acc+gyro": 0.5, "acc": 1.0, "gyro": 4.0}


def with_confidence(manifest: Manifest, confidence: Confidence | None) -> Manifest:
    return msgspec.structs.replace(manifest, confidence=confidence)


def test_each_subset_has_its_temperature(model: CountingModel) -> None:  # noqa: F811
    decider = Decider(with_confidence(model.manifest, Confidence(SHARP)))
    logits = [0.2, 1.4, -0.3, 0.9]
    for subset, temperature in SHARP.items():
        powers = np.exp(np.array(logits) / temperature)
        verdict = decider.decide(subset, logits, ())
        assert verdict.label == "sitting"
        assert np.allclose(verdict.scores, powers / powers.sum(), atol=1e-12)
    assert softmax([1e4, -1e4, 0.0], 0.1) == (1.0, 0.0, 0.0)


def test_below_the_threshold_it_is_unknown_and_the_user_has_the_last_word(model: CountingModel) -> None:  # noqa: F811
    manifest = with_confidence(model.manifest, Confidence(dict.fromkeys(SHARP, 1.0), 0.6))
    highest = max(softmax([0.2, 1.4, -0.3, 0.9]))
    assert 0.4 < highest < 0.6
    assert Decider(manifest).decide("acc", [0.2, 1.4, -0.3, 0.9], ()).label == UNKNOWN
    assert Decider(manifest).decide("acc", [0.2, 4.4, -0.3, 0.9], ()).label == "sitting"
    assert Decider(manifest, Policy(unknown_below=0.0)).decide("acc", [0.2, 1.4, -0.3, 0.9], ()).label == "sitting"
    assert Decider(manifest, Policy(unknown_below=1.0)).decide("acc", [0.2, 4.4, -0.3, 0.9], ()).label == UNKNOWN
    # A bundle of an earlier schema: the plain softmax, and nothing is unknown.
    assert Decider(with_confidence(manifest, None)).decide("acc", [0.0, 1e-9, 0.0, 0.0], ()).label == "sitting"
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(UsageError, match="a probability lies between 0 and 1"):
            Decider(manifest, Policy(unknown_below=wrong))
    named = msgspec.structs.replace(manifest, confidence=None, labels=("unknown", "b", "c", "d"))
    assert Decider(named).decide("acc", [3.0, 0.0, 0.0, 0.0], ()).label == UNKNOWN
    with pytest.raises(UsageError, match="has a class 'unknown' of its own"):
        Decider(named, Policy(unknown_below=0.5))


def test_the_live_loop_says_unknown(model: CountingModel) -> None:  # noqa: F811
    sure, unsure = feed(LiveCore(model), both(4.0)), feed(LiveCore(model, policy=Policy(unknown_below=1.0)), both(4.0))
    assert {decision.label for decision in unsure} == {UNKNOWN} and UNKNOWN not in {d.label for d in sure}
    assert [d.scores for d in unsure] == [d.scores for d in sure] and all(d.reason is None for d in unsure)


def test_a_manifest_must_not_contradict_itself(model: CountingModel) -> None:  # noqa: F811
    good = with_confidence(model.manifest, Confidence(SHARP, 0.5))
    assert decode_manifest(encode_manifest(good)) == good
    old = msgspec.json.decode(encode_manifest(msgspec.structs.replace(good, schema=2)))
    del old["confidence"]
    assert decode_manifest(msgspec.json.encode(old)).confidence is None
    for confidence, says in [
        (Confidence({"acc": 1.0}), "temperatures are not of its subsets"),
        (Confidence({**SHARP, "acc": 0.0}), "a temperature must be positive"),
        (Confidence(SHARP, 1.5), "unknown_below is a probability"),
    ]:
        with pytest.raises(SchemaError, match=says):
            decode_manifest(encode_manifest(with_confidence(good, confidence)))
    with pytest.raises(SchemaError, match="the label 'unknown' is that of decisions below"):
        decode_manifest(encode_manifest(msgspec.structs.replace(good, labels=("unknown", "b", "c", "d"))))


def test_expected_calibration_error() -> None:
    # Ten decisions at 0.8 of which eight are right, ten at 0.6 of which all are: (0 * 10 + 0.4 * 10) / 20.
    shares = np.array([[0.8, 0.2]] * 10 + [[0.6, 0.4]] * 10)
    truth = np.array([0] * 8 + [1] * 2 + [0] * 10)
    assert expected_calibration_error(shares, truth) == pytest.approx(0.2)
    assert expected_calibration_error([[0.0, 1.0]], [1]) == 0.0
    assert math.isnan(expected_calibration_error(np.zeros((0, 2)), []))


def test_a_majority_of_the_last_windows(model: CountingModel) -> None:  # noqa: F811
    manifest = msgspec.structs.replace(model.manifest, smoothing=Majority(3))
    decider = Decider(manifest, Policy(unknown_below=0.6))

    def verdict(place: int | None) -> tuple[str, str]:
        logits = [0.0] * 4
        if place is not None:
            logits[place] = 9.0
        one = decider.decide("acc", logits, ())
        return one.raw_label, one.label

    assert verdict(0) == ("lying", "lying")
    assert verdict(1) == ("sitting", "sitting")  # one vote each: the newest
    assert verdict(0) == ("lying", "lying")
    assert verdict(3) == ("walking", "walking")
    assert verdict(0) == ("lying", "lying")
    assert verdict(None) == (UNKNOWN, UNKNOWN)  # walking, lying, unknown
    assert verdict(None) == (UNKNOWN, UNKNOWN)
    assert verdict(2) == ("standing", UNKNOWN)
    decider.skip()
    decider.skip()
    assert verdict(3) == ("walking", "walking")  # of what is two windows ago or longer nothing is left


STAY = 0.97


def markov(evidence: float) -> HiddenMarkov:
    rows = tuple(tuple(STAY if one == other else (1 - STAY) / 3 for one in range(4)) for other in range(4))
    return HiddenMarkov(rows, (0.25,) * 4, evidence)


def test_the_hidden_markov_filter_is_that_of_the_textbook(model: CountingModel) -> None:  # noqa: F811
    smoothing = markov(0.5)
    decider = Decider(msgspec.structs.replace(model.manifest, smoothing=smoothing))
    rng = np.random.default_rng(1)
    transitions, belief, changed = np.array(smoothing.transitions), np.full(4, 0.25), 0
    for number in range(200):
        logits = rng.normal(size=4) + 1.5 * (np.arange(4) == number // 50)
        one = decider.decide("acc", logits.tolist(), ())
        belief = belief if number == 0 else belief @ transitions
        belief = belief * (np.array(one.scores) / 0.25) ** 0.5
        belief /= belief.sum()
        assert one.label == model.manifest.labels[int(belief.argmax())]
        assert one.raw_label == model.manifest.labels[int(np.argmax(one.scores))]
        changed += one.label != one.raw_label
    assert changed > 30


def test_windows_that_are_unknown_or_missing_are_no_evidence(model: CountingModel) -> None:  # noqa: F811
    decider = Decider(msgspec.structs.replace(model.manifest, smoothing=markov(1.0)), Policy(unknown_below=0.6))
    for _ in range(20):
        decider.decide("acc", [0.0, 9.0, 0.0, 0.0], ())
    decider.skip()
    labels = [decider.decide("acc", [0.0] * 4, ()) for _ in range(40)]
    assert {one.raw_label for one in labels} == {UNKNOWN}
    known = [one.label for one in labels].index(UNKNOWN)
    assert 5 < known < 30 and {one.label for one in labels[:known]} == {"sitting"}  # 0.97 to the known-th is about 0.6
    assert {one.label for one in labels[known:]} == {UNKNOWN}


def test_smoothing_does_not_look_ahead(model: CountingModel) -> None:  # noqa: F811
    manifest = msgspec.structs.replace(model.manifest, smoothing=markov(0.3))
    rows = np.random.default_rng(2).normal(size=(60, 4)).tolist()
    whole, part = Decider(manifest), Decider(manifest)
    until = [whole.decide("acc", row, ()) for row in rows][:30]
    assert until == [part.decide("acc", row, ()) for row in rows[:30]]


def test_a_smoothing_must_fit_its_labels(model: CountingModel) -> None:  # noqa: F811
    good = msgspec.structs.replace(model.manifest, smoothing=markov(0.25))
    assert decode_manifest(encode_manifest(good)) == good
    for smoothing, says in [
        (Majority(0), "a majority is of 1 to 1000 windows"),
        (HiddenMarkov(markov(1.0).transitions[:3], (0.25,) * 4, 1.0), "a row of transitions for each label"),
        (HiddenMarkov(markov(1.0).transitions, (0.5,) * 4, 1.0), "positive and add up to 1"),
        (markov(1.5), "evidence must be above 0 and at most 1"),
    ]:
        with pytest.raises(SchemaError, match=says):
            decode_manifest(encode_manifest(msgspec.structs.replace(good, smoothing=smoothing)))
