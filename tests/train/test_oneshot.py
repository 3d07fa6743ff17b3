"""The one-shot table on HAPT, in seconds: what is held out, and that it resumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from armlet_runtime.errors import RecipeError, RunError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Recording
from armlet_train.data import NO_LABEL, load_corpus
from armlet_train.evaluation.bench_one_shot import HAND, ROWS, _few, _load_shared, _shared, run, tables
from armlet_train.evaluation.grid import PARTS
from armlet_train.fewshot import episodes
from armlet_train.models import build_model
from armlet_train.recipes import find_recipe, load_recipe

CPU = torch.device("cpu")
RECIPE = load_recipe(find_recipe("hapt-mumae-tiny"))


def test_no_training_window_touches_a_held_out_label(recordings: list[Recording]) -> None:
    assert recordings  # HAPT is in the cache
    corpus = load_corpus(RECIPE.data, "train")
    everything = msgspec.structs.replace(RECIPE.data, labels=RECIPE.data.hold_out, hold_out=())
    transitions = load_corpus(everything, "train")
    starts = corpus.draw(5000, False, np.random.default_rng(0))
    for at in range(0, corpus.length, 16):
        assert (transitions.labels_of(starts + at) == NO_LABEL).all()
    # And there are some that would have been touched.
    free = transitions.draw(5000, False, np.random.default_rng(0))
    assert (transitions.labels_of(free + corpus.length // 2) != NO_LABEL).any()


def test_spliced_classes_are_of_one_person_and_not_the_unseen_ones(recordings: list[Recording]) -> None:
    assert recordings
    corpus = load_corpus(RECIPE.data, "train")
    still = ("sitting", "standing", "lying")
    pool = episodes.Pool(corpus, still)
    labels = corpus.labels
    spliced = {(labels[a], labels[b]) for a, b in pool.classes if a != b}
    assert len(pool.classes) == 6 + 24 == 6 + len(spliced)
    assert not any(a in still and b in still for a, b in spliced) and ("walking", "lying") in spliced
    drawn = pool.examples(2, np.random.default_rng(0))
    for starts, side in ((drawn.first, 0), (drawn.second, 1)):
        assert (corpus.people_of(starts) == drawn.people).all()
        assert (corpus.labels_of(starts) == np.array([pool.classes[number][side] for number in drawn.truth])).all()
    alike = pool.alike(50, 3, np.random.default_rng(1))
    assert (corpus.labels_of(alike.ravel()).reshape(50, 3) == corpus.labels_of(alike[:, 0])[:, None]).all()
    assert all(len(set(row)) == 3 for row in corpus.people_of(alike.ravel()).reshape(50, 3))


@pytest.mark.full("trains several models")
@pytest.mark.long(limit_s=300, reason="trains several models")
def test_quick_table_resumes(recordings: list[Recording], tmp_path: Path) -> None:
    assert recordings
    said: list[int] = []

    def advance(done: int, total: int) -> None:
        assert 0 <= done <= total == PARTS * len(ROWS)
        said.append(done)

    report = run(tmp_path, True, CPU, advance, split="validation")
    assert set(report.examples) == set(RECIPE.data.hold_out)
    assert report.people == ("7", "15", "22", "28") and report.ways == 5 and report.shots == 1
    assert [row.name for row in report.rows] == [HAND, *ROWS]
    for row in report.rows:
        # Chance is 0.20, and these seconds of training tell more than that: three intervals above it.
        assert 0.20 + 3 * row.interval < row.accuracy < 0.95 and 0.005 < row.interval < 0.03
        assert set(row.people) == set(report.people)
    assert said == sorted(said) and said[-1] == PARTS * len(ROWS)
    assert len(said) > 2 * len(ROWS)

    # What is done is not done again; a row that was lost is, with the same figures.
    said.clear()
    rows = sorted(tmp_path.glob("validation-*.json"))
    rows[0].unlink()
    shutil.rmtree(tmp_path / "checkpoints")
    assert run(tmp_path, True, CPU, advance, split="validation") == report
    assert len(said) < 3 * len(ROWS)
    ((title, columns, lines),) = tables(report)
    assert "5-way 1-shot" in title and [len(line) for line in lines] == [len(columns)] * len(report.rows)


def test_recipe_without_fewshot_is_one_sentence() -> None:
    with pytest.raises(RecipeError, match="no \\[fewshot\\]"):
        _few(load_recipe(find_recipe("hapt")))


def test_weights_that_lack_a_part_are_refused(tmp_path: Path) -> None:
    lengths = {name: round(50 * RECIPE.data.window_s) for name in ("acc", "gyro")}
    modalities = [Modality(name, ("x", "y", "z"), "1", 50.0) for name in ("acc", "gyro")]
    model = build_model(RECIPE.model, modalities, lengths, 6)
    kept = _shared(model)
    torch.save(kept, tmp_path / "whole.pt")
    _load_shared(model, tmp_path / "whole.pt")
    del kept["encoders.acc.embed.weight"]
    torch.save(kept, tmp_path / "part.pt")
    with pytest.raises(RunError, match=r"part.pt .*encoders.acc.embed.weight"):
        _load_shared(model, tmp_path / "part.pt")
