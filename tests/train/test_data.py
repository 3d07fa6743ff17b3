"""HAPT as it is read, split and cut."""

from __future__ import annotations

import gzip
import pickle
from typing import Any

import msgspec
import numpy as np
import pytest

from armlet_runtime.bundle.manifest import Presence
from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Label, Recording, Stream
from armlet_runtime.windows import fill_gaps, resample, sample_times
from armlet_train.data import NO_LABEL, join_recordings, load_corpus
from armlet_train.data.datasets import hapt
from armlet_train.recipes import DataRecipe, find_recipe, load_recipe

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


@pytest.mark.parametrize(
    ("split", "every", "labelled"), [("train", 10185, 5847), ("validation", 2215, 1296), ("test", 5053, 2874)]
)
def test_windows_of_a_split(recordings: list[Recording], split: str, every: int, labelled: int) -> None:
    assert recordings
    corpus = load_corpus(RECIPE, split)
    assert corpus.wearers == sorted(hapt.SPLITS[split])
    assert len(corpus.starts(labelled=False, every=corpus.stride)) == every
    starts = corpus.starts(labelled=True, every=corpus.stride)
    assert len(starts) == labelled
    for ahead in (1, 63, 127):  # one label and one person from end to end
        np.testing.assert_array_equal(corpus.labels_of(starts + ahead), corpus.labels_of(starts))
        np.testing.assert_array_equal(corpus.people_of(starts + ahead), corpus.people_of(starts))


def test_draws_are_even_over_all_starts(recordings: list[Recording]) -> None:
    corpus = join_recordings(recordings[:5], RECIPE)
    for labelled in (False, True):
        starts = corpus.starts(labelled, every=1)
        drawn = corpus.draw(500, labelled, np.random.default_rng(4))
        np.testing.assert_array_equal(drawn, np.random.default_rng(4).choice(starts, 500))


def test_windows_are_the_samples_themselves(recordings: list[Recording]) -> None:
    one = recordings[7]
    corpus = join_recordings([one], RECIPE)
    windows = corpus.windows(np.array([0, 64, 100]))
    np.testing.assert_array_equal(windows["gyro"][2], one.streams["gyro"].values[100:228].T)
    assert corpus.present(np.array([0, 64])).all()


def test_neighbours_stay_within_reach_and_recording(recordings: list[Recording]) -> None:
    corpus = join_recordings(recordings[:3], RECIPE)
    starts = corpus.starts(labelled=False, every=37)
    near = corpus.neighbours(starts, 0.64, np.random.default_rng(0))
    assert np.abs(near - starts).max() <= 32
    assert len(set(near - starts)) > 50
    every = corpus.starts(labelled=False, every=1)
    assert set(near) <= set(every)
    people = corpus.people_of(near)
    np.testing.assert_array_equal(people, corpus.people_of(starts))


# Made recordings with streams of different rates, gaps and missing modalities.
ECG = Modality("ecg", ("lead",), "mV", 250.0)
TEMP = Modality("temp", ("skin",), "degC", 4.0)
SLOW = DataRecipe("made by hand", ("ecg", "acc", "temp"), ("rest", "walk"), 4.0, 2.0, 1.0)


def stream(modality: Modality, seconds: float, seed: int, first_s: float = 0.0) -> Stream:
    count = round(seconds * modality.rate_hz)
    times = np.rint((first_s + np.arange(count) / modality.rate_hz) * 1e9).astype(np.int64)
    values = np.random.default_rng(seed).standard_normal((count, len(modality.channels)))
    return Stream(modality, times, values.astype(np.float32))


def without(one: Stream, first_s: float, last_s: float) -> Stream:
    """The stream less the samples of a span, as a radio link loses them."""
    seconds = one.times_ns / 1e9
    keep = (seconds < first_s) | (seconds >= last_s)
    return Stream(one.modality, one.times_ns[keep], one.values[keep])


def body(seed: int = 0) -> dict[str, Stream]:
    return {"ecg": stream(ECG, 60, seed), "acc": stream(hapt.ACC, 60, seed + 1), "temp": stream(TEMP, 60, seed + 2)}


WHOLE = [Label(0, 30_000_000_000, "rest"), Label(30_000_000_000, 60_000_000_000, "walk")]


def test_each_modality_keeps_its_rate_and_windows_lie_on_the_common_time() -> None:
    streams = body()
    corpus = join_recordings([Recording("one", "1", {}, streams, WHOLE)], SLOW)
    assert corpus.lengths == {"ecg": 1000, "acc": 200, "temp": 16}
    assert (corpus.length, corpus.stride) == (1000, 500)  # ticks of the fastest
    starts = corpus.starts(labelled=True, every=corpus.stride)
    # Windows of 4 s every 2 s that lie in one of the two halves of 30 s.
    np.testing.assert_array_equal(starts, 500 * np.array([*range(14), *range(15, 29)]))
    np.testing.assert_array_equal(corpus.labels_of(starts), [0] * 14 + [1] * 14)
    windows = corpus.windows(starts)
    for name, rate in (("ecg", 250), ("acc", 50), ("temp", 4)):
        for number in (0, 5, 20):
            first = round(starts[number] / 250 * rate)
            np.testing.assert_array_equal(
                windows[name][number], streams[name].values[first : first + corpus.lengths[name]].T
            )


