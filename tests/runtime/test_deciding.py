"""From logits to decisions: temperatures, the threshold for ``unknown``, and what bundles may say of them."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from armlet_runtime.deciding import Decider, softmax
from armlet_runtime.errors import SchemaError, UsageError
from armlet_runtime.live import LiveCore
from armlet_runtime.manifest import UNKNOWN, Confidence, Manifest, decode_manifest, encode_manifest
from armlet_runtime.metrics import expected_calibration_error

from .test_live import CountingModel, both, feed, loaded, model  # noqa: F401

SHARP = {"acc+gyro": 0.5, "acc": 1.0, "gyro": 4.0}


def with_confidence(manifest: Manifest, confidence: Confidence | None) -> Manifest:
    return msgspec.structs.replace(manifest, confidence=confidence)


def test_each_subset_has_its_temperature(model: CountingModel) -> None:  # noqa: F811
    decider = Decider(with_confidence(model.manifest, Confidence(SHARP)))
    logits = [0.2, 1.4, -0.3, 0.9]
    for subset, temperature in SHARP.items():
        powers = np.exp(np.array(logits) / temperature)
        verdict = decider.decide(subset, logits)
        assert verdict.label == "sitting"
        assert np.allclose(verdict.scores, powers / powers.sum(), atol=1e-12)
    assert softmax([1e4, -1e4, 0.0], 0.1) == (1.0, 0.0, 0.0)


def test_below_the_threshold_it_is_unknown_and_the_user_has_the_last_word(model: CountingModel) -> None:  # noqa: F811
    manifest = with_confidence(model.manifest, Confidence(dict.fromkeys(SHARP, 1.0), 0.6))
    highest = max(softmax([0.2, 1.4, -0.3, 0.9]))
    assert 0.4 < highest < 0.6
    assert Decider(manifest).decide("acc", [0.2, 1.4, -0.3, 0.9]).label == UNKNOWN
    assert Decider(manifest).decide("acc", [0.2, 4.4, -0.3, 0.9]).label == "sitting"
    assert Decider(manifest, 0.0).decide("acc", [0.2, 1.4, -0.3, 0.9]).label == "sitting"
    assert Decider(manifest, 1.0).decide("acc", [0.2, 4.4, -0.3, 0.9]).label == UNKNOWN
    # A bundle of an earlier schema: the plain softmax, and nothing is unknown.
    assert Decider(with_confidence(manifest, None)).decide("acc", [0.0, 1e-9, 0.0, 0.0]).label == "sitting"
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(UsageError, match="a probability lies between 0 and 1"):
            Decider(manifest, wrong)
    named = msgspec.structs.replace(manifest, confidence=None, labels=("unknown", "b", "c", "d"))
    assert Decider(named).decide("acc", [3.0, 0.0, 0.0, 0.0]).label == UNKNOWN
    with pytest.raises(UsageError, match="has a class 'unknown' of its own"):
        Decider(named, 0.5)


def test_the_live_loop_says_unknown(model: CountingModel) -> None:  # noqa: F811
    sure, unsure = feed(LiveCore(model), both(4.0)), feed(LiveCore(model, unknown_below=1.0), both(4.0))
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
