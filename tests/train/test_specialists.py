"""The table of all 31 subsets, on made data: its path, and that it says what it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from armlet_runtime.metrics import macro_f1
from armlet_train.data import Scored
from armlet_train.evaluation import bench_specialists
from armlet_train.evaluation.bench_specialists import MadeReport, Row
from armlet_train.evaluation.tables import tables


@pytest.mark.full("trains 32 models")
@pytest.mark.long(limit_s=300, reason="trains 32 models")
def test_made_suite_shows_all_31_subsets_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("neurokit2")
    out = tmp_path / "made.json"
    command = [sys.executable, "-m", "armlet_runtime", "evaluate", "--suite", "made", "--quick"]
    command += ["--out", str(tmp_path / "suite"), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MADE data" in done.stdout
    report = json.loads(out.read_text())
    assert "MADE data" in report["data"] and report["quick"]
    subsets = [row["subset"] for row in report["rows"]]
    assert len(set(subsets)) == 31
    assert (subsets[0], subsets[-1]) == ("ecg+ppg+rsp+eda+acc", "acc")
    # Each of 32 trainings left figures of its own: macro-F1 above nothing, and not one number copied along.
    for name in ("one", "specialist"):
        values = [row[name] for row in report["rows"]]
        assert all(0 < value < 1 for value in values) and len(set(values)) > 4, name
    # Who lacks a modality of a subset lacks it in every larger one.
    windows = {frozenset(row["subset"].split("+")): row["windows"] for row in report["rows"]}
    assert all(windows[large] <= windows[small] for large in windows for small in windows if small < large)
    # Begun again, it trains nothing, and says the same.
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0
    assert json.loads(out.read_text())["rows"] == report["rows"]
    assert json.loads(out.read_text())["seconds"] < report["seconds"]


def test_table_compares_each_subset_with_its_specialist() -> None:
    rows = [Row("a+b", 10, 0.9, 0.8), Row("a", 12, 0.5, 0.6)]
    table = tables(MadeReport("made", False, "MADE data: nobody", "made", 3, 1000, 1.0, rows))[0]
    assert table.title.startswith("MADE data")
    assert table.rows[0] == ["a+b", "10", "0.900", "0.800", "+0.100"]
    assert table.rows[-1] == ["mean of 2", "", "0.700", "0.700", "+0.000"]


def test_a_class_that_no_test_person_has_counts_as_in_every_other_figure() -> None:
    scored = Scored({}, np.array([0, 1, 1]), np.array(["1", "1", "2"]), np.ones((3, 1), np.bool_))
    predicted = np.array([0, 1, 2])
    # Of class 2 there is a wrong decision and no window: it counts with 0, as on the board.
    assert bench_specialists._score(scored, ["a"], ("a",), predicted, 3) == macro_f1(scored.truth, predicted, 3)
