"""Data sets that people bring, each read from small files in exactly its published format."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armlet_runtime.errors import DataError
from armlet_train.data import load_corpus
from armlet_train.data.datasets import mmact, pamap2, wesad
from armlet_train.data.datasets import simulated as made
from armlet_train.data.datasets._safe_pickle import load_arrays
from armlet_train.data.datasets.base import KNOWN, SPLITS, known_data_set, open_data_set
from armlet_train.recipes import DataRecipe


def test_every_known_data_set_says_what_it_is() -> None:
    for name in KNOWN:
        one = known_data_set(name)
        assert one.name == name
        assert len({modality.name for modality in one.modalities}) == len(one.modalities) > 0
        assert len(set(one.labels)) == len(one.labels) > 0
        assert one.fetch is not None or one.bring


@pytest.mark.parametrize("name", [name for name in KNOWN if known_data_set(name).fetch is None])
def test_data_set_that_must_be_brought_says_where_it_is_had(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name} must be brought by you: .*\[data\] path"):
        open_data_set(name)
    with pytest.raises(DataError, match="nothing at"):
        open_data_set(name, tmp_path / "gone")
    with pytest.raises(DataError, match=str(tmp_path)):
        open_data_set(name, tmp_path)


@pytest.mark.parametrize("module", [pamap2, wesad, mmact, made])
def test_no_person_is_in_two_splits(module: Any) -> None:
    people = [person for split in module.SPLITS.values() for person in split]
    assert len(people) == len(set(people))
    assert set(module.SPLITS) == set(SPLITS)


# PAMAP2: 54 columns, 100 Hz, NaN where there is no number; the heart rate in every eleventh row.


def pamap2_row(number: int, activity: int, hand_lost: bool) -> str:
    """A row as the files have it: six decimals, integers for the activity, NaN."""
    imu = [f"{30 + number / 100:.4f}"]  # temperature
    imu += [f"{number * 0.01 + axis:.6f}" for axis in range(3)]  # +-16 g
    imu += [f"{99 + axis:.6f}" for axis in range(3)]  # +-6 g, saturated
    imu += [f"{0.1 * axis - number * 0.001:.6f}" for axis in range(3)]  # gyroscope
    imu += [f"{-20 + axis:.5f}" for axis in range(3)]  # magnetometer
    imu += ["1", "0", "0", "0"]  # invalid orientation
    lost = ["NaN"] * 17
    heart = str(100 + number // 11) if number % 11 == 0 else "NaN"
    return " ".join([f"{8.38 + number * 0.01:.2f}", str(activity), heart, *(lost if hand_lost else imu), *imu, *imu])


def test_pamap2(tmp_path: Path) -> None:
    rows = [pamap2_row(i, (0, 1, 24)[i // 400], hand_lost=500 <= i < 560) for i in range(1200)]
    for part, person in (("Protocol", "101"), ("Protocol", "105"), ("Optional", "101")):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / f"subject{person}.dat").write_text("\n".join(rows) + "\n")
    data_set, entries = open_data_set("pamap2", tmp_path)
    assert [(entry.name, entry.person, entry.split) for entry in entries] == [
        ("pamap2-p101-optional", "101", "train"),
        ("pamap2-p101-protocol", "101", "train"),
        ("pamap2-p105-protocol", "105", "test"),
    ]
    recording = pickle.loads(pickle.dumps(entries[1])).read()
    assert set(recording.streams) == {modality.name for modality in data_set.modalities}
    chest = recording.streams["chest_acc"]
    assert (chest.modality.unit, chest.modality.rate_hz) == ("g", 100.0)
    np.testing.assert_array_equal(np.diff(chest.times_ns), 10_000_000)
    np.testing.assert_allclose(chest.values[100], np.array([1.0, 2.0, 3.0]) / 9.80665, rtol=1e-6)
    np.testing.assert_allclose(recording.streams["ankle_gyro"].values[7], [-0.007, 0.093, 0.193], atol=1e-6)
    np.testing.assert_allclose(recording.streams["ankle_mag"].values[7], [-20, -19, -18])
    assert len(recording.streams["hand_acc"].values) == 1200 - 60
    heart = recording.streams["hr"]
    np.testing.assert_array_equal(heart.values[:, 0], 100 + np.arange(110))
    np.testing.assert_array_equal(np.diff(heart.times_ns), 110_000_000)
    assert [label.name for label in recording.labels] == ["lying", "rope jumping"]
    assert recording.labels[0].start_ns == round(12.38e9)
    assert recording.labels[1].end_ns == round(20.38e9)

    recipe = DataRecipe(
        "pamap2", ("hand_acc", "chest_acc", "hr"), ("lying", "rope jumping"), 1.28, 0.64, 0.32, path=str(tmp_path)
    )
    corpus = load_corpus(recipe, "train")
    assert corpus.lengths == {"hand_acc": 128, "chest_acc": 128, "hr": 12}
    starts = corpus.starts(labelled=True, every=corpus.stride)
    assert set(corpus.labels_of(starts)) == {0, 1}
    present = corpus.present(starts)
    assert present[:, 1:].all()
    assert 0 < (~present[:, 0]).sum() < len(starts) / 4 or present[:, 0].all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [*rows[:3], rows[3].rsplit(" ", 1)[0], *rows[4:]], "not a table of 54 columns"),
        (lambda rows: [*rows[:3], rows[3].replace("NaN", "none"), *rows[4:]], "not a table of 54 columns"),
        (lambda rows: [*rows[:5], rows[2], *rows[6:]], "line 6: the time does not rise"),
        (lambda rows: ["NaN" + rows[0][4:], *rows[1:]], "time and an activity"),
    ],
)
def test_pamap2_file_that_is_damaged_is_one_sentence(change: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "Protocol").mkdir()
    rows = change([pamap2_row(i, 1, False) for i in range(20)])
    (tmp_path / "Protocol" / "subject101.dat").write_text("\n".join(rows) + "\n")
    entry = open_data_set("pamap2", tmp_path)[1][0]
    with pytest.raises(DataError, match=said):
        entry.read()


# WESAD: a pickle of Python 2 (protocol 2) for each person.


def python2_array(array: np.ndarray) -> bytes:
    """An array as Python 2's cPickle writes NumPy's: names of NumPy 1, data as a byte string."""

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    kind = array.dtype.str[1:].encode()
    shape = b"".join(map(integer, array.shape)) + {1: b"\x85", 2: b"\x86"}[array.ndim]
    dtype = b"cnumpy\ndtype\nU\x02" + kind + b"K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content = array.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape + dtype
        + b"\x89T" + struct.pack("<I", len(content)) + content + b"tb"
    )  # fmt: skip


def python2_dict(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(python2_text(key) + value for key, value in items.items()) + b"u"


def python2_text(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def wesad_pickle(seconds: int) -> bytes:
    rng = np.random.default_rng(0)
    chest = {
        name: python2_array(rng.standard_normal((700 * seconds, channels)).astype(kind))
        for name, channels, kind in (
            ("ACC", 3, "<f8"), ("Resp", 1, "<f8"), ("EDA", 1, "<f8"), ("ECG", 1, "<f8"), ("EMG", 1, "<f8"),
            ("Temp", 1, "<f4"),
        )
    }  # fmt: skip
    wrist = {
        "ACC": python2_array(np.tile(np.array([[64.0, -32.0, 0.0]]), (32 * seconds, 1))),
        "BVP": python2_array(rng.standard_normal((64 * seconds, 1))),
        "EDA": python2_array(rng.standard_normal((4 * seconds, 1))),
        "TEMP": python2_array(rng.standard_normal((4 * seconds, 1))),
    }
    label = np.repeat(np.array([0, 1, 0, 2, 7, 3, 4], "<i4"), 700 * seconds // 7)
    signal = python2_dict({"chest": python2_dict(chest), "wrist": python2_dict(wrist)})
    return b"\x80\x02" + python2_dict(
        {"signal": signal, "label": python2_array(label), "subject": python2_text("S2")}
    ) + b"."  # fmt: skip


def test_wesad(tmp_path: Path) -> None:
    for person in ("S2", "S16"):
        (tmp_path / person).mkdir()
        (tmp_path / person / f"{person}.pkl").write_bytes(wesad_pickle(70))
    assert set(pickle.loads((tmp_path / "S2" / "S2.pkl").read_bytes(), encoding="latin1")) == {
        "signal", "label", "subject",
    }  # fmt: skip
    data_set, entries = open_data_set("wesad", tmp_path)
    assert [(entry.person, entry.split) for entry in entries] == [("S2", "train"), ("S16", "test")]
    recording = entries[0].read()
    assert set(recording.streams) == {modality.name for modality in data_set.modalities}
    for name, stream in recording.streams.items():
        assert len(stream.times_ns) == round(70 * stream.modality.rate_hz), name
        assert stream.times_ns[-1] == round((70 - 1 / stream.modality.rate_hz) * 1e9)
    np.testing.assert_array_equal(recording.streams["wrist_acc"].values[0], [1.0, -0.5, 0.0])
    assert [(label.name, label.start_ns, label.end_ns) for label in recording.labels] == [
        ("baseline", 10_000_000_000, 20_000_000_000),
        ("stress", 30_000_000_000, 40_000_000_000),
        ("amusement", 50_000_000_000, 60_000_000_000),
        ("meditation", 60_000_000_000, 70_000_000_000),
    ]
    recipe = DataRecipe(
        "wesad", ("chest_ecg", "wrist_ppg", "wrist_eda"), ("baseline", "stress"), 5.0, 2.5, 1.0, path=str(tmp_path)
    )
    corpus = load_corpus(recipe, "train")
    assert corpus.lengths == {"chest_ecg": 3500, "wrist_ppg": 320, "wrist_eda": 20}
    assert len(corpus.starts(labelled=True, every=corpus.stride)) == 6


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never be called",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({"signal": _Evil()}), "not on the list"),
        (b"no pickle", "cannot be read"),
        (b"", "cannot be read"),
        (wesad_pickle(7)[:5000], "cannot be read"),
        (pickle.dumps({"signal": {"chest": {}}}), "not a pickle of WESAD"),
        (pickle.dumps([1, 2]), "not a pickle of WESAD"),
    ],
)
def test_wesad_file_that_is_damaged_is_one_sentence(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "S2").mkdir()
    (tmp_path / "S2" / "S2.pkl").write_bytes(content)
    entry = open_data_set("wesad", tmp_path)[1][0]
    with pytest.raises(DataError, match=said):
        entry.read()
    assert capsys.readouterr().out == ""


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_are_arrays_or_one_sentence(drawn: st.DataObject) -> None:
    content = bytearray(SMALL_PICKLE)
    for _ in range(drawn.draw(st.integers(1, 4))):
        content[drawn.draw(st.integers(0, len(content) - 1))] = drawn.draw(st.integers(0, 255))
    cut = drawn.draw(st.integers(0, len(content)))
    with contextlib.suppress(DataError):
        load_arrays(io.BytesIO(bytes(content[:cut])), "it")


SMALL_PICKLE = b"\x80\x02" + python2_dict({"label": python2_array(np.arange(4, dtype="<i4"))}) + b"."


def test_small_pickle_is_sound() -> None:
    loaded = load_arrays(io.BytesIO(SMALL_PICKLE), "it")
    np.testing.assert_array_equal(loaded["label"], [0, 1, 2, 3])


# MMAct: time, x, y, z without a header; folders by stream, subject, scene, session.


def write_clip(root: Path, folder: str, clip: str, rate_hz: float, seconds: float, first: str | float) -> None:
    file = root / folder / clip
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    times = np.arange(0, seconds, 1 / rate_hz)
    times = np.concatenate([times[:1], times[1:] + rng.uniform(-0.2, 0.2, len(times) - 1) / rate_hz])
    with file.open("w") as out:
        for at in times:
            if isinstance(first, str):
                stamp = str(np.datetime64(first, "ms") + np.timedelta64(round(at * 1000), "ms")).replace("T", " ")
            else:
                stamp = f"{first + at * 1000:.0f}"
            out.write(f"{stamp},{9.80665 * at:.6f},{-at:.6f},0.5\n")


@pytest.mark.parametrize("first", ["2018-10-05 13:24:28.120", 1538745868120.0])
def test_mmact(first: str | float, tmp_path: Path) -> None:
    for folder, rate in (("acc_phone_clip", 100), ("acc_watch_clip", 100), ("gyro_clip", 50), ("orientation_clip", 50)):
        write_clip(tmp_path, folder, "subject1/scene1/session2/carrying.csv", rate, 4.0, first)
    write_clip(tmp_path, "gyro_clip", "subject17/scene4/session1/Walking.csv", 50, 3.0, first)
    (tmp_path / "acc_phone_clip/subject17/scene4/session1").mkdir(parents=True)
    (tmp_path / "acc_phone_clip/subject17/scene4/session1/Walking.csv").write_text("")
    data_set, entries = open_data_set("mmact", tmp_path)
    assert [(entry.name, entry.split) for entry in entries] == [
        ("mmact-p1-scene1-session2-carrying", "train"),
        ("mmact-p17-scene4-session1-walking", "test"),
    ]
    whole, bare = (entry.read() for entry in entries)
    assert set(whole.streams) == {modality.name for modality in data_set.modalities}
    assert set(bare.streams) == {"phone_gyro"}
    phone = whole.streams["phone_acc"]
    assert np.abs(phone.values[:, 0] - phone.times_ns / 1e9).max() < 0.003  # g; times are to the millisecond
    assert 390 < len(phone.times_ns) <= 401
    assert [label.name for label in whole.labels] == ["carrying"]
    recipe = DataRecipe(
        "mmact", ("phone_acc", "phone_gyro"), ("carrying", "walking"), 1.0, 0.5, 0.5, path=str(tmp_path)
    )
    corpus = load_corpus(recipe, "test")
    starts = corpus.starts(labelled=True, every=corpus.stride)
    np.testing.assert_array_equal(corpus.present(starts), [[False, True]] * len(starts))
    assert len(starts) >= 3


@pytest.mark.parametrize(
    ("clip", "content", "said"),
    [
        ("subject1/scene1/session1/dancing.csv", "1,1,1,1\n", "no such subject or action"),
        ("subject99/scene1/session1/walking.csv", "1,1,1,1\n", "no such subject or action"),
        ("subject1/scene1/session1/walking.csv", "1,1,1\n", "not a table of time, x, y, z"),
        ("subject1/scene1/session1/walking.csv", "1,1,1,up\n", "not a table of time, x, y, z"),
        ("subject1/scene1/session1/walking.csv", "noon,1,1,1\nlater,1,1,1\n", "neither a date"),
    ],
)
def test_mmact_file_that_is_damaged_is_one_sentence(clip: str, content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "gyro_clip" / clip
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(DataError, match=said):
        open_data_set("mmact", tmp_path)[1][0].read()


# The made people.


def test_made_people_are_the_same_every_time_and_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("neurokit2")
    first = made.person_recording("20", seed=3, seconds=12.0)
    monkeypatch.setenv("ARMLET_CACHE", str(tmp_path))
    fresh = made.person_recording("20", seed=3, seconds=12.0)
    cached = made.person_recording("20", seed=3, seconds=12.0)
    other = made.person_recording("21", seed=3, seconds=12.0)
    assert list(fresh.streams) == [modality.name for modality in made.MODALITIES]
    for name, stream in fresh.streams.items():
        np.testing.assert_array_equal(stream.values, cached.streams[name].values)
        np.testing.assert_array_equal(stream.values, first.streams[name].values)
        assert not np.array_equal(stream.values, other.streams[name].values)
        assert np.isfinite(stream.values).all()
    assert fresh.labels == cached.labels
    assert {label.name for label in fresh.labels} == set(made.STATES)
    assert "MADE" in fresh.meta["source"] and "MADE" in made.DATA_SET.title
    damaged = next((tmp_path / "made").glob("20-*.npz"))
    damaged.write_bytes(b"no")
    again = made.person_recording("20", seed=3, seconds=12.0)
    np.testing.assert_array_equal(again.streams["ecg"].values, fresh.streams["ecg"].values)


def test_states_drive_all_five_modalities() -> None:
    pytest.importorskip("neurokit2")
    recordings = [entry.read() for entry in open_data_set("made-quick")[1]]
    assert len(recordings) == 8

    def of(name: str, state: str) -> list[np.ndarray]:
        found = []
        for recording in recordings:
            stream = recording.streams[name]
            for label in recording.labels:
                if label.name == state:
                    inside = (stream.times_ns >= label.start_ns) & (stream.times_ns < label.end_ns)
                    found.append(stream.values[inside])
        return found

    def shaking(parts: list[np.ndarray]) -> float:
        return float(np.median([part.std(axis=0).max() for part in parts]))

    assert shaking(of("acc", "run")) > 2 * shaking(of("acc", "walk")) > 4 * shaking(of("acc", "stress"))

    def rate(name: str, state: str, low: float, high: float) -> float:
        """Median of the strongest frequency between two, Hz."""
        hz = next(modality.rate_hz for modality in made.MODALITIES if modality.name == name)
        peaks = []
        for part in of(name, state):
            power = np.abs(np.fft.rfft(part[:, 0] - part[:, 0].mean(), 8192))
            grid = np.fft.rfftfreq(8192, 1 / hz)
            inside = (grid >= low) & (grid <= high)
            peaks.append(grid[inside][power[inside].argmax()])
        return float(np.median(peaks))

    assert rate("rsp", "slow breathing", 0.05, 1) < 0.2 < rate("rsp", "stress", 0.05, 1)
    assert rate("ppg", "run", 0.7, 3) > 1.8 > rate("ppg", "rest", 0.7, 3)
    swings = {state: np.median([np.ptp(part) for part in of("eda", state)]) for state in ("rest", "stress")}
    assert swings["stress"] > swings["rest"]