def test_windows_with_gaps_are_those_that_the_board_cuts() -> None:
    """Every window and its presence, cut from the samples as :class:`armlet_runtime.signals.window_cutter.Cutter` does
    it."""
    streams = body(seed=10)
    streams["acc"] = without(without(streams["acc"], 10.0, 11.5), 20.0, 28.0)
    streams["ecg"] = without(streams["ecg"], 13.0, 15.0)
    corpus = join_recordings([Recording("one", "1", {}, streams, WHOLE)], SLOW, Presence(min_coverage=0.6))
    starts = corpus.starts(labelled=False, every=125)
    windows, present = corpus.windows(starts), corpus.present(starts)
    gaps = 0
    for column, (name, one) in enumerate(streams.items()):
        rate = one.modality.rate_hz
        for number, start in enumerate(starts):
            end_ns = round((start / 250 + 4.0) * 1e9)
            grid = sample_times(0.0, rate, corpus.lengths[name])
            values, covered = resample((one.times_ns - end_ns) / 1e9, one.values, grid, 1 / rate)
            coverage = covered.mean()
            assert present[number, column] == (coverage >= 0.6)
            gaps += 0.6 <= coverage < 1
            if coverage > 0 and start / 250 * rate % 1 == 0:
                np.testing.assert_allclose(windows[name][number], fill_gaps(values, covered).T, atol=2e-5)
    assert gaps > 10
    assert not present.all()


def test_modality_that_a_recording_lacks_is_absent_and_the_others_stay() -> None:
    whole, bare = body(), body(seed=5)
    del bare["ecg"]
    nothing = {"gyro": stream(hapt.GYRO, 60, 9)}
    recordings = [
        Recording("bare", "1", {}, bare, WHOLE),
        Recording("nothing", "1", {}, nothing, WHOLE),
        Recording("whole", "2", {}, whole, WHOLE),
    ]
    corpus = join_recordings(recordings, SLOW)
    starts = corpus.starts(labelled=False, every=250)
    first = corpus.people_of(starts) == "1"
    np.testing.assert_array_equal(corpus.present(starts[first]).all(axis=0), [False, True, True])
    assert corpus.present(starts[~first]).all()
    assert not corpus.windows(starts[first])["ecg"].any()
    # What is drawn, cut from the joined signals, is what windows() gives.
    windows, rows = corpus.windows(starts), corpus.rows(starts)
    for name, signal in corpus.signals.items():
        np.testing.assert_array_equal(windows[name][7], signal[rows[name][7] :][: corpus.lengths[name]].T)


def test_window_without_any_modality_is_never_drawn() -> None:
    streams = {name: without(one, 20.0, 40.0) for name, one in body().items()}
    corpus = join_recordings([Recording("one", "1", {}, streams, WHOLE)], SLOW)
    starts = corpus.starts(labelled=False, every=1)
    assert corpus.present(starts).any(axis=1).all()
    seconds = starts / 250
    assert not ((seconds > 19) & (seconds < 37)).any()  # less than 60 % of these is there
    drawn = corpus.draw(2000, False, np.random.default_rng(0))
    assert set(drawn) <= set(starts)
    near = corpus.neighbours(drawn, 5.0, np.random.default_rng(0))
    assert set(near) <= set(starts)


