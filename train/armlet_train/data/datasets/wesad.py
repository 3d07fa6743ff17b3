"""WESAD: chest and wrist wearables on 15 people, stress and affect (Schmidt et al., ICMI 2018).

As its authors give it out: ``S2/S2.pkl`` to ``S17/S17.pkl`` (no S1, no S12), pickles of Python 2. Each is a dictionary
of ``subject``, ``label`` (an integer for each of the chest's samples) and ``signal``: ``chest`` (RespiBAN, all at 700
Hz: ACC in g, ECG and EMG in mV, EDA in uS, Temp in degrees, Resp in per cent) and ``wrist`` (Empatica E4: ACC at 32 Hz
in 1/64 g, BVP at 64 Hz, EDA in uS and TEMP at 4 Hz), arrays (n, channels) that begin together. They are read by an
unpickler that builds arrays and nothing else.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label, Recording, Stream

from ._safe_pickle import load_arrays
from .base import DataSet, Entry

CHEST_HZ = 700.0
XYZ = ("x", "y", "z")
# Modality to its device, its name there, and what to divide by for its unit.
SIGNALS = {
    Modality("chest_acc", XYZ, "g", CHEST_HZ): ("chest", "ACC", 1.0),
    Modality("chest_ecg", ("lead",), "mV", CHEST_HZ): ("chest", "ECG", 1.0),
    Modality("chest_emg", ("trapezius",), "mV", CHEST_HZ): ("chest", "EMG", 1.0),
    Modality("chest_eda", ("abdomen",), "uS", CHEST_HZ): ("chest", "EDA", 1.0),
    Modality("chest_temp", ("skin",), "degC", CHEST_HZ): ("chest", "Temp", 1.0),
    Modality("chest_rsp", ("chest",), "%", CHEST_HZ): ("chest", "Resp", 1.0),
    Modality("wrist_acc", XYZ, "g", 32.0): ("wrist", "ACC", 64.0),
    Modality("wrist_ppg", ("bvp",), "au", 64.0): ("wrist", "BVP", 1.0),
    Modality("wrist_eda", ("wrist",), "uS", 4.0): ("wrist", "EDA", 1.0),
    Modality("wrist_temp", ("skin",), "degC", 4.0): ("wrist", "TEMP", 1.0),
}
LABELS = {1: "baseline", 2: "stress", 3: "amusement", 4: "meditation"}
"""By number; 0 lies between two conditions, and 5 to 7 are to be ignored, as its authors say."""

# By person, drawn once for all.
TEST = ("S3", "S8", "S11", "S16")
VALIDATION = ("S5", "S14")
TRAIN = ("S2", "S4", "S6", "S7", "S9", "S10", "S13", "S15", "S17")
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def entries(path: Path) -> list[Entry]:
    """A recording for each person whose pickle is there.

    Raises:
        DataError: No file was found.
    """
    recordings = [
        Entry(f"wesad-{person.lower()}", person, split, partial(_read, path / person / f"{person}.pkl", person))
        for split, people in SPLITS.items()
        for person in people
        if (path / person / f"{person}.pkl").is_file()
    ]
    if not recordings:
        raise DataError(f"{path} has no S2/S2.pkl; give the folder that WESAD.zip holds")
    return recordings


def _read(file: Path, person: str) -> Recording:
    try:
        with file.open("rb") as opened:
            content = load_arrays(opened, str(file))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    try:
        streams = {
            modality.name: _stream(modality, content["signal"][device][name], divisor)
            for modality, (device, name, divisor) in SIGNALS.items()
        }
        labels = _labels(np.asarray(content["label"]).ravel().astype(np.int64))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{file} is not a pickle of WESAD ({type(error).__name__}: {error})") from None
    return Recording(f"wesad-{person.lower()}", person, {"source": "WESAD"}, streams, labels)


def _stream(modality: Modality, array: Any, divisor: float) -> Stream:
    values = np.asarray(array, np.float64).reshape(-1, len(modality.channels)) / divisor
    times = np.rint(np.arange(len(values)) / modality.rate_hz * 1e9).astype(np.int64)
    return Stream(modality, times, values.astype(np.float32))


def _labels(codes: np.ndarray[Any, np.dtype[np.int64]]) -> list[Label]:
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    return [
        Label(round(first / CHEST_HZ * 1e9), round(last / CHEST_HZ * 1e9), LABELS[int(codes[first])])
        for first, last in pairwise(edges)
        if int(codes[first]) in LABELS
    ]


DATA_SET = DataSet(
    "wesad",
    "WESAD: chest (700 Hz) and wrist (64, 32, 4 Hz) wearables, baseline, stress, amusement, meditation, 15 people",
    tuple(SIGNALS),
    tuple(LABELS.values()),
    entries,
    bring="get WESAD from the UCI repository or its authors and unpack it (S2/S2.pkl and so on)",
)
