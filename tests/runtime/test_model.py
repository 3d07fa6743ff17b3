"""The model of a bundle on each engine, its golden run, and the proof in a fresh process."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from armlet_runtime.bundle.bundle_writer import write_bundle
from armlet_runtime.bundle.manifest import EnginePrograms, Manifest, ProgramRef
from armlet_runtime.bundle.manifest_file import encode_manifest, named_members
from armlet_runtime.checks.export_proof import Draft, ProofReport
from armlet_runtime.errors import BundleError, DataError, EngineError, ExtraMemberError
from armlet_runtime.install import check_command
from armlet_runtime.model.bundle_model import BundleModel, choose_engine, load_array, programs_of
from armlet_runtime.model.golden_run import golden_windows, run_golden, run_subsets

ENGINES = ("litert", "executorch", "onnx")
FLOAT_CLOSE = 1e-5


@pytest.fixture
def draft(small_draft: Path) -> Draft:
    return Draft(small_draft)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_decision_is_the_parts_put_together(small_bundle: Any, engine: str) -> None:
    model = BundleModel.from_bundle(small_bundle.open(), engine)
    assert model.engine.name == engine
    random = np.random.default_rng(1)
    windows = {name: random.standard_normal((3, 50)).astype(np.float32) for name in ("acc", "gyro")}
    logits, embedding = model.predict(windows)
    assert logits.shape == (4,) and embedding.shape == (12,)
    tokens = {name: model.encode(name, window) for name, window in windows.items()}
    again, _ = model.aggregate(dict(reversed(tokens.items())))
    np.testing.assert_array_equal(logits, again)

    normalisation = model.manifest.normalisation["acc"]
    np.testing.assert_array_equal(tokens["acc"], model.encode_normalised("acc", normalisation.apply(windows["acc"])))
    # A missing modality is its mask token, and that is another decision than with it.
    alone, _ = model.predict({"acc": windows["acc"]})
    masked, _ = model.aggregate({"acc": tokens["acc"], "gyro": model.mask_tokens["gyro"]})
    np.testing.assert_array_equal(alone, masked)
    assert np.abs(alone - logits).max() > 0.01
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.predict(windows)


def test_engines_agree(small_bundle: Any) -> None:
    bundle = small_bundle.open()
    windows = golden_windows(bundle.manifest, bundle.read)
    results = [run_subsets(BundleModel.from_bundle(bundle, engine), windows) for engine in ENGINES]
    for logits, embeddings in results[1:]:
        np.testing.assert_allclose(logits, results[0][0], atol=FLOAT_CLOSE)
        np.testing.assert_allclose(embeddings, results[0][1], atol=FLOAT_CLOSE)


def test_the_first_usable_engine_is_chosen_and_said(draft: Draft) -> None:
    assert BundleModel(draft.manifest, draft.read).engine.name == "litert"
    programs = draft.manifest.engines
    reordered = msgspec.structs.replace(
        draft.manifest, engines={"tensorrt": programs["onnx"], "onnx": programs["onnx"], "litert": programs["litert"]}
    )
    assert choose_engine(reordered) == "onnx"
    nothing = msgspec.structs.replace(draft.manifest, engines={"tensorrt": programs["onnx"]})
    with pytest.raises(EngineError, match=r"none of the bundle's engines .*tensorrt: unknown to this armlet"):
        BundleModel(nothing, draft.read)


def test_a_named_engine_is_never_replaced(draft: Draft) -> None:
    only = msgspec.structs.replace(draft.manifest, engines={"litert": draft.manifest.engines["litert"]})
    with pytest.raises(EngineError, match="no programs for the engine 'onnx'; it has litert"):
        BundleModel(only, draft.read, "onnx")
    assert programs_of(only, "tflite") == ("litert", only.engines["litert"])


def test_wrong_windows_and_tokens_are_refused(draft: Draft) -> None:
    model = BundleModel(draft.manifest, draft.read, "litert")
    with pytest.raises(DataError, match="no modality 'ecg'; it has acc, gyro"):
        model.encode("ecg", np.zeros((3, 50), np.float32))
    with pytest.raises(DataError, match=r"shape \(3, 50\), not \(3, 49\)"):
        model.encode("acc", np.zeros((3, 49), np.float32))
    with pytest.raises(DataError, match="needs tokens of some of acc, gyro"):
        model.predict({})
    with pytest.raises(DataError, match=r"token must have the shape \(16,\), not \(15,\) \(acc\)"):
        model.aggregate({"acc": np.zeros(15, np.float32)})
    with pytest.raises(DataError, match="needs tokens of some of"):
        model.aggregate({"ecg": np.zeros(16, np.float32)})


def test_a_program_that_does_not_load_is_named(draft: Draft) -> None:
    def read(member: str) -> bytes:
        return b"nonsense" * 20 if member == "programs/gyro.pte" else draft.read(member)

    with pytest.raises(EngineError, match=r"'programs/gyro\.pte' on executorch: .*does not load"):
        BundleModel(draft.manifest, read, "executorch")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not an .npy array"),
        (b"\x93NUMPY", "is not an .npy array"),
        (npy(np.zeros((2, 16))), r"must be float32 \(2, 16\), and is float64"),
        (npy(np.zeros((2, 15), np.float32)), r"and is float32 \(2, 15\)"),
        (npy(np.zeros((2, 16, 1), np.float32)), r"and is float32 \(2, 16, 1\)"),
        (npy(np.array([[object()]], object)), r"must be float32 \(2, 16\), and is object"),
    ],
)
def test_arrays_are_read_with_suspicion(data: bytes, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        load_array(data, "m", (2, 16))


def test_prototypes_score_by_distance(draft: Draft) -> None:
    prototypes = np.random.default_rng(3).standard_normal((4, 12)).astype(np.float32)
    manifest = msgspec.structs.replace(draft.manifest, prototypes="prototypes.npy")

    def read(member: str) -> bytes:
        return npy(prototypes) if member == "prototypes.npy" else draft.read(member)

    model = BundleModel(manifest, read, "litert")
    logits, embedding = model.predict({"acc": np.ones((3, 50), np.float32)})
    expected = [-float(((row - embedding) ** 2).sum()) for row in prototypes]
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_golden_run_passes_where_it_was_made(small_bundle: Any, engine: str) -> None:
    bundle = small_bundle.open()
    result = run_golden(BundleModel.from_bundle(bundle, engine), bundle.read)
    assert result.passed and result.max_difference == 0.0
    assert (result.engine, result.precision, result.windows, result.tolerance) == (engine, "fp32", 5, 1e-4)


def as_int8(manifest: Manifest) -> Manifest:
    def mark(ref: ProgramRef) -> ProgramRef:
        return msgspec.structs.replace(ref, precision="int8")

    return msgspec.structs.replace(
        manifest,
        engines={
            name: EnginePrograms({m: mark(ref) for m, ref in programs.encoders.items()}, mark(programs.aggregator))
            for name, programs in manifest.engines.items()
        },
    )


@pytest.mark.parametrize(("change", "fp32_passes"), [(5e-5, True), (1e-3, False), (np.nan, False)])
def test_the_golden_run_sees_another_result(draft: Draft, change: float, fp32_passes: bool) -> None:
    stored = np.load(io.BytesIO(draft.read("golden/litert.npy")))
    stored[1, 2, 3] += np.float32(change)

    def read(member: str) -> bytes:
        return npy(stored) if member == "golden/litert.npy" else draft.read(member)

    assert run_golden(BundleModel(draft.manifest, read, "litert"), read).passed is fp32_passes
    int8 = run_golden(BundleModel(as_int8(draft.manifest), read, "litert"), read)
    assert int8.tolerance == 0 and not int8.passed
    other_engine = run_golden(BundleModel(draft.manifest, read, "onnx"), read)
    assert other_engine.passed  # each engine is compared with its own


def run_prove(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(check_command("export_proof", *arguments), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("engine", ENGINES)
def test_prove_runs_a_draft_and_a_bundle(small_draft: Path, small_bundle: Any, engine: str, tmp_path: Path) -> None:
    stored = np.load(small_draft / "golden" / f"{engine}.npy")
    for source, extra in ((small_draft, []), (small_bundle.path, ["--key", small_bundle.public_key_path])):
        done = run_prove(source, small_draft / "input.npz", tmp_path / "o.npz", "--engine", engine, *extra)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        with np.load(tmp_path / "o.npz") as output:
            np.testing.assert_array_equal(output["logits"], stored)
            assert output["embeddings"].shape == (3, 5, 12)
            report = msgspec.json.decode(str(output["report"]), type=ProofReport)
        assert (report.engine, report.windows, report.subsets) == (engine, 5, ("acc+gyro", "acc", "gyro"))
        assert 5e6 < report.resident_bytes < 200e6


def test_prove_says_in_one_sentence_what_is_wrong(small_draft: Path, small_bundle: Any, tmp_path: Path) -> None:
    out = tmp_path / "o.npz"
    other = tmp_path / "other.npz"
    np.savez(other, acc=np.zeros((2, 3, 50), np.float32), gyro=np.zeros((1, 3, 50), np.float32))
    (tmp_path / "text.npz").write_text("no zip")
    broken = tmp_path / "broken"
    shutil.copytree(small_draft, broken)
    (broken / "programs" / "acc.tflite").unlink()
    (tmp_path / "empty").mkdir()
    good = small_draft / "input.npz"
    for arguments, words in (
        ((tmp_path / "empty", good, out), "has no member 'manifest.json'"),
        ((broken, good, out), "has no member 'programs/acc.tflite'"),
        ((small_draft, tmp_path / "none.npz", out), "cannot read windows"),
        ((small_draft, tmp_path / "text.npz", out), "cannot read windows"),
        ((small_draft, other, out), "as many windows of each of acc, gyro"),
        ((small_bundle.path, good, out), "not trusted here"),
    ):
        done = run_prove(*arguments, "--engine", "litert")
        assert done.returncode == 2
        assert words in done.stderr and "Traceback" not in done.stderr
        assert not out.exists()


def test_prove_with_torch_in_the_process_proves_nothing(small_draft: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import types, sys\nsys.modules['torch'] = types.ModuleType('torch')\n")
    code = (
        "import sys, runpy; sys.path.insert(0, sys.argv.pop(1)); import sitecustomize, importlib\n"
        "importlib.reload(sitecustomize); runpy.run_module('armlet_runtime.checks', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "export_proof", str(small_draft), str(small_draft / "input.npz"),
         str(tmp_path / "o.npz"), "--engine", "onnx"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "torch was imported" in done.stderr
    assert not (tmp_path / "o.npz").exists()


def test_a_draft_becomes_a_bundle_of_what_its_manifest_names(
    small_draft: Path, small_bundle: Any, tmp_path: Path
) -> None:
    draft = Draft(small_draft)
    members = {name: draft.read(name) for name in named_members(draft.manifest)}
    digest = write_bundle(tmp_path / "b.armlet", draft.manifest, members, [small_bundle.key])
    assert digest == small_bundle.open().digest
    assert encode_manifest(small_bundle.open().manifest) == draft.read("manifest.json")
    with pytest.raises(ExtraMemberError, match="'NOTICE', which its manifest does not name"):
        write_bundle(tmp_path / "b.armlet", draft.manifest, members | {"NOTICE": b"more"}, [small_bundle.key])
