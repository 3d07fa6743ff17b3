"""What a board does with odd inputs, with the certificate, and with a floor that the user sets."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from armlet_runtime.bundle.certificate import Certificate, CertificateRow, decode_certificate
from armlet_runtime.bundle.manifest_file import decode_manifest, encode_manifest
from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.errors import NotANumberError, SchemaError
from armlet_runtime.live.core import LiveCore
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.golden_run import ODD_INPUTS, golden_windows, odd_inputs
from armlet_runtime.model.policy import Policy
from armlet_runtime.views.lines import LineView
from armlet_runtime.views.summary_text import certified_text

from .test_live import CountingModel, both, feed, loaded, model  # noqa: F401

ENGINES = ("litert", "executorch", "onnx")
ROWS = {
    "acc+gyro": CertificateRow("acc+gyro", "litert", 0.9, 0.91, 0.1, 0.01, 0.99, macro_f1_low=0.8, macro_f1_high=0.95),
    "acc": CertificateRow("acc", "litert", 0.7, 0.71, 0.1, 0.01, 0.99),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_stands_odd_inputs(small_draft: Path, engine: str) -> None:
    draft = Draft(small_draft)
    board = BundleModel(draft.manifest, draft.read, engine)
    assert odd_inputs(board, golden_windows(draft.manifest, draft.read)) == ()


class _Careless(BundleModel):
    """Reads memory in its order whatever the strides, lets anything through, and minds the order of names."""

    def encode_normalised(self, modality: str, window: np.ndarray) -> np.ndarray:
        return np.ravel(window, order="K")[: self.manifest.token_dim].astype(np.float32)

    def aggregate(self, tokens: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[override]
        if np.abs(next(iter(tokens.values()))).max() > 1e3:
            raise NotANumberError("overflow")
        return next(iter(tokens.values())), np.zeros(1, np.float32)


def test_a_careless_model_stands_none_of_them(small_draft: Path) -> None:
    draft = Draft(small_draft)
    careless = _Careless(draft.manifest, draft.read, "litert")
    assert odd_inputs(careless, golden_windows(draft.manifest, draft.read)) == ODD_INPUTS


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_window_with_no_number_in_it_is_refused(small_draft: Path, value: float) -> None:
    draft = Draft(small_draft)
    board = BundleModel(draft.manifest, draft.read, "onnx")
    window = np.zeros((3, 50), np.float32)
    window[1, 7] = value
    with pytest.raises(NotANumberError, match="'acc' holds samples that are no finite numbers"):
        board.encode("acc", window)


def test_scores_that_are_no_numbers_are_refused(small_draft: Path) -> None:
    draft = Draft(small_draft)
    board = BundleModel(draft.manifest, draft.read, "onnx")
    with pytest.raises(NotANumberError, match="the scores of acc are no finite numbers"):
        board.aggregate({"acc": np.full(draft.manifest.token_dim, np.nan, np.float32)})


def test_no_decision_below_the_floor(model: CountingModel) -> None:  # noqa: F811
    certain = feed(LiveCore(model), both(4.0))
    refused = feed(LiveCore(model, policy=Policy(floor=0.95, certified=ROWS)), both(4.0))
    assert {decision.reason for decision in refused} == {"below floor"}
    assert [(decision.index, decision.subset, decision.coverage) for decision in refused] == [
        (decision.index, decision.subset, decision.coverage) for decision in certain
    ]
    assert all((decision.label, decision.scores, decision.embedding) == (None, (), ()) for decision in refused)
    assert feed(LiveCore(model, policy=Policy(floor=0.9, certified=ROWS)), both(4.0)) == certain
    # What the certificate does not know is not decided either.
    assert {decision.reason for decision in feed(LiveCore(model, policy=Policy(floor=0.0)), both(4.0))} == {
        "below floor"
    }


def test_the_floor_holds_for_each_subset(model: CountingModel) -> None:  # noqa: F811
    packets = [packet for packet in both(6.0) if packet.wearable == "A" or packet.arrival_ns < both(2.0)[-1].arrival_ns]
    decisions = feed(LiveCore(model, policy=Policy(floor=0.8, certified=ROWS)), packets)
    reasons = {decision.subset: decision.reason for decision in decisions}
    assert reasons[("acc", "gyro")] is None and reasons[("acc",)] == "below floor"


def test_the_certificate_of_the_subset_is_shown(
    model: CountingModel,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = LineView(Policy(certified=ROWS, certified_on="hapt validation"))
    view.decision(feed(LiveCore(model), both(3.0))[-1])
    assert "(certified macro-F1 0.90 [0.80, 0.95] on hapt validation)" in capsys.readouterr().out
    assert certified_text(None, "hapt") == "" and certified_text(ROWS["acc"], "") == "certified macro-F1 0.70"


def test_a_certificate_of_schema_1_is_read() -> None:
    old = b"""{"data": "d", "people": ["1"], "windows": 2, "rows": [{"subset": "acc", "engine": "litert",
    "macro_f1": 0.5, "macro_f1_pytorch": 0.5, "max_distance": 0, "mean_distance": 0, "agreement": 1}]}"""
    found = decode_certificate(old)
    assert found.rows[0].macro_f1_low is None and found.programs == ()
    assert decode_certificate(msgspec.json.encode(found)) == found
    for broken in (b"{}", b"\xff", old.replace(b'"windows"', b'"window"')):
        with pytest.raises(SchemaError, match="does not follow its schema"):
            decode_certificate(broken)
    assert isinstance(found, Certificate)


def test_a_manifest_of_schema_1_is_read(small_draft: Path) -> None:
    manifest = Draft(small_draft).manifest
    document = msgspec.json.decode(encode_manifest(msgspec.structs.replace(manifest, schema=1)))
    del document["golden"]["tolerance"], document["release"], document["expires"], document["boards"]
    assert decode_manifest(msgspec.json.encode(document)) == msgspec.structs.replace(manifest, schema=1)
