"""The suites: hand features, probes, tables, and the whole path in small."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from armlet_runtime.cli import main
from armlet_runtime.errors import DataError, UsageError
from armlet_runtime.machine import describe
from armlet_runtime.signals.recording import Recording
from armlet_train.commands import evaluate as command
from armlet_train.data import Scored
from armlet_train.evaluation import hand_features as handcrafted
from armlet_train.evaluation import tables
from armlet_train.evaluation.bench_masking import VARIANTS, MaskingReport, Row
from armlet_train.evaluation.scores import People, Standardised, few_label, score_subset, standardise

WINDOWS = {"acc": np.zeros((2, 3, 128), np.float32)}


def test_hand_features_say_what_they_are_named_after() -> None:
    at = np.arange(128) / 50
    wave = np.stack([np.sin(2 * np.pi * 2 * at), -np.sin(2 * np.pi * 2 * at), np.full(128, 0.5)]).astype(np.float32)
    row = handcrafted.hand_features({"acc": wave[None]})[0]
    assert len(row) == 3 * (1 + 1 + handcrafted.BANDS + 1 + 1 + 1) + 3
    np.testing.assert_allclose(row[:3], [wave[0].mean(), wave[1].mean(), 0.5], atol=1e-6)
    bands = row[6:30].reshape(3, handcrafted.BANDS)
    assert bands[0].argmax() == 1  # 2 Hz lies in the band from 1.95 to 3.1 Hz
    assert bands[2].max() == pytest.approx(np.log(1e-2), abs=1e-3)  # a constant has no spectrum
    assert row[-3] == pytest.approx(-1, abs=1e-5)  # x and y are opposite
    assert row[-2] == pytest.approx(0, abs=1e-3)


def separable(count: int, seed: int) -> Scored:
    """Windows of three labels whose mean tells them apart, of four people."""
    draw = np.random.default_rng(seed)
    truth = np.arange(count) % 3
    windows = {"acc": (truth[:, None, None] + 0.1 * draw.standard_normal((count, 1, 8))).astype(np.float32)}
    return Scored(windows, truth, draw.integers(0, 4, count).astype(str), np.ones((count, 1), np.bool_))


def test_probe_learns_from_training_people_alone() -> None:
    people = People(separable(300, 0), separable(90, 1), separable(60, 2))

    def features(windows: Scored, subset: tuple[str, ...]) -> np.ndarray:
        return np.asarray(windows.windows["acc"].mean(axis=2))

    made = standardise(features, people, ("acc",))
    assert made.mean == pytest.approx(features(people.unlabelled, ("acc",)).mean(axis=0))
    few = few_label(made, people.labelled.truth, people.scored.truth, ("a", "b", "c"), seeds=3)
    assert [one.k for one in few] == [1, 5, 10, 20]
    assert few[-1].macro_f1 == 1.0
    # Whoever else is scored beside a person changes nothing for that person: there is no transduction.
    first = Scored(*(part[:10] if isinstance(part, np.ndarray) else {"acc": part["acc"][:10]} for part in (
        people.scored.windows, people.scored.truth, people.scored.people, people.scored.present)))  # type: ignore[arg-type]  # fmt: skip
    alone = standardise(features, people._replace(scored=first), ("acc",))
    np.testing.assert_array_equal(alone.scored, made.scored[:10])


def test_subset_scores_by_person() -> None:
    scored = separable(12, 3)
    wrong = scored.truth.copy()
    wrong[scored.people == "0"] = (wrong[scored.people == "0"] + 1) % 3
    score = score_subset(("acc",), wrong, scored, ("a", "b", "c"))
    assert score.people["0"] == 0 and {value for person, value in score.people.items() if person != "0"} == {1.0}
    assert np.sum(score.confusion) == 12


def masking_report() -> MaskingReport:
    rows = [Row(VARIANTS[0], 0.5, {"acc+gyro": 0.9, "acc": 0.8, "gyro": 0.7}), Row(VARIANTS[-1], 0.4, {})]
    return MaskingReport("masking", False, "validation", "hapt", 4, 10, rows, describe())


def test_tables_go_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- suite masking -->\nold\n<!-- end -->\nafter <!-- end -->\n")
    tables.insert(page, masking_report())
    once = page.read_text()
    assert once.startswith("before\n<!-- suite masking -->\n") and once.endswith("<!-- end -->\nafter <!-- end -->\n")
    assert "| vicreg | spatial | 0.5 | zero | 0.500 | 0.900 | 0.800 | 0.700 |" in once
    assert "| cocoa | - | - | - | 0.400 | - | - | - |" in once
    assert "old" not in once
    tables.insert(page, masking_report())
    assert page.read_text() == once
    page.write_text("nothing")
    with pytest.raises(UsageError, match="<!-- suite masking -->"):
        tables.insert(page, masking_report())


def test_names_of_subsets_are_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    name = "phone_acc+phone_gyro+watch_acc+watch_gyro"
    rows = [Row(VARIANTS[0], 0.5, {name: 0.9, "phone_acc+phone_gyro+watch_acc": 0.8})]
    tables.show(MaskingReport("masking", False, "validation", "hapt", 4, 10, rows, describe()), Console(width=80))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown and sum(shown.count(letter) for letter in "_") == name.count("_") + 3


@pytest.mark.full("trains eight models")
@pytest.mark.long(limit_s=300, reason="trains eight models")
def test_suite_of_methods(recordings: list[Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pretraining, fine-tuning, specialists and probes of the supervised baseline, for real, and a second start."""
    assert recordings  # HAPT is in the cache
    folder, out = tmp_path / "suite", tmp_path / "figures.json"
    words = ["evaluate", "--suite", "hapt", "--quick", "--methods", "supervised", "--split", "validation"]
    assert main([*words, "--out", str(folder), "--json", str(out)]) == 0
    assert "fine-tuning " in capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures["quick"] and figures["windows"] == 1296
    hand, supervised = figures["methods"]
    assert hand["method"] == "hand features" and 0.9 < hand["probe"][0]["macro_f1"] < 1
    assert [one["k"] for one in hand["few_label"]] == [1, 5, 10, 20]
    for rows in (supervised["finetuned"], supervised["specialists"], supervised["probe"]):
        assert [row["subset"] for row in rows] == ["acc+gyro", "acc", "gyro"]
        assert all(set(row["people"]) == {"7", "15", "22", "28"} for row in rows)
        assert all(0.3 < row["macro_f1"] < 1 for row in rows)
    # Six models' figures: a specialist is a model of its own, that of all modalities as well.
    assert len({row["macro_f1"] for row in supervised["finetuned"] + supervised["specialists"]}) == 6

    # A second start trains nothing and says the same.
    assert main([*words, "--out", str(folder), "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "pretraining " not in shown and "fine-tuning " not in shown
    assert json.loads(out.read_text())["methods"] == figures["methods"]


@pytest.mark.full("trains eight models")
@pytest.mark.long(limit_s=300, reason="trains eight models")
def test_suite_of_masks(recordings: list[Recording], tmp_path: Path) -> None:
    assert recordings  # HAPT is in the cache
    out = tmp_path / "masking.json"
    words = ["evaluate", "--suite", "masking", "--quick", "--out", str(tmp_path), "--json", str(out)]
    assert main(words) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["variant"]["objective"] for row in rows] == ["vicreg", "cocoa"]
    vicreg, cocoa = rows
    assert list(vicreg["embedding"]) == ["acc+gyro", "acc", "gyro"]
    assert all(0.2 < value < 1 for value in (vicreg["few_label"], cocoa["few_label"], vicreg["embedding"]["acc+gyro"]))
    assert cocoa["embedding"] == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give a run's folder or a bundle, or --suite"),
        (["--suite", "hapt", "--methods", "crosl"], "the suite has no method 'crosl'; it has crossl"),
        (["runs", "--suite", "hapt"], "--suite trains its own models"),
        (["--suite", "hapt", "--seeds", "0"], "--seeds must be at least 1"),
    ],
)
def test_mistake_is_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *words]) == 2
    assert said in capsys.readouterr().err


def test_probe_with_more_labels_than_there_are_says_of_which_class() -> None:
    made = Standardised(*(np.zeros((8, 2), np.float32),) * 2, *(np.zeros(2, np.float32),) * 2)
    truth = np.array([0] * 5 + [1] * 3)
    with pytest.raises(DataError, match="3 windows of 'running', and a probe with 5 labelled windows"):
        few_label(made, truth, truth, ("resting", "running"), ks=(5,))


def test_people_who_test_are_scored_only_when_asked_for() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert parser.parse_args(["model.armlet"]).split == "validation"
