"""The whole way to a bundle, and what must stop it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from armlet_export.pipeline import Trained, export_model
from armlet_export.pipeline.proven import golden_places
from armlet_export.pipeline.report import engines_agree
from armlet_export.proof.gate import GateRow, check, compare, run_engine
from armlet_export.tool_log import output_to_log
from armlet_runtime.bundle.certificate import Certificate
from armlet_runtime.bundle.container import Bundle, open_bundle
from armlet_runtime.bundle.trust import Trust
from armlet_runtime.errors import ExportError, RunError
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.golden_run import run_golden
from armlet_train.engine.finetune import all_logits
from armlet_train.models.base import ArmletModel

if TYPE_CHECKING:
    from .conftest import Exported, Recorder

ENGINES = ("litert", "executorch", "onnx")


@pytest.fixture(scope="module")
def bundle(exported: Exported) -> Bundle:
    return open_bundle(exported.bundle, Trust((exported.key.public_key(),)))


def test_the_bundle_holds_all_engines_in_order(bundle: Bundle, exported: Exported) -> None:
    assert tuple(bundle.manifest.engines) == ENGINES
    assert bundle.digest == exported.report.digest
    assert bundle.manifest.made_with["torch"].startswith("2.")
    assert {report.engine for report in exported.report.proofs} == set(ENGINES)
    for program in exported.report.programs:
        assert len(bundle.read(program.member)) == program.bytes
        assert program.precision == "int8" and program.int8_weight_share == 1.0 and program.outside == {}
        assert program.operations > 0 and program.live_bytes > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_golden_runs_pass(bundle: Bundle, engine: str) -> None:
    model = BundleModel.from_bundle(bundle, engine)
    result = run_golden(model, bundle.read)
    model.close()
    assert result.passed and result.windows == 6
    assert result.precision == "int8" and result.failed == ()
    # Integer from end to end, bit for bit anywhere; ONNX Runtime makes its integer kernels when it loads.
    assert (result.tolerance == 0.0) is (engine != "onnx")


def test_the_certificate_has_every_subset_on_every_engine(bundle: Bundle, exported: Exported) -> None:
    found = msgspec.json.decode(bundle.read(bundle.manifest.certificate), type=Certificate)
    assert found == exported.report.certificate
    assert found.data == "made validation" and found.people == ("3", "10")
    assert [(row.engine, row.subset) for row in found.rows] == [
        (engine, subset) for engine in ENGINES for subset in ("acc+gyro", "acc", "gyro")
    ]
    for row in found.rows:
        assert row.macro_f1_pytorch > 0.8
        assert row.max_distance <= 1.0 and row.agreement >= 0.97
        assert row.macro_f1_low is not None and row.macro_f1_high is not None
        assert row.macro_f1_low <= row.macro_f1 <= row.macro_f1_high
        assert row.quantised_agreement is not None and row.quantised_agreement >= 0.98
        assert row.quantised_cosine is not None and row.quantised_cosine > 0.999
        # Calibrated by leaving each person out; made people are alike, so what the others say fits.
        assert row.ece is not None and row.ece_uncalibrated is not None and 0 <= row.ece <= 0.1
        assert row.unknown is not None and row.unknown < 0.2
    assert found.interval == "95 % bootstrap over people, 1000 draws"
    assert found.calibration == "15 bins; each person's windows with the temperature fitted on the other people"
    confidence = bundle.manifest.confidence
    assert confidence is not None and set(confidence.temperature) == {"acc+gyro", "acc", "gyro"}
    assert confidence.unknown_below > 0  # the material allows for some
    assert {"torch", "executorch", "litert here"} <= found.versions.keys()


def test_the_certificate_has_every_program_against_its_own_module(exported: Exported) -> None:
    rows = exported.report.certificate.programs
    assert [(row.engine, row.part) for row in rows] == [
        (engine, part) for engine in ENGINES for part in ("acc", "gyro", "aggregator")
    ]
    for row in rows:
        assert row.precision == "int8" and row.cosine > 0.999
        assert (row.agreement is not None) is (row.part == "aggregator")
        assert row.agreement is None or row.agreement >= 0.99


def test_both_integer_engines_decide_alike(exported: Exported) -> None:
    rows = {(row.engine, row.subset): row for row in exported.report.gate}
    for subset in ("acc+gyro", "acc", "gyro"):
        assert rows["litert", subset].macro_f1 == pytest.approx(rows["executorch", subset].macro_f1, abs=0.01)


def test_engines_agree_with_each_other(exported: Exported) -> None:
    assert set(exported.report.engines_agree) == {"litert, executorch", "litert, onnx", "executorch, onnx"}
    assert min(exported.report.engines_agree.values()) >= 0.995
    logits = np.zeros((2, 4, 3), np.float32)
    other = logits.copy()
    other[1, 0, 2] = 1.0
    assert engines_agree({"a": logits, "b": other}) == {"a, b": 0.75}


def test_the_bill_of_materials(bundle: Bundle, exported: Exported) -> None:
    bill = json.loads(bundle.read(bundle.manifest.sbom))
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.5", 1)
    assert uuid.UUID(bill["serialNumber"].removeprefix("urn:uuid:")).version == 4
    parts = {part["name"]: part for part in bill["components"]}
    assert {"torch", "executorch", "litert-torch", "ai-edge-quantizer", "onnx", "armlet", "python"} <= set(parts)
    assert [name for name, part in parts.items() if part["type"] == "library" and not part.get("licenses")] == []
    assert parts["torch"]["version"] == bundle.manifest.made_with["torch"]
    members = {program.member for program in exported.report.programs}
    assert {name for name, part in parts.items() if part["type"] == "file"} == members
    references = {part["bom-ref"] for part in bill["components"]} | {"model"}
    assert len(references) == len(bill["components"]) + 1
    for dependency in bill["dependencies"]:
        assert {dependency["ref"], *dependency["dependsOn"]} <= references


def test_progress_is_told_to_the_end(exported: Exported) -> None:
    assert [title for title, _, _ in exported.progress.stages] == [
        "Quantisation-aware training",
        "Lower for litert",
        "Lower for executorch",
        "Lower for onnx",
        "Prove on validation people",
        "Run the finished bundle",
    ]
    assert all(done == total for _, done, total in exported.progress.stages)
    assert exported.progress.notes[0].startswith("epoch 1: loss ")


@pytest.fixture
def draft(bundle: Bundle, tmp_path: Path) -> Path:
    for member in bundle.sizes:
        path = tmp_path / "draft" / member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bundle.read(member))
    return tmp_path / "draft"


def gate(material: Trained, student: ArmletModel, exported: Exported, draft: Path, engine: str) -> list[GateRow]:
    windows = material.validation.windows
    logits = run_engine(draft, windows, engine).logits
    float_logits, quantised = all_logits(material.model, windows), all_logits(student, windows)
    rows = compare(engine, "int8", list(windows), material.validation, logits, float_logits, quantised)
    check(rows, material.qat, exported.report.logit_step)
    return rows


@pytest.mark.parametrize("engine", ["litert", "executorch"])
def test_a_program_with_changed_weights_fails_the_gate(
    material: Trained, student: ArmletModel, exported: Exported, draft: Path, engine: str
) -> None:
    assert gate(material, student, exported, draft, engine) == [
        row for row in exported.report.gate if row.engine == engine
    ]
    program = next(p for p in exported.report.programs if p.engine == engine and p.part == "aggregator")
    path = draft / program.member
    path.write_bytes(_with_changed_weights(path.read_bytes(), student))
    with pytest.raises(ExportError, match="not the model that was trained"):
        gate(material, student, exported, draft, engine)


def _with_changed_weights(data: bytes, student: ArmletModel) -> bytes:
    """One weight in eight of the aggregator's first layer negated, in the int8 bytes of the file."""
    from armlet_export.quantise.fake_quant import layer_ranges
    from armlet_export.quantise.qat import prepared_part

    graph = prepared_part(student, "aggregator")
    first = layer_ranges(graph)[0]
    assert first.weight is not None and first.weight_scale is not None
    weight = dict(graph.named_parameters())[first.weight].detach()
    stored = (weight / first.weight_scale[:, None]).round().clamp(-127, 127).to(torch.int8).numpy()
    assert data.count(stored.tobytes()) == 1
    changed = stored.copy()
    changed.flat[::8] *= -1
    return data.replace(stored.tobytes(), changed.tobytes())


