"""Sleep-EDF Expanded: whole nights of EEG and EOG with sleep stages (Kemp et al., IEEE TBME 47(9), 2000; PhysioNet).

As PhysioNet gives it out: folders ``sleep-cassette`` and ``sleep-telemetry`` of pairs of EDF+ files, such as
``SC4001E0-PSG.edf`` with the signals and ``SC4001EC-Hypnogram.edf`` with the stages. The first six characters say who
and which night: ``SC4ssN`` or ``ST7ssN`` with the person ``ss`` and the night ``N``. Signals are EEG Fpz-Cz and Pz-Oz
and a horizontal EOG, at 100 Hz in microvolts; EMG, airflow and temperature are left out, for the cassette nights have
them at 1 Hz only. Stages are those of Rechtschaffen and Kales in spans of a multiple of 30 s: here N3 is their 3 and
4; movement time and what was not scored carry no label.

Cassette recordings last for a day. As is usual, only the night is kept: from 30 minutes before the first sleep to 30
minutes after the last. Signals are filtered and brought to 200 Hz, see :mod:`armlet_train.data.datasets._filters`.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label, Recording

from ._filters import EEG_BAND_HZ, RATE_HZ, prepare, stream
from .base import DataSet, Entry

MAINS_HZ = 50.0
"""It was recorded in the Netherlands."""

EEG = Modality("eeg", ("Fpz-Cz", "Pz-Oz"), "uV", RATE_HZ)
EOG = Modality("eog", ("horizontal",), "uV", RATE_HZ)
SIGNALS = {EEG: ("EEG Fpz-Cz", "EEG Pz-Oz"), EOG: ("EOG horizontal",)}
"""Modality to the names that its channels have in the files."""

STAGES = {
    "Sleep stage W": "W",
    "Sleep stage 1": "N1",
    "Sleep stage 2": "N2",
    "Sleep stage 3": "N3",
    "Sleep stage 4": "N3",
    "Sleep stage R": "REM",
}
LABELS = ("W", "N1", "N2", "N3", "REM")
MARGIN_S = 1800.0
"""Waking that is kept before and after the night."""

# By person (83 of the cassette study, 24 of the telemetry study; PhysioNet lacks some of the numbers), by a rule.
PEOPLE = [f"SC{number:02d}" for number in range(83)] + [f"ST{number:02d}" for number in range(1, 25)]
TEST = tuple(person for person in PEOPLE if int(person[2:]) % 5 == 4)
VALIDATION = tuple(person for person in PEOPLE if int(person[2:]) % 10 == 2)
TRAIN = tuple(person for person in PEOPLE if person not in TEST + VALIDATION)
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def entries(path: Path) -> list[Entry]:
    """A recording for each pair of files in the folder or below it.

    Raises:
        DataError: No file was found, a file has no partner, or its name is not of the set.
    """
    signals = {file.name[:6]: file for file in path.rglob("*-PSG.edf")}
    stages = {file.name[:6]: file for file in path.rglob("*-Hypnogram.edf")}
    if not signals:
        raise DataError(f"{path} has no files such as SC4001E0-PSG.edf; give the folder that holds sleep-cassette")
    recordings = []
    for night in sorted(signals.keys() | stages.keys()):
        if night not in signals or night not in stages:
            alone, lacking = (signals[night], "-Hypnogram.edf") if night in signals else (stages[night], "-PSG.edf")
            raise DataError(f"{alone} has no partner {night}..{lacking} beside it; bring both or neither")
        person = night[:2] + night[3:5]
        split = next((split for split, people in SPLITS.items() if person in people), None)
        if split is None:
            raise DataError(f"{signals[night]} is not named as Sleep-EDF's files are (SC4ssN..., ST7ssN...)")
        recordings.append(
            Entry(f"sleep-edf-{night}", person, split, partial(_read, signals[night], stages[night], night, person))
        )
    return recordings


def _read(signal_file: Path, stage_file: Path, night: str, person: str) -> Recording:
    from edfio import read_edf

    try:
        annotations = read_edf(stage_file).annotations
        edf = read_edf(signal_file)
        named = {signal.label: signal for signal in edf.signals}
        raw = {}
        for name in chain.from_iterable(SIGNALS.values()):
            if name not in named:
                raise DataError(f"{signal_file} has no signal '{name}' (it has {', '.join(named)})")
            unit, rate = named[name].physical_dimension, named[name].sampling_frequency
            if unit != "uV":
                raise DataError(f"{signal_file}: '{name}' is in '{unit}', not in uV")
            raw[name] = named[name].data, float(rate)
    except DataError:
        raise
    except Exception as error:  # the reader fails in many ways; each means the same here
        raise DataError(
            f"{signal_file} and {stage_file.name} cannot be read ({type(error).__name__}: {error})"
        ) from None

    spans = [
        (annotation.onset, annotation.onset + (annotation.duration or 0.0), STAGES[annotation.text])
        for annotation in annotations
        if annotation.text in STAGES
    ]
    duration_s = min(len(values) / rate for values, rate in raw.values())
    first_s, last_s = _night(spans, duration_s)
    streams = {}
    for modality, names in SIGNALS.items():
        rate = raw[names[0]][1]
        kept = slice(round(first_s * rate), round(last_s * rate))
        values = np.stack([raw[name][0][kept] for name in names], axis=1).astype(np.float64)
        try:
            streams[modality.name] = stream(modality, prepare(values, rate, EEG_BAND_HZ, MAINS_HZ))
        except DataError as error:
            raise DataError(f"{signal_file}, {modality.name}: {error}") from None
    labels = [
        Label(round((max(begin, first_s) - first_s) * 1e9), round((min(end, last_s) - first_s) * 1e9), stage)
        for begin, end, stage in spans
        if begin < last_s and end > first_s
    ]
    return Recording(f"sleep-edf-{night}", person, {"source": "Sleep-EDF"}, streams, labels)


def _night(spans: list[tuple[float, float, str]], duration_s: float) -> tuple[float, float]:
    """First and last second that are kept; all of them if nobody slept."""
    asleep = [(begin, end) for begin, end, stage in spans if stage != "W"]
    if not asleep:
        return 0.0, duration_s
    return (
        max(0.0, min(begin for begin, _ in asleep) - MARGIN_S),
        min(duration_s, max(end for _, end in asleep) + MARGIN_S),
    )


DATA_SET = DataSet(
    "sleep-edf",
    "Sleep-EDF Expanded: two-channel EEG and EOG, sleep stages, 197 nights of 100 people",
    tuple(SIGNALS),
    LABELS,
    entries,
    bring="get Sleep-EDF Expanded 1.0.0 from PhysioNet (sleep-cassette, sleep-telemetry, or both)",
)
