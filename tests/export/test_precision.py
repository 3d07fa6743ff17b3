"""Which precision each part is lowered in, and what is told of programs."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from armlet_export.backends.base import PRECISIONS, Part
from armlet_export.choose_precision import choose, part_of, resolve
from armlet_export.commands import export
from armlet_export.explain import delegated_when_loaded, explain_bundle, explain_run, lines, table
from armlet_export.pipeline import Trained
from armlet_export.proof.gate import compare, interval
from armlet_export.proof.reference import Reference
from armlet_runtime.bundle.container import open_bundle
from armlet_runtime.bundle.trust import Trust
from armlet_runtime.errors import ExportError, UsageError
from armlet_train.data import Scored
from armlet_train.engine.finetune import all_logits
from armlet_train.models.base import ArmletModel

from .conftest import Exported

PARTS = ("acc", "gyro", "aggregator")


def test_the_recipe_s_table_and_the_command_line() -> None:
    assert resolve({}, PARTS, None) == dict.fromkeys(PARTS, "int8")
    assert resolve({"gyro": "fp16"}, PARTS, None) == {"acc": "int8", "gyro": "fp16", "aggregator": "int8"}
    assert resolve({"gyro": "fp16"}, PARTS, "fp32") == dict.fromkeys(PARTS, "fp32")
    assert resolve({}, PARTS, "auto") == dict.fromkeys(PARTS, "auto")
    with pytest.raises(ExportError, match="names 'mag'; the model has acc, gyro, aggregator"):
        resolve({"mag": "int8"}, PARTS, None)
    with pytest.raises(ExportError, match="no precision 'int4'; choose int8, dynamic, fp16, fp32 or auto"):
        resolve({}, PARTS, "int4")


def test_the_simulated_model_is_the_trained_one(material: Trained, student: ArmletModel) -> None:
    def made(kinds: Mapping[str, str]) -> np.ndarray:
        parts = {
            name: part_of(material.model, student, material.description, name, kind) for name, kind in kinds.items()
        }
        return Reference(material.model, material.validation).simulated_logits(parts)

    floats = all_logits(material.model, material.validation.windows)
    np.testing.assert_array_equal(made(dict.fromkeys(PARTS, "fp32")), floats)
    np.testing.assert_array_equal(made(dict.fromkeys(PARTS, "int8")), all_logits(student, material.validation.windows))
    half = np.abs(made(dict.fromkeys(PARTS, "fp16")) - floats).max()
    assert 0 < half < 0.02
    dynamic = np.abs(made({"aggregator": "dynamic"}) - floats).max()
    assert half < dynamic < 0.5


class _Broken(torch.nn.Module):
    """A rounding so coarse that it costs decisions."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.module(values)
        return torch.zeros_like(result)


class _Coarse(Part):
    def reference(self) -> torch.nn.Module:
        return self.module if self.precision == "fp32" else _Broken(self.module)


def test_auto_takes_the_smallest_that_loses_little(material: Trained, student: ArmletModel) -> None:
    def make(name: str, kind: str) -> Part:
        return part_of(material.model, student, material.description, name, kind)

    def coarse_gyro(name: str, kind: str) -> Part:
        part = make(name, kind)
        return _Coarse(part.module, part.signature, kind, part.prepared) if name == "gyro" else part

    def found(make_part: object, bound: float, impossible: str = "") -> dict[str, str]:
        return choose(
            make_part, PARTS, Reference(material.model, material.validation), bound,  # type: ignore[arg-type]
            lambda name, kind: "no kernel" if kind == impossible else None,
        )  # fmt: skip

    assert found(make, 0.02) == dict.fromkeys(PARTS, "int8")
    assert found(coarse_gyro, 0.02) == {"acc": "int8", "gyro": "fp32", "aggregator": "int8"}
    assert found(coarse_gyro, 0.02, impossible="fp16") == {"acc": "int8", "gyro": "fp32", "aggregator": "int8"}
    assert found(coarse_gyro, 1.0) == dict.fromkeys(PARTS, "int8")
    assert PRECISIONS == ("int8", "dynamic", "fp16", "fp32")


def test_the_interval_is_over_people() -> None:
    truth = np.array([0, 1] * 30)
    people = np.repeat(["1", "2", "3"], 20)
    wrong = np.where(people == "3", 1 - truth, truth)
    low, high = interval(truth, wrong, people, 2)
    assert (low, high) == interval(truth, wrong, people, 2)  # the same every time
    assert low < 0.1 and high == 1.0  # one of three people may be drawn thrice, or never
    assert interval(truth, truth, people, 2) == (1.0, 1.0)


def test_windows_without_a_modality_do_not_count_for_it() -> None:
    scored = Scored(
        windows={},
        truth=np.array([0, 1, 0, 1]),
        people=np.array(["1", "1", "2", "2"]),
        present=np.array([[True, True], [True, False], [True, False], [True, True]]),
    )
    right = np.eye(2, dtype=np.float32)[scored.truth]
    logits = np.stack([right, right, right[::-1]])
    rows = {row.subset: row for row in compare("litert", "int8", ["acc", "gyro"], scored, logits, logits, logits)}
    assert rows["acc"].macro_f1 == rows["acc+gyro"].macro_f1 == 1.0
    assert rows["gyro"].macro_f1 == 0.0  # on the first and the last window only
    absent = dataclasses.replace(scored, present=np.array([[True, False]] * 4))
    assert [row.subset for row in compare("litert", "int8", ["acc", "gyro"], absent, logits, logits, logits)] == ["acc"]


def test_explain_tells_of_a_bundle(exported: Exported) -> None:
    bundle = open_bundle(exported.bundle, Trust((exported.key.public_key(),)))
    reports = explain_bundle(bundle)
    assert [(report.engine, report.part, report.bytes) for report in reports] == [
        (report.engine, report.part, report.bytes) for report in exported.report.programs
    ]
    assert all(report.int8_weight_share == 1.0 for report in reports)
    assert {report.part: report.operations for report in reports if report.engine == "executorch"} == {
        report.part: report.operations for report in reports if report.engine == "litert"
    }
    assert delegated_when_loaded(bundle) == dict.fromkeys(PARTS, "1 delegate")
    told = lines(reports)
    assert told[1].startswith("litert acc: ") and "2 CONV_2D" in told[1] and len(told) == 10
    assert len(table(reports).rows) == 9


def test_explain_tells_of_a_run_before_it_is_trained(material: Trained, exported: Exported) -> None:
    steps: list[None] = []
    reports = explain_run(material, ["executorch"], lambda: steps.append(None))
    finished = {report.part: report for report in exported.report.programs if report.engine == "executorch"}
    for report in reports:
        same = finished[report.part]
        assert (report.operators, report.operations, report.bytes) == (same.operators, same.operations, same.bytes)
    assert len(steps) == len(reports) == 3


def test_the_command_wants_a_bundle_to_write_or_explain(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    with pytest.raises(UsageError, match="--out, or --explain"):
        export.run(parser.parse_args([str(tmp_path)]))
    with pytest.raises(UsageError, match="leave out --out"):
        export.run(parser.parse_args([str(tmp_path), "--out", "x.armlet", "--explain"]))
