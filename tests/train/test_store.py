"""Prepared corpora: the same windows as in memory, from files that a killed preparation never half-counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from armlet_runtime.errors import DataError, UsageError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Label, Recording, Stream
from armlet_train.data import arrow_store, join_recordings, load_corpus
from armlet_train.data.datasets.base import DataSet, Entry
from armlet_train.recipes import DataRecipe

ROOT = Path(__file__).parents[2]

ECG = Modality("ecg", ("lead",), "mV", 100.0)
ACC = Modality("acc", ("x", "y", "z"), "g", 25.0)
RECIPE = DataRecipe("made by hand", ("ecg", "acc"), ("rest", "walk"), 2.0, 1.0, 0.5)
SPLITS = ("train", "train", "validation", "test")


def made(number: int, slow: float = 0.0, gap_s: float = 1.5) -> Recording:
    """A recording with a gap; every third has no ecg."""
    time.sleep(slow)
    rng = np.random.default_rng(number)
    streams = {}
    for modality in (ECG, ACC):
        count = round((20 + number) * modality.rate_hz)
        times = np.rint(np.arange(count) / modality.rate_hz * 1e9).astype(np.int64)
        keep = (times < 5_000_000_000) | (times > (5 + gap_s) * 1e9)
        values = rng.standard_normal((count, len(modality.channels))).astype(np.float32)
        if modality is ACC or number % 3:
            streams[modality.name] = Stream(modality, times[keep], values[keep])
    labels = [Label(0, 9_000_000_000, "rest"), Label(9_000_000_000, 19_000_000_000, "walk")]
    return Recording(f"r{number}", f"p{number}", {}, streams, labels)


def made_set(count: int, slow: float = 0.0) -> tuple[DataSet, list[Entry]]:
    entries = [Entry(f"r{i}", f"p{i}", SPLITS[i % 4], partial(made, i, slow)) for i in range(count)]
    return DataSet("hand", "made by hand", (ECG, ACC), ("rest", "walk"), lambda _: entries), entries


def prepared(count: int, folder: Path, slow: float = 0.0, workers: int = 1) -> list[tuple[int, int]]:
    said: list[tuple[int, int]] = []
    arrow_store.prepare(*made_set(count, slow), folder, workers, lambda done, total: said.append((done, total)))
    return said


def files_of(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_windows_are_those_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_store, "MOST_SHARDS", 5)
    said = prepared(12, tmp_path / "store", workers=2)
    assert said[0] == (0, 4) and said[-1] == (4, 4)
    mapped = load_corpus(DataRecipe(str(tmp_path / "store"), *_rest(RECIPE)), "train")
    memory = join_recordings([made(i) for i in range(12) if SPLITS[i % 4] == "train"], RECIPE)
    assert (mapped.in_memory, memory.in_memory) == (False, True)
    assert mapped.wearers == memory.wearers
    assert mapped.normalisation() == memory.normalisation()
    for labelled in (False, True):
        starts = memory.starts(labelled, every=7)
        np.testing.assert_array_equal(mapped.starts(labelled, every=7), starts)
        np.testing.assert_array_equal(mapped.present(starts), memory.present(starts))
        np.testing.assert_array_equal(mapped.labels_of(starts), memory.labels_of(starts))
        for name, windows in memory.windows(starts).items():
            np.testing.assert_array_equal(mapped.windows(starts)[name], windows)
    assert not memory.present(memory.starts(False, 7)).all()
    assert len(load_corpus(DataRecipe(str(tmp_path / "store"), *_rest(RECIPE)), "test").pieces) == 3
    # The samples lie in the file, not in memory.
    assert not any(signal.flags.writeable or signal.flags.owndata for signal in mapped.pieces[1].signals.values())


def _rest(recipe: DataRecipe) -> tuple[tuple[str, ...], tuple[str, ...], float, float, float]:
    return recipe.modalities, recipe.labels, recipe.window_s, recipe.stride_s, recipe.hop_s


def test_starts_are_counted_without_being_listed() -> None:
    corpus = join_recordings([made(i, gap_s=0.5) for i in range(5)], RECIPE)
    for every in (1, 7, 50, 199, 5000):
        for labelled in (False, True):
            assert corpus.count(labelled, every) == len(corpus.starts(labelled, every))


KILLED = """
import sys
from pathlib import Path
from tests.train.test_store import prepared
prepared(12, Path(sys.argv[1]), slow=0.2, workers=2)
"""


def test_killed_preparation_goes_on_and_half_written_shards_never_count(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    command = [sys.executable, "-c", KILLED, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("shard-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)  # its workers, too
    process.wait()
    done = {name: at for name, at in files_of(folder).items() if (folder / f"{name.split('.')[0]}.json").exists()}
    shards = {name.split(".")[0] for name in done if name.startswith("shard")}
    assert 3 <= len(shards) < 12
    with pytest.raises(DataError, match=r"is not whole: \d+ of 12 shards are missing; start the same .* again"):
        load_corpus(DataRecipe(str(folder), *_rest(RECIPE)), "train")
    # What a kill in the middle of a file leaves.
    half = next(n for n in range(12) if f"shard-{n:05d}" not in shards)
    (folder / f"shard-{half:05d}.acc.arrow").write_bytes(b"ARROW1\0\0half")

    said = prepared(12, folder)
    assert said[0] == (len(shards), 12)
    now = files_of(folder)
    assert {name: now[name] for name in done} == done  # what was done was not done again
    corpus = load_corpus(DataRecipe(str(folder), *_rest(RECIPE)), "train")
    memory = join_recordings([made(i) for i in range(12) if SPLITS[i % 4] == "train"], RECIPE)
    starts = memory.starts(False, 31)
    for name, windows in memory.windows(starts).items():
        np.testing.assert_array_equal(corpus.windows(starts)[name], windows)
    assert prepared(12, folder) == [(12, 12)]


def test_what_cannot_be_a_store_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty and holds no prepared data"):
        prepared(4, tmp_path / "other")
    prepared(4, tmp_path / "store")
    with pytest.raises(UsageError, match="was prepared from other data"):
        prepared(5, tmp_path / "store")
    recipe = DataRecipe(str(tmp_path / "store"), *_rest(RECIPE))
    file = tmp_path / "store" / "shard-00000.acc.arrow"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(DataError, match="bytes and should have"):
        load_corpus(recipe, "train")
    file.write_bytes(b"x" * len(whole))
    with pytest.raises(DataError, match="cannot be read"):
        load_corpus(recipe, "train")
    (tmp_path / "store" / "shard-00000.json").write_text("{")
    with pytest.raises(DataError, match=r"shard-00000\.json cannot be read"):
        load_corpus(recipe, "train")
    (tmp_path / "store" / "store.json").write_text("[]")
    with pytest.raises(DataError, match=r"store\.json cannot be read"):
        load_corpus(recipe, "train")


def broken() -> Recording:
    raise DataError("r9 is damaged")


def test_recording_that_cannot_be_read_stops_preparation_and_keeps_the_rest(tmp_path: Path) -> None:
    data_set, entries = made_set(3)
    bad = [*entries[:2], Entry("r2", "p2", "validation", broken)]
    with pytest.raises(DataError, match="r9 is damaged"):
        arrow_store.prepare(data_set, bad, tmp_path / "store", 1, lambda done, total: None)
    assert len(list((tmp_path / "store").glob("shard-*.json"))) == 2
    arrow_store.prepare(data_set, entries, tmp_path / "store", 1, lambda done, total: None)
    assert len(list((tmp_path / "store").glob("shard-*.json"))) == 3
