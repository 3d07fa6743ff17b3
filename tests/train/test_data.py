"""HAPT as it is read, split and cut."""

from __future__ import annotations

import gzip
import pickle

import numpy as np
import pytest

from armlet_runtime.errors import DataError
from armlet_runtime.recording import Label, Recording, Stream
from armlet_train import data, hapt
from armlet_train.recipes import find_recipe, load_recipe

PERIOD = 20_000_000  # ns
RECIPE = load_recipe(find_recipe("hapt")).data


def test_hapt_is_the_set_that_its_paper_describes(recordings: list[Recording]) -> None:
    assert len(recordings) == 61
    assert {recording.person for recording in recordings} == {str(person) for person in range(1, 31)}
    assert sum(len(recording.streams["acc"].times_ns) for recording in recordings) == 1_122_772
    lying = [
        np.linalg.norm(recording.streams["acc"].values[label.start_ns // PERIOD : label.end_ns // PERIOD], axis=1)
        for recording in recordings
        for label in recording.labels
        if label.name == "lying"
    ]
    assert np.mean(np.concatenate(lying)) == pytest.approx(1.007, abs=0.001)  # g: gravity is in the signal


def test_no_person_is_in_two_splits() -> None:
    people = [person for split in hapt.SPLITS.values() for person in split]
    assert len(people) == len(set(people)) == 30


@pytest.mark.parametrize(("split", "every", "labelled"), [("validation", 2215, 1296), ("test", 5053, 2874)])
def test_windows_of_a_split(recordings: list[Recording], split: str, every: int, labelled: int) -> None:
    corpus = data.join([r for r in recordings if r.person in hapt.SPLITS[split]], RECIPE)
    assert len(corpus.starts(labelled=False, every=corpus.stride)) == every
    starts = corpus.starts(labelled=True, every=corpus.stride)
    assert len(starts) == labelled
    for start in starts[::50]:  # one label and one person from end to end
        assert len(set(corpus.codes[start : start + corpus.length])) == 1
        assert len(set(corpus.ends[start : start + corpus.length])) == 1


def test_windows_are_the_samples_themselves(recordings: list[Recording]) -> None:
    one = recordings[7]
    corpus = data.join([one], RECIPE)
    windows = corpus.windows(np.array([0, 64, 100]))
    np.testing.assert_array_equal(windows["gyro"][2], one.streams["gyro"].values[100:228].T)


def test_recording_without_a_modality_is_named() -> None:
    times = np.arange(200, dtype=np.int64) * PERIOD
    one = Recording("only-acc", "1", streams={"acc": Stream(hapt.ACC, times, np.zeros((200, 3), np.float32))})
    with pytest.raises(DataError, match=r"only-acc has no modality 'gyro'.*\[data\] modalities"):
        data.join([one], RECIPE)


def test_streams_that_do_not_begin_together_are_cut_where_both_are() -> None:
    acc = Stream(hapt.ACC, np.arange(300, dtype=np.int64) * PERIOD, np.zeros((300, 3), np.float32))
    values = np.arange(300, dtype=np.float32)[:, None].repeat(3, axis=1)
    gyro = Stream(hapt.GYRO, (np.arange(300, dtype=np.int64) + 10) * PERIOD, values)
    corpus = data.join(
        [Recording("late", "1", {}, {"acc": acc, "gyro": gyro}, [Label(0, 300 * PERIOD, "walking")])], RECIPE
    )
    assert len(corpus.codes) == 290
    np.testing.assert_array_equal(corpus.signals["gyro"][:, 0], values[:290, 0])


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never be called",))


def test_pickle_that_names_anything_else_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="not on the list"):
        hapt.parse(gzip.compress(pickle.dumps({"1": [_Evil()]})))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"no", gzip.compress(b"no pickle"), gzip.compress(pickle.dumps([1]))])
def test_file_that_is_not_hapt_is_one_sentence(content: bytes) -> None:
    with pytest.raises(DataError, match="HAPT"):
        hapt.parse(content)


def test_neighbours_stay_within_reach_and_recording(recordings: list[Recording]) -> None:
    corpus = data.join(recordings[:3], RECIPE)
    starts = corpus.starts(labelled=False, every=37)
    near = corpus.neighbours(starts, 0.64, np.random.default_rng(0))
    assert np.abs(near - starts).max() <= 32
    assert len(set(near - starts)) > 50
    assert (near + corpus.length <= corpus.ends[starts]).all()
    assert (corpus.ends[near] == corpus.ends[starts]).all()