def test_lost_rows_count_neither_as_samples_nor_in_the_normalisation() -> None:
    streams = body()
    clean = join_recordings([Recording("one", "1", {}, streams, WHOLE)], SLOW).normalisation()
    values = streams["acc"].values.copy()
    values[500:1500, 1] = np.nan  # 20 s
    streams["acc"] = Stream(hapt.ACC, streams["acc"].times_ns, values)
    corpus = join_recordings([Recording("one", "1", {}, streams, WHOLE)], SLOW)
    starts = corpus.starts(labelled=False, every=250)
    missing = ~corpus.present(starts)[:, 1]
    assert missing.sum() == 21  # those with more than 1.6 of their 4 s in the gap
    assert np.isfinite(corpus.windows(starts)["acc"]).all()
    kept = np.delete(streams["acc"].values, np.s_[500:1500], axis=0)
    numbers = corpus.normalisation()
    np.testing.assert_allclose(numbers["acc"].mean, kept.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(numbers["acc"].std, kept.std(axis=0), rtol=1e-5)
    assert numbers["ecg"] == clean["ecg"]


def test_streams_that_do_not_begin_together_keep_the_whole_time() -> None:
    streams = body()
    streams["acc"] = stream(hapt.ACC, 50, 3, first_s=10.0)
    corpus = join_recordings([Recording("late", "1", {}, streams, WHOLE)], SLOW)
    starts = corpus.starts(labelled=False, every=250)
    assert len(starts) == 57
    np.testing.assert_array_equal(corpus.present(starts)[:, 1], starts / 250 >= 10 - 4 * 0.4)
    np.testing.assert_array_equal(corpus.windows(starts)["acc"][12], streams["acc"].values[100:300].T)


def test_held_out_labels_are_in_no_window_of_training_people(recordings: list[Recording]) -> None:
    assert recordings
    transitions = tuple(name for name in hapt.LABELS.values() if "-" in name)
    recipe = msgspec.structs.replace(RECIPE, hold_out=transitions)
    held = load_corpus(recipe, "train")
    plain = load_corpus(msgspec.structs.replace(RECIPE, labels=transitions), "train")
    starts = held.starts(labelled=False, every=1)
    assert 0.85 < len(starts) / len(plain.starts(labelled=False, every=1)) < 0.97
    drawn = held.draw(5000, False, np.random.default_rng(0))
    for some in (starts[::97], starts[-1:], drawn, held.neighbours(drawn, 5.0, np.random.default_rng(1))):
        for ahead in range(0, 128, 3):  # the shortest transition lasts longer than that
            assert (plain.labels_of(some + ahead) == NO_LABEL).all()
    labelled = held.starts(labelled=True, every=1)
    np.testing.assert_array_equal(labelled, load_corpus(RECIPE, "train").starts(labelled=True, every=1))
    again = held.draw(500, True, np.random.default_rng(4))
    np.testing.assert_array_equal(again, np.random.default_rng(4).choice(labelled, 500))
    # Only training is kept from them.
    assert len(load_corpus(recipe, "validation").starts(labelled=False, every=64)) == 2215


def test_short_stretches_are_seen_in_their_middle(recordings: list[Recording]) -> None:
    assert recordings
    transitions = tuple(name for name in hapt.LABELS.values() if "-" in name)
    corpus = load_corpus(msgspec.structs.replace(RECIPE, labels=transitions), "test")
    starts = corpus.centred()
    wanted = [
        (recording.name, label)
        for recording in recordings
        for label in recording.labels
        if recording.person in hapt.SPLITS["test"] and label.name in transitions
    ]
    assert len(starts) == len(wanted) > 100
    np.testing.assert_array_equal(corpus.recordings_of(starts), [name for name, _ in wanted])
    codes = corpus.labels_of(starts + corpus.length // 2)
    np.testing.assert_array_equal(codes, [transitions.index(label.name) for _, label in wanted])


def test_scale_takes_the_place_of_mean_and_deviation() -> None:
    recipe = msgspec.structs.replace(SLOW, scale={"ecg": 100.0})
    numbers = join_recordings([Recording("one", "1", {}, body(), WHOLE)], recipe).normalisation()
    assert (numbers["ecg"].mean, numbers["ecg"].std) == ((0.0,), (100.0,))
    assert numbers["temp"].std[0] < 2
    with pytest.raises(DataError, match=r"\[data\] scale names emg"):
        join_recordings([Recording("one", "1", {}, body(), WHOLE)], msgspec.structs.replace(SLOW, scale={"emg": 1.0}))


def test_constant_channel_is_named() -> None:
    streams = body()
    streams["temp"] = Stream(TEMP, streams["temp"].times_ns, np.ones_like(streams["temp"].values))
    with pytest.raises(DataError, match="'temp' never changes in skin"):
        join_recordings([Recording("one", "1", {}, streams, WHOLE)], SLOW).normalisation()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"modalities": ("ecg", "spo2")},
            r"has no modality 'spo2' \(it has ecg, acc, temp\); correct \[data\] modalities",
        ),
        ({"knee": {"gyro": 0.05}}, r"\[data\] knee names gyro"),
        ({"window_s": 61.0}, "no window of 61 s"),
        ({"labels": ("rest", "run"), "window_s": 31.0}, r"no window of 31 s that carries one label \(rest, run\)"),
    ],
)
def test_what_the_data_lack_is_one_sentence(change: dict[str, Any], said: str) -> None:
    recipe = msgspec.structs.replace(SLOW, **change)
    with pytest.raises(DataError, match=said):
        join_recordings([Recording("one", "1", {}, body(), WHOLE)], recipe).draw(
            8, "labels" in change, np.random.default_rng(0)
        )


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("hpat", None, "did you mean 'hapt'"),
        ("hapt", "nowhere", "nothing at nowhere"),
    ],
)
def test_data_set_that_is_not_there_is_one_sentence(name: str, path: str | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_corpus(msgspec.structs.replace(RECIPE, name=name, path=path), "train")


def test_label_that_the_data_set_lacks_is_named(recordings: list[Recording]) -> None:
    assert recordings
    with pytest.raises(DataError, match="hapt has no label running"):
        load_corpus(msgspec.structs.replace(RECIPE, labels=("walking", "running")), "train")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never be called",))


def test_pickle_that_names_anything_else_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="not on the list"):
        hapt.parse(gzip.compress(pickle.dumps({"1": [_Evil()]})))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "content", [b"", b"no", gzip.compress(b"no pickle", mtime=0), gzip.compress(pickle.dumps([1]), mtime=0)]
)
def test_file_that_is_not_hapt_is_one_sentence(content: bytes) -> None:
    with pytest.raises(DataError, match="HAPT"):
        hapt.parse(content)
