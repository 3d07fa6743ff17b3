"""EEG and ECG: filters and rates, and the loaders on small files in exactly the published formats."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armlet_runtime.cli import main
from armlet_runtime.errors import DataError
from armlet_train.data import load_corpus
from armlet_train.data.datasets import _filters as biosignals
from armlet_train.data.datasets import dreamer, ptb_xl, sleep_edf
from armlet_train.data.datasets.base import SPLITS, open_data_set
from armlet_train.engine.run_folder import load_run
from armlet_train.recipes import DataRecipe, find_recipe

edfio = pytest.importorskip("edfio", reason="edfio is not installed (pip install 'armlet[biosignals]')")
savemat = pytest.importorskip("scipy.io", reason="SciPy is not installed (pip install 'armlet[biosignals]')").savemat
wfdb = pytest.importorskip("wfdb", reason="wfdb is not installed (pip install 'armlet[biosignals]')")


def sine(hz: float, rate_hz: float, seconds: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    wave: np.ndarray[Any, np.dtype[np.float64]] = np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)
    return wave


def middle(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Without the edges, where a filter has seen one side only."""
    return values[len(values) // 4 : -len(values) // 4]


# Filters and rates.


@pytest.mark.parametrize("rate_hz", [100.0, 128.0, 200.0, 256.0, 500.0])
def test_band_passes_and_stops_and_comes_at_200_hz(rate_hz: float) -> None:
    passes, drift = sine(10, rate_hz, 20), sine(0.05, rate_hz, 20)
    raw = np.stack([4000 + 50 * passes, 3 * passes + 100 * drift], axis=1)
    prepared = biosignals.prepare(raw, rate_hz, biosignals.EEG_BAND_HZ, None)
    assert prepared.shape == (4000, 2)
    wanted = sine(10, 200.0, 20)
    assert np.abs(middle(prepared[:, 0] - 50 * wanted)).max() < 0.5
    assert np.abs(middle(prepared[:, 1] - 3 * wanted)).max() < 1.0


def test_notch_takes_the_mains_and_leaves_its_neighbours() -> None:
    raw = np.stack([sine(50, 500.0, 20), sine(40, 500.0, 20), sine(60, 500.0, 20)], axis=1)
    prepared = middle(biosignals.prepare(raw, 500.0, biosignals.EEG_BAND_HZ, 50.0))
    amplitudes = np.sqrt(2) * prepared.std(axis=0)
    assert amplitudes[0] < 0.02
    assert np.all(amplitudes[1:] > 0.95)
    # At 100 Hz there are no mains to take, and the band ends where the samples do.
    slow = middle(biosignals.prepare(sine(20, 100.0, 20)[:, None], 100.0, biosignals.EEG_BAND_HZ, 50.0))
    assert np.sqrt(2) * slow.std() == pytest.approx(1, abs=0.05)


def test_signal_that_cannot_be_filtered_is_refused() -> None:
    with pytest.raises(DataError, match="too few to be filtered"):
        biosignals.prepare(np.zeros((20, 1)), 200.0, biosignals.EEG_BAND_HZ, 50.0)
    with pytest.raises(DataError, match="not numbers"):
        biosignals.prepare(np.full((2000, 1), np.nan), 200.0, biosignals.EEG_BAND_HZ, 50.0)


# DREAMER: one MATLAB 5 file, a structure of cells of structures of cells.

CLIP_S = 4.0


def cell(items: list[Any], rows: bool) -> np.ndarray[Any, Any]:
    """A MATLAB cell array (n, 1) or (1, n)."""
    cells = np.empty((len(items), 1) if rows else (1, len(items)), object)
    cells.ravel()[:] = [None] * len(items)
    for number, item in enumerate(items):
        cells[(number, 0) if rows else (0, number)] = item
    return cells


def person_of_dreamer(rng: np.random.Generator) -> dict[str, Any]:
    valence = rng.permutation(np.arange(18) % 5 + 1).astype(float)
    eeg, ecg = [], []
    for score in valence:
        # A wave of the brain and a heart whose rates follow the score.
        wave = sine(8 + score, 128.0, CLIP_S)[:, None] * rng.uniform(10, 30, 14)
        eeg.append(4200 + wave + rng.standard_normal((len(wave), 14)))
        beat = sine(1 + score / 5, 256.0, CLIP_S)[:, None] ** 8
        ecg.append(2000 + 500 * beat * [1, 0.7] + rng.standard_normal((len(beat), 2)))
    rest = [np.zeros((128, 14))] * 18, [np.zeros((256, 2))] * 18
    return {
        "Age": 27.0,
        "Gender": "female",
        "EEG": {"baseline": cell(rest[0], True), "stimuli": cell(eeg, True)},
        "ECG": {"baseline": cell(rest[1], True), "stimuli": cell(ecg, True)},
        "ScoreValence": valence[:, None],
        "ScoreArousal": (6 - valence)[:, None],
        "ScoreDominance": np.full((18, 1), 3.0),
    }


def write_dreamer(path: Path, people: list[dict[str, Any]], **other: Any) -> None:
    structure = {
        "Data": cell(people, False),
        "EEG_SamplingRate": 128.0,
        "ECG_SamplingRate": 256.0,
        "EEG_Electrodes": cell(list(dreamer.EEG.channels), False),
        "noOfSubjects": 23.0,
        "noOfVideoSequences": 18.0,
        "Disclaimer": "While every care has been taken ...",
        "Provider": "University of the West of Scotland",
        "Version": "1.0.2",
        "Acknowledgement": "...",
    }
    savemat(path, {"DREAMER": {**structure, **other}})


@pytest.fixture(scope="module")
def dreamer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 23 people and 18 clips, each clip of four seconds."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("dreamer") / "DREAMER.mat"
    write_dreamer(path, [person_of_dreamer(rng) for _ in range(23)])
    return path


def test_dreamer_is_read_as_published(dreamer_file: Path) -> None:
    _, entries = open_data_set("dreamer", dreamer_file)
    assert len(entries) == 23 * 18
    assert len({entry.name for entry in entries}) == len(entries)
    by_name = {entry.name: entry for entry in open_data_set("dreamer", dreamer_file.parent)[1]}
    recording = by_name["dreamer-p05-c07"].read()
    assert recording.person == "5"
    eeg, ecg = recording.streams["eeg"], recording.streams["ecg"]
    assert eeg.values.shape == (800, 14) and ecg.values.shape == (800, 2)
    assert eeg.modality == dreamer.EEG and eeg.modality.unit == "uV" and eeg.modality.rate_hz == 200
    # The offset of thousands is gone, the wave is there at its own frequency and in its own units.
    assert np.abs(eeg.values.mean(axis=0)).max() < 2
    valence = float(recording.meta["valence"])
    spectrum = np.abs(np.fft.rfft(eeg.values[:, 0]))
    assert np.argmax(spectrum) / (len(eeg.values) / 200) == pytest.approx(8 + valence, abs=0.3)
    assert 5 < np.sqrt(2) * eeg.values[200:600].std() < 40
    names = {label.name for label in recording.labels}
    assert names == {
        "high-valence" if valence >= 4 else "low-valence",
        "high-arousal" if 6 - valence >= 4 else "low-arousal",
        "low-dominance",
    }
    assert all((label.start_ns, label.end_ns) == (0, 4_000_000_000) for label in recording.labels)


def test_dreamer_as_a_corpus(dreamer_file: Path) -> None:
    recipe = DataRecipe(
        name="dreamer", path=str(dreamer_file), modalities=("ecg", "eeg"), labels=("low-valence", "high-valence"),
        window_s=1.0, stride_s=1.0, hop_s=1.0, scale={"eeg": 100.0},
    )  # fmt: skip
    corpus = load_corpus(recipe, "validation")
    assert corpus.wearers == sorted(dreamer.VALIDATION)
    starts = corpus.starts(labelled=True, every=corpus.stride)
    assert len(starts) == len(dreamer.VALIDATION) * 18 * 4
    assert corpus.normalisation()["eeg"].std == (100.0,) * 14
    assert {name: window.shape[1:] for name, window in corpus.windows(starts).items()} == {
        "ecg": (2, 200),
        "eeg": (14, 200),
    }


def test_dreamer_that_is_not_dreamer_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no DREAMER\.mat"):
        dreamer.entries(tmp_path)
    path = tmp_path / "DREAMER.mat"

    def first() -> None:
        dreamer.entries(path)[0].read()

    path.write_bytes(b"not a MATLAB file")
    with pytest.raises(DataError, match="cannot be read as a MATLAB file"):
        first()
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    with pytest.raises(DataError, match="save it again with -v7"):
        first()
    savemat(path, {"other": 1.0})
    with pytest.raises(DataError, match="no structure DREAMER"):
        first()
    person = person_of_dreamer(np.random.default_rng(0))
    write_dreamer(path, [person], EEG_SamplingRate=256.0)
    with pytest.raises(DataError, match="has 256 Hz EEG"):
        first()
    write_dreamer(path, [{**person, "EEG": {"stimuli": cell([np.zeros((512, 13))] * 18, True)}}])
    with pytest.raises(DataError, match=r"person 1, clip 1: eeg has the shape \(512, 13\), not \(samples, 14\)"):
        first()
    write_dreamer(path, [{name: value for name, value in person.items() if name != "ScoreArousal"}])
    with pytest.raises(DataError, match="person 1, clip 1 is not laid out as in DREAMER"):
        first()


@pytest.mark.full("trains a recipe")
def test_tiny_recipe_pretrains_and_fine_tunes_on_dreamer(dreamer_file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    text = find_recipe("dreamer-tiny").read_text()
    recipe.write_text(text.replace('path = "DREAMER.mat"', f'path = "{dreamer_file}"'))
    pretrained, finetuned = tmp_path / "pretrained", tmp_path / "finetuned"
    assert main(["pretrain", str(recipe), "--out", str(pretrained), "--device", "cpu"]) == 0
    lines = (pretrained / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert re.search(r'"loss":.*"eeg":.*"ecg":', lines[1])
    assert main(["finetune", str(recipe), "--from", str(pretrained), "--out", str(finetuned), "--device", "cpu"]) == 0
    before, after = load_run(pretrained).model, load_run(finetuned).model
    # By LoRA (the recipe says so), merged: the names are those of before; matrices differ, convolutions do not.
    old, new = before.state_dict(), after.state_dict()
    assert list(old) == list(new)
    assert not np.array_equal(
        old["encoders.eeg.cbramod.encoder.layers.0.linear1.weight"],
        new["encoders.eeg.cbramod.encoder.layers.0.linear1.weight"],
    )
    kept = "encoders.eeg.cbramod.patch_embedding.proj_in.0.weight"
    assert np.array_equal(old[kept], new[kept])
    assert main(["evaluate", str(finetuned), "--split", "validation", "--json", str(tmp_path / "scores.json")]) == 0


# Sleep-EDF: pairs of EDF+ files.

STAGES = [("Sleep stage W", 0, 3600), ("Sleep stage 1", 3600, 60), ("Sleep stage 2", 3660, 120),
          ("Sleep stage 3", 3780, 30), ("Sleep stage 4", 3810, 30), ("Movement time", 3840, 30),
          ("Sleep stage R", 3870, 60), ("Sleep stage W", 3930, 3000), ("Sleep stage ?", 6930, 270)]  # fmt: skip


def write_night(folder: Path, signals: str, stages: str, unit: str = "uV", drop: str = "") -> None:
    """A PSG file with EEG and EOG at 100 Hz and others at 1 Hz, and a hypnogram that holds annotations only."""
    rng = np.random.default_rng(0)
    seconds = 7200
    fast = {
        name: 50 * sine(hz, 100.0, seconds) + rng.standard_normal(100 * seconds)
        for name, hz in (("EEG Fpz-Cz", 10.0), ("EEG Pz-Oz", 12.0), ("EOG horizontal", 2.0))
        if name != drop
    }
    slow = {name: rng.uniform(-1, 1, seconds) for name in ("Resp oro-nasal", "EMG submental", "Temp rectal")}
    all_signals = [
        edfio.EdfSignal(values, 100.0, label=name, physical_dimension=unit, physical_range=(-200, 200))
        for name, values in fast.items()
    ] + [edfio.EdfSignal(values, 1.0, label=name, physical_range=(-10, 10)) for name, values in slow.items()]
    edfio.Edf(all_signals, data_record_duration=30, annotations=[]).write(folder / signals)
    annotations = [edfio.EdfAnnotation(float(onset), float(duration), text) for text, onset, duration in STAGES]
    edfio.Edf([], annotations=annotations).write(folder / stages)


@pytest.fixture(scope="module")
def sleep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sleep-edfx")
    (folder / "sleep-cassette").mkdir()
    write_night(folder / "sleep-cassette", "SC4071E0-PSG.edf", "SC4071EC-Hypnogram.edf")
    return folder


def test_sleep_edf_is_read_as_published(sleep_folder: Path) -> None:
    _, (entry,) = open_data_set("sleep-edf", sleep_folder)
    assert (entry.name, entry.person, entry.split) == ("sleep-edf-SC4071", "SC07", "train")
    recording = entry.read()
    # From 30 minutes before the first sleep (3600 s) to 30 minutes after the last (3930 s).
    assert recording.streams["eeg"].values.shape == (200 * (1800 + 330 + 1800), 2)
    assert recording.streams["eog"].values.shape == (200 * 3930, 1)
    for channel, hz in ((0, 10.0), (1, 12.0)):
        values = recording.streams["eeg"].values[:, channel]
        assert np.argmax(np.abs(np.fft.rfft(values))) / (len(values) / 200) == pytest.approx(hz, abs=0.01)
        assert np.sqrt(2) * middle(values).std() == pytest.approx(50, rel=0.02)
    spans = [(label.name, label.start_ns / 1e9, label.end_ns / 1e9) for label in recording.labels]
    assert spans == [
        ("W", 0, 1800), ("N1", 1800, 1860), ("N2", 1860, 1980), ("N3", 1980, 2010), ("N3", 2010, 2040),
        ("REM", 2070, 2130), ("W", 2130, 3930),
    ]  # fmt: skip


def test_sleep_edf_windows_are_the_scored_epochs(sleep_folder: Path) -> None:
    recipe = DataRecipe(
        name="sleep-edf", path=str(sleep_folder), modalities=("eeg", "eog"), labels=sleep_edf.LABELS,
        window_s=30.0, stride_s=30.0, hop_s=30.0,
    )  # fmt: skip
    corpus = load_corpus(recipe, "train")
    starts = corpus.starts(labelled=True, every=corpus.stride)
    # All of them but the one in which the sleeper moved.
    assert np.bincount(corpus.labels_of(starts)).tolist() == [60 + 60, 2, 4, 2, 2]


def test_sleep_edf_that_is_not_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no files such as SC4001E0-PSG\.edf"):
        sleep_edf.entries(tmp_path)
    signals, stages = tmp_path / "SC4071E0-PSG.edf", tmp_path / "SC4071EC-Hypnogram.edf"
    signals.write_bytes(b"")
    with pytest.raises(DataError, match=r"has no partner SC4071..-Hypnogram.edf"):
        sleep_edf.entries(tmp_path)
    stages.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        sleep_edf.entries(tmp_path)[0].read()
    write_night(tmp_path, signals.name, stages.name, drop="EOG horizontal")
    with pytest.raises(DataError, match="has no signal 'EOG horizontal'"):
        sleep_edf.entries(tmp_path)[0].read()
    write_night(tmp_path, signals.name, stages.name, unit="mV")
    with pytest.raises(DataError, match="'EEG Fpz-Cz' is in 'mV', not in uV"):
        sleep_edf.entries(tmp_path)[0].read()
    signals.rename(tmp_path / "XX4991E0-PSG.edf")
    stages.rename(tmp_path / "XX4991EC-Hypnogram.edf")
    with pytest.raises(DataError, match="not named as Sleep-EDF's files are"):
        sleep_edf.entries(tmp_path)


# PTB-XL: two tables, and WFDB records of format 16.

ROWS = [
    # ecg_id, patient_id, strat_fold, scp_codes
    (1, 15709.0, 3, {"NORM": 100.0, "LVOL": 0.0, "SR": 0.0}),
    (2, 13243.0, 9, {"IMI": 35.0, "ABQRS": 0.0, "SR": 0.0}),
    (3, 20372.0, 10, {"IMI": 35.0, "LVH": 100.0}),
    (4, 17014.0, 8, {"SR": 0.0}),
]
STATEMENTS = [("NORM", "1.0", "NORM"), ("IMI", "1.0", "MI"), ("LVH", "1.0", "HYP"), ("SR", "", ""), ("LVOL", "", "")]


def write_record(path: Path, rate: int, names: list[str], unit: str = "mV") -> None:
    """Twelve leads of ten seconds as wfdb writes them: format 16, 1000 units a millivolt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    leads = np.stack([sine(5 + lead, rate, 10) for lead in range(12)], axis=1)
    wfdb.wrsamp(
        path.name, fs=rate, units=[unit] * 12, sig_name=names, p_signal=leads, fmt=["16"] * 12,
        adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(path.parent),
    )  # fmt: skip


def write_tables(folder: Path, rows: list[tuple[Any, ...]]) -> None:
    with (folder / "ptbxl_database.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["ecg_id", "patient_id", "age", "report", "scp_codes", "strat_fold", "filename_lr", "filename_hr"]
        )
        for number, patient, fold, codes in rows:
            name = f"00000/{number:05d}"
            report = "sinusrhythmus, periphere niederspannung"
            table.writerow(
                [number, patient, 56.0, report, codes, fold, f"records100/{name}_lr", f"records500/{name}_hr"]
            )
    with (folder / "scp_statements.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["", "description", "diagnostic", "form", "rhythm", "diagnostic_class"])
        table.writerows(
            [code, "a statement, in words", diagnostic, "", "", name] for code, diagnostic, name in STATEMENTS
        )


@pytest.fixture(scope="module")
def ptb_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ptb-xl")
    write_tables(folder, ROWS)
    for number, *_ in ROWS:
        write_record(folder / f"records100/00000/{number:05d}_lr", 100, list(ptb_xl.LEADS))
        if number != 2:
            write_record(folder / f"records500/00000/{number:05d}_hr", 500, list(ptb_xl.LEADS))
    return folder


def test_ptb_xl_is_read_as_published(ptb_folder: Path) -> None:
    _, entries = open_data_set("ptb-xl", ptb_folder)
    assert [(entry.name, entry.person, entry.split) for entry in entries] == [
        ("ptb-xl-00001", "15709", "train"),
        ("ptb-xl-00002", "13243", "validation"),
        ("ptb-xl-00003", "20372", "test"),
        ("ptb-xl-00004", "17014", "train"),
    ]
    recordings = [entry.read() for entry in entries]
    # One superclass, another, two, none.
    assert [[label.name for label in recording.labels] for recording in recordings] == [["NORM"], ["MI"], [], []]
    assert [recording.meta["record_hz"] for recording in recordings] == ["500", "100", "500", "500"]
    for recording in recordings:
        ecg = recording.streams["ecg"]
        assert ecg.values.shape == (2000, 12) and ecg.modality.unit == "mV"
        for lead in range(12):
            spectrum = np.abs(np.fft.rfft(ecg.values[:, lead]))
            assert np.argmax(spectrum) / 10 == pytest.approx(5 + lead, abs=0.11)
        assert np.sqrt(2) * middle(ecg.values).std() == pytest.approx(1, rel=0.03)


def test_ptb_xl_leads_are_put_in_order(tmp_path: Path) -> None:
    write_tables(tmp_path, ROWS[:1])
    write_record(tmp_path / "records500/00000/00001_hr", 500, [name.lower() for name in ptb_xl.LEADS[::-1]])
    values = ptb_xl.entries(tmp_path)[0].read().streams["ecg"].values
    assert np.argmax(np.abs(np.fft.rfft(values[:, 11]))) / 10 == pytest.approx(5, abs=0.11)


def test_ptb_xl_that_is_not_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*scp_statements.csv"):
        ptb_xl.entries(tmp_path)
    write_tables(tmp_path, ROWS[:1])
    with pytest.raises(DataError, match=r"line 2: neither .*00001_hr.hea nor .*00001_lr.hea"):
        ptb_xl.entries(tmp_path)
    write_record(tmp_path / "records100/00000/00001_lr", 100, list(ptb_xl.LEADS), unit="uV")
    with pytest.raises(DataError, match="in uV, not PTB-XL's twelve in mV"):
        ptb_xl.entries(tmp_path)[0].read()
    (tmp_path / "records100/00000/00001_lr.dat").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        ptb_xl.entries(tmp_path)[0].read()
    rows: list[tuple[Any, ...]] = [(1, "nobody", 3, {}), (1, 2.0, 11, {}), (1, 2.0, 3, "{'NORM': ")]
    for row in rows:
        write_tables(tmp_path, [row])
        with pytest.raises(DataError, match="line 2: not as in PTB-XL"):
            ptb_xl.entries(tmp_path)


@pytest.mark.parametrize("module", [dreamer, sleep_edf, ptb_xl])
def test_no_person_or_fold_is_in_two_splits(module: Any) -> None:
    everyone = [one for split in module.SPLITS.values() for one in split]
    assert len(everyone) == len(set(everyone))
    assert set(module.SPLITS) == set(SPLITS)
