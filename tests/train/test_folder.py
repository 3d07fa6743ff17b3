"""Data sets of one's own: the page that describes the format, and every mistake in its owner's terms."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armlet_runtime.errors import DataError
from armlet_runtime.formats.recordings import export_recording
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Label, Recording, Stream
from armlet_runtime.signals.recording_writer import write_recording
from armlet_train.data import load_corpus
from armlet_train.data.user_folder import check, open_folder, summary_lines
from armlet_train.recipes import DataRecipe

PAGE = (Path(__file__).parents[2] / "train" / "DATA.md").read_text()


def example(root: Path) -> Path:
    """The page's worked example."""
    for name, content in re.findall(r"```(?:toml|csv) (\S+)\n(.*?)```", PAGE, re.DOTALL):
        file = root / "study" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root / "study"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return example(tmp_path)


def test_commands_of_the_page(study: Path) -> None:
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 3
    said = []
    for command in commands:
        arguments = [sys.executable, "-m", "armlet_runtime", *command.split()[1:]]
        done = subprocess.run(arguments, cwd=study.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    assert "3 recordings of 3 people, no mistake" in said[0]
    assert "cleo" in said[1] and "walk" in said[1]
    assert "study.store: 3 recordings" in said[2]


def test_example_is_read_as_the_page_says(study: Path) -> None:
    recipe = DataRecipe(str(study), ("acc", "hr"), ("rest", "walk"), 1.0, 0.2, 0.2)
    corpus = load_corpus(recipe, "train")
    assert corpus.lengths == {"acc": 5, "hr": 1}
    starts = corpus.starts(labelled=True, every=1)
    np.testing.assert_array_equal(corpus.labels_of(starts), [0, 1])
    windows = corpus.windows(starts)
    np.testing.assert_allclose(windows["acc"][0][2], [1.00, 1.01, 0.99, 1.00, 1.00])
    # The row at 1.2 s was lost: 4 of 5 samples are there, and the earlier neighbour is held.
    np.testing.assert_allclose(windows["acc"][1][0], [0.21, 0.21, -0.11, 0.19, -0.13])
    np.testing.assert_array_equal(corpus.present(starts)[:, 0], True)
    assert load_corpus(recipe, "validation").wearers == ["ben"]
    assert not load_corpus(recipe, "test").starts(labelled=True, every=1).size


def test_parquet_and_mcap_are_as_good_as_csv(study: Path) -> None:
    from pyarrow import csv, parquet

    recipe = DataRecipe(str(study), ("acc", "hr"), ("rest", "walk"), 1.0, 0.2, 0.2)
    before = load_corpus(recipe, "train")
    anna = study / "samples" / "anna-1"
    parquet.write_table(csv.read_csv(anna / "acc.csv"), anna / "acc.parquet")
    (anna / "acc.csv").unlink()
    parquet.write_table(csv.read_csv(study / "labels.csv"), study / "labels.parquet")
    (study / "labels.csv").unlink()
    hr = Modality("hr", ("rate",), "bpm", 1.0)
    stream = Stream(hr, np.array([100, 1100, 2100]) * 1_000_000, np.array([[61], [np.nan], [74]], np.float32))
    write_recording(anna / "hr.mcap", Recording("anna-1", "anna", streams={"hr": stream}))
    (anna / "hr.csv").unlink()
    assert check(study).mistakes == []
    after = load_corpus(recipe, "train")
    starts = before.starts(labelled=False, every=1)
    for name, windows in before.windows(starts).items():
        np.testing.assert_array_equal(after.windows(starts)[name], windows)


def test_an_exported_recording_is_a_folder_of_samples(study: Path) -> None:
    times = (np.arange(10) * 200_000_000).astype(np.int64)
    values = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    stream = Stream(Modality("acc", ("x", "y", "z"), "g", 5.0), times, values)
    recording = Recording("dora-1", "dora", {}, {"acc": stream}, [Label(0, 10**9, "rest")])
    export_recording(recording, study / "samples" / "dora-1", "csv")
    rows = (study / "samples" / "dora-1" / "labels.csv").read_text().splitlines()
    table = study / "labels.csv"
    table.write_text("\n".join([*table.read_text().splitlines(), *rows[1:]]) + "\n")
    about = study / "dataset.toml"
    about.write_text(about.read_text().replace('train = ["anna"]', 'train = ["anna", "dora"]'))
    assert check(study).mistakes == []
    _, entries = open_folder(study)
    read = next(entry for entry in entries if entry.name == "dora-1").read()
    np.testing.assert_array_equal(read.streams["acc"].values, values)
    np.testing.assert_array_equal(read.streams["acc"].times_ns, times)
    assert read.labels == recording.labels


def test_people_without_splits_are_split_by_their_names(study: Path) -> None:
    text = (study / "dataset.toml").read_text()
    (study / "dataset.toml").write_text(text[: text.index("[splits]")])
    _, entries = open_folder(study)
    assert sorted(entry.split for entry in entries) == ["test", "train", "validation"]
    again = {entry.person: entry.split for entry in open_folder(study)[1]}
    assert again == {entry.person: entry.split for entry in entries}


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(study: Path) -> None:
        text = (study / file).read_text()
        assert old in text
        (study / file).write_text(text.replace(old, new, 1))

    return change


def remove(file: str) -> Callable[[Path], None]:
    return lambda study: (study / file).unlink()


def rename(old: str, new: str) -> Callable[[Path], None]:
    def change(study: Path) -> None:
        (study / old).rename(study / new)

    return change


def add(file: str, content: str) -> Callable[[Path], None]:
    def change(study: Path) -> None:
        (study / file).parent.mkdir(parents=True, exist_ok=True)
        (study / file).write_text(content)

    return change


ACC = "samples/anna-1/acc.csv"
MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no description": (remove("dataset.toml"), "dataset.toml: is missing"),
    "no TOML": (edit("dataset.toml", '"study"', '"study'), "dataset.toml, row 1: is not TOML"),
    "unknown key": (
        edit("dataset.toml", "rate_hz = 5.0", "rate = 5.0"),
        "dataset.toml, column modalities.acc.rate: no such key; did you mean 'rate_hz'?",
    ),
    "missing key": (edit("dataset.toml", 'unit = "g"\n', ""), "dataset.toml, column modalities.acc.unit: is missing"),
    "wrong type": (
        edit("dataset.toml", "rate_hz = 5.0", 'rate_hz = "5"'),
        "dataset.toml, column modalities.acc.rate_hz: Expected `float`, got `str`",
    ),
    "no rate": (
        edit("dataset.toml", "rate_hz = 5.0", "rate_hz = 0.0"),
        "dataset.toml, column modalities.acc.rate_hz: a rate is above 0 Hz, not 0",
    ),
    "channel twice": (
        edit("dataset.toml", '"x", "y", "z"', '"x", "y", "y"'),
        "dataset.toml, column modalities.acc.channels: needs at least one channel, and no channel twice",
    ),
    "wrong rate": (
        edit("dataset.toml", "rate_hz = 5.0", "rate_hz = 50.0"),
        f"{ACC}, column time_s: samples come at 5 Hz; dataset.toml says 50 Hz for 'acc'",
    ),
    "person in no split": (
        edit("dataset.toml", 'test = ["cleo"]', 'test = ["clea"]'),
        "dataset.toml, column splits: person cleo of the table is in no split",
    ),
    "person in two splits": (
        edit("dataset.toml", 'test = ["cleo"]', 'test = ["cleo", "anna"]'),
        "dataset.toml, column splits.test: person anna is in 'train' too",
    ),
    "modality nobody has": (
        edit("dataset.toml", "[splits]", '[modalities.ecg]\nchannels = ["a"]\nunit = "mV"\nrate_hz = 9.0\n[splits]'),
        "dataset.toml, column modalities.ecg: no recording has a file of this modality",
    ),
    "no table": (remove("labels.csv"), "labels.csv: is missing; it has the columns recording, person"),
    "table lacks a column": (
        edit("labels.csv", "start_s", "start"),
        "labels.csv, column start_s: is missing ('start' may be meant)",
    ),
    "no person": (edit("labels.csv", "ben-1,ben", "ben-1,"), "labels.csv, row 4, column person: is empty"),
    "start is no number": (
        edit("labels.csv", "1.0,2.0", "1s,2.0"),
        "labels.csv, row 3, column start_s: '1s' is not a number",
    ),
    "label without an end": (
        edit("labels.csv", "1.0,2.0,walk", "1.0,,walk"),
        "labels.csv, row 3, column end_s: 'walk' needs a start and an end",
    ),
    "ends before it starts": (
        edit("labels.csv", "1.0,2.0,walk", "1.8,1.1,walk"),
        "labels.csv, row 3, column end_s: a label ends after it starts, at 0 or later (1.8 to 1.1)",
    ),
    "labels overlap": (
        edit("labels.csv", "0,1.0,rest", "0,1.5,rest"),
        "labels.csv, row 3, column start_s: begins before 'rest' of row 2 ends, at 1.5 s",
    ),
    "label outside": (
        edit("labels.csv", "ben-1,ben,0,2.0", "ben-1,ben,0,20"),
        "labels.csv, row 4, column end_s: 'rest' (0 to 20 s) is outside the samples of ben-1 (0 to 1.8 s)",
    ),
    "recording of two people": (
        edit("labels.csv", "anna-1,anna,1.0", "anna-1,ben,1.0"),
        "labels.csv, row 3, column person: recording anna-1 is of person anna in row 2, and of ben here",
    ),
    "row too short": (edit("labels.csv", ",walk", ""), "labels.csv, row 3: has 4 columns; the first line has 5"),
    "recording without samples": (
        edit("labels.csv", "ben-1,ben", "ben-2,ben"),
        "samples/ben-2: the table names this recording, but it has no file of samples",
    ),
    "samples without a row": (
        edit("labels.csv", "ben-1,ben", "ben-2,ben"),
        "samples/ben-1: no row of the table names this recording; did the table mean it by 'ben-2'?",
    ),
    "unknown modality": (
        add("samples/anna-1/ac.csv", "time_s,x\n"),
        "samples/anna-1/ac.csv: is not MODALITY.csv or MODALITY.parquet or MODALITY.mcap of dataset.toml; "
        "did you mean 'acc'?",
    ),
    "two files": (
        add("samples/anna-1/acc.parquet", "no"),
        "samples/anna-1/acc.parquet: 'acc' has another file here; remove one of them",
    ),
    "no time": (edit(ACC, "time_s", "time"), f"{ACC}, column time_s: is missing ('time' may be meant)"),
    "channel missing": (edit(ACC, "x,y,z", "x,y,w"), f"{ACC}, column z: is missing"),
    "strange channel": (edit(ACC, "x,y,z", "x,y,w"), f"{ACC}, column w: is no channel of dataset.toml"),
    "decimal comma": (edit(ACC, "0.21", '"0,21"'), f"{ACC}, row 7, column x: '0,21' is not a number"),
    "infinite": (edit(ACC, "0.21", "1e999"), f"{ACC}, row 7, column x: inf is infinite, or too large"),
    "sample without a time": (edit(ACC, "1.0,", ","), f"{ACC}, row 7, column time_s: a sample needs a time"),
    "time before 0": (edit(ACC, "0.0,", "-1.0,"), f"{ACC}, row 2, column time_s: times count from 0"),
    "time falls": (
        edit(ACC, "1.4,", "0.4,"),
        f"{ACC}, row 8, column time_s: 0.4 s is not later than the time in the row before",
    ),
    "empty": (edit(ACC, (PAGE.split(f"{ACC}\n")[1].split("```")[0]).split("\n", 1)[1], ""), f"{ACC}: has no row"),
    "not a Parquet file": (
        rename(ACC, "samples/anna-1/acc.parquet"),
        "samples/anna-1/acc.parquet: cannot be read as a table",
    ),
    "not an MCAP file": (
        rename(ACC, "samples/anna-1/acc.mcap"),
        "samples/anna-1/acc.mcap: is not an MCAP file",
    ),
}