def test_a_program_that_does_not_load_fails_the_gate(bundle: Bundle, draft: Path, material: Trained) -> None:
    (draft / bundle.manifest.engines["litert"].aggregator.member).write_bytes(b"no program")
    with pytest.raises(ExportError, match=r"the programs for litert failed in a process of their own: .*aggregator"):
        run_engine(draft, material.validation.windows, "litert")


def test_windows_that_are_no_numbers_fail_the_gate(bundle: Bundle, draft: Path, material: Trained) -> None:
    windows = {name: array[:2].copy() for name, array in material.validation.windows.items()}
    windows["acc"][0, 0, 0] = np.nan
    with pytest.raises(ExportError, match="no finite numbers"):
        run_engine(draft, windows, "onnx")


def test_bounds_stop_a_bundle(material: Trained, exported: Exported) -> None:
    rows = list(exported.report.gate)
    step = exported.report.logit_step
    check(rows, material.qat, step)
    worse = msgspec.structs.replace(rows[0], macro_f1=rows[0].macro_f1_pytorch - 0.03)
    with pytest.raises(ExportError, match=r"litert \(int8\), subset acc\+gyro: int8 costs 3.00 points"):
        check([worse], material.qat, step)
    other = msgspec.structs.replace(rows[0], agreement=0.9)
    with pytest.raises(ExportError, match=r"on 90\.00% of the windows"):
        check([other], material.qat, step)
    far = msgspec.structs.replace(rows[-1], precision="fp32", max_distance=float("nan"))
    with pytest.raises(ExportError, match=r"onnx \(fp32\), subset gyro: a logit differs from PyTorch by nan"):
        check([far], material.qat, step)