@pytest.mark.parametrize(("change", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_named_in_its_owners_terms(change: Callable[[Path], None], said: str, study: Path) -> None:
    change(study)
    found = [str(mistake) for mistake in check(study).mistakes]
    assert any(one.startswith(said) for one in found), found
    assert len(found) <= 4


def test_every_mistake_is_found_at_once(study: Path) -> None:
    for name in ("labels overlap", "no person", "time falls", "decimal comma", "person in no split"):
        MISTAKES[name][0](study)
    found = "\n".join(map(str, check(study).mistakes))
    for place in ("row 3, column start_s", "row 4, column person", "row 8, column time_s", "row 7, column x", "splits"):
        assert place in found
    out = study.parent / "report.json"
    command = [sys.executable, "-m", "armlet_runtime", "data", "check", str(study), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{len(found.splitlines())} mistakes" in done.stdout
    assert len(json.loads(out.read_text())["mistakes"]) == len(found.splitlines())


def test_many_mistakes_are_counted_not_listed(study: Path) -> None:
    rows = [f"{0.2 * i:.1f},a,b,1" for i in range(1000)]
    (study / ACC).write_text("\n".join(["time_s,x,y,z", *rows]) + "\n")
    found = check(study).mistakes
    assert [str(one) for one in found if one.column == "x"][-1] == f"{ACC}, column x: the same in 997 more rows"
    assert len(found) == 8
    cut = check(study, limit=3)
    assert (len(cut.mistakes), cut.more) == (3, 5)
    assert list(summary_lines(cut))[-2:] == [
        "... and 5 more: correct these first, then check again",
        f"{study}: 3 recordings of 3 people, 8 mistakes",
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_are_mistakes_not_a_crash(study: Path, drawn: st.DataObject) -> None:
    file = study / drawn.draw(st.sampled_from(["dataset.toml", "labels.csv", ACC, "samples/anna-1/hr.csv"]))
    good = file.read_bytes()
    content = bytearray(good)
    for _ in range(drawn.draw(st.integers(1, 5))):
        at = drawn.draw(st.integers(0, len(content)))
        content[at : at + drawn.draw(st.integers(0, 3))] = drawn.draw(st.binary(max_size=4))
    file.write_bytes(content)
    try:
        for line in summary_lines(check(study)):
            assert line
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize("name", ["no description", "labels overlap", "decimal comma", "wrong rate", "missing key"])
def test_training_refuses_what_check_would_find(name: str, study: Path) -> None:
    MISTAKES[name][0](study)
    recipe = DataRecipe(str(study), ("acc",), ("rest", "walk"), 1.0, 0.2, 0.2)
    if name == "labels overlap":  # is found by check only: the later label holds
        assert check(study).mistakes
        return
    with pytest.raises(DataError, match=f"armlet data check {study}"):
        load_corpus(recipe, "train")