def test_a_failed_gate_writes_no_bundle(
    material: Trained, student: ArmletModel, work: Path, recorder: Recorder, tmp_path: Path
) -> None:
    shutil.copy(work / "qat.pt", tmp_path)
    strict = dataclasses.replace(material, qat=msgspec.structs.replace(material.qat, min_agreement=1.1))
    out = tmp_path / "out.armlet"
    with pytest.raises(ExportError, match="train longer"):
        export_model(strict, ("litert",), Ed25519PrivateKey.generate(), tmp_path, out, recorder)
    assert [path.name for path in tmp_path.iterdir()] == ["qat.pt"]


def test_an_unknown_engine_is_refused(material: Trained, recorder: Recorder, tmp_path: Path) -> None:
    out = tmp_path / "out.armlet"
    with pytest.raises(ExportError, match="no programs for tensorrt; choose of litert, executorch, onnx"):
        export_model(material, ("tensorrt",), Ed25519PrivateKey.generate(), tmp_path, out, recorder)


def test_the_command_refuses_a_folder_that_is_no_run(tmp_path: Path) -> None:
    from armlet_export.commands import export

    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    arguments = parser.parse_args([str(tmp_path), "--out", str(tmp_path / "out.armlet")])
    with pytest.raises(RunError, match="is not a run of armlet"):
        export.run(arguments)
    assert list(tmp_path.iterdir()) == []


def test_golden_windows_are_of_every_label() -> None:
    truth = np.array([2, 0, 0, 0, 2, 1, 0])
    assert truth[golden_places(truth)].tolist() == [2, 0, 0, 2, 1]


def test_nothing_in_the_bundle_names_this_machine(bundle: Bundle) -> None:
    for member in bundle.sizes:
        for secret in (str(Path.cwd()), str(Path(__file__).parent), str(Path(os.__file__).parent)):
            assert secret.encode() not in bundle.read(member), member


def test_output_of_other_processes_goes_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with output_to_log(tmp_path / "tools.log") as terminal:
        os.write(1, b"from this process\n")
        subprocess.run(["sh", "-c", "echo from a process; echo and its errors >&2"], check=True)
        print("for the user", file=terminal)
    os.write(1, b"afterwards\n")
    shown = capfd.readouterr()
    assert shown.out == "for the user\nafterwards\n" and shown.err == ""
    logged = (tmp_path / "tools.log").read_text().splitlines()
    assert sorted(logged) == ["and its errors", "from a process", "from this process"]


def test_an_error_gives_the_terminal_back_and_leaves_no_descriptor_open(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(ExportError), output_to_log(tmp_path / "tools.log"):
        os.write(1, b"a warning\n")
        raise ExportError("no program")
    with pytest.raises(FileExistsError), output_to_log(tmp_path / "tools.log" / "tools.log"):
        pass
    assert sorted(Path("/proc/self/fd").iterdir()) == before
    os.write(1, b"to the terminal\n")
    assert capfd.readouterr().out == "to the terminal\n"
    assert (tmp_path / "tools.log").read_text() == "a warning\n"
