"""PAMAP2: three IMUs and a heart rate monitor on 9 people, 18 activities (Reiss and Stricker, ISWC 2012).

As UCI gives it out: ``Protocol/subject101.dat`` to ``subject109.dat`` and, for some, ``Optional/subject1NN.dat``; a row
every 10 ms of 54 numbers separated by blanks, NaN for a missing one: time (s), activity, heart rate (bpm, about 9 Hz),
and for each IMU (hand, chest, ankle) temperature, acceleration at +-16 g and again at +-6 g (m/s2), angular velocity
(rad/s), magnetic field (uT) and four columns that its authors call invalid. The +-6 g acceleration saturates in some
activities, so the other is taken, and given in g as everywhere in armlet.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label, Recording, Stream

from ._csv import read_numbers
from .base import DataSet, Entry

COLUMNS = 54
RATE_HZ = 100.0
STANDARD_GRAVITY = 9.80665
"""m/s2 in one g (CGPM, 1901)."""

# First column of each IMU: its temperature.
IMUS = {"hand": 3, "chest": 20, "ankle": 37}
# Columns after an IMU's temperature, unit, and what to divide by.
SENSORS = {"acc": (1, "g", STANDARD_GRAVITY), "gyro": (7, "rad/s", 1.0), "mag": (10, "uT", 1.0)}
HR = Modality("hr", ("rate",), "bpm", 9.0)

LABELS = {
    1: "lying",
    2: "sitting",
    3: "standing",
    4: "walking",
    5: "running",
    6: "cycling",
    7: "nordic walking",
    9: "watching tv",
    10: "computer work",
    11: "car driving",
    12: "ascending stairs",
    13: "descending stairs",
    16: "vacuum cleaning",
    17: "ironing",
    18: "folding laundry",
    19: "house cleaning",
    20: "playing soccer",
    24: "rope jumping",
}
"""By activity; 0 is whatever lies between two of them."""

# By person, once for all: 109 did one activity of the protocol only, and 103 half of them, so neither is scored on.
TEST = ("105", "106")
VALIDATION = ("102",)
TRAIN = ("101", "103", "104", "107", "108", "109")
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def _modality(imu: str, sensor: str) -> Modality:
    return Modality(f"{imu}_{sensor}", ("x", "y", "z"), SENSORS[sensor][1], RATE_HZ)


MODALITIES = (*(_modality(imu, sensor) for imu in IMUS for sensor in SENSORS), HR)


def entries(path: Path) -> list[Entry]:
    """A recording for each file of ``Protocol`` and ``Optional``.

    Raises:
        DataError: No file was found.
    """
    recordings = []
    for split, people in SPLITS.items():
        for person in people:
            for part in ("Protocol", "Optional"):
                file = path / part / f"subject{person}.dat"
                if file.is_file():
                    name = f"pamap2-p{person}-{part.lower()}"
                    recordings.append(Entry(name, person, split, partial(_read, file, name, person)))
    if not recordings:
        raise DataError(f"{path} has no Protocol/subject101.dat; give the folder that UCI's PAMAP2_Dataset.zip holds")
    return sorted(recordings, key=lambda entry: entry.name)


def _read(file: Path, name: str, person: str) -> Recording:
    table = read_numbers(file, " ", COLUMNS)
    if not len(table) or np.isnan(table[:, :2]).any():
        raise DataError(f"{file}: every row must have a time and an activity, in its first two columns")
    times = np.rint(table[:, 0] * 1e9).astype(np.int64)
    if times[0] < 0 or (np.diff(times) <= 0).any():
        row = int(np.argmax(np.diff(times, prepend=-1) <= 0))
        raise DataError(f"{file}, line {row + 1}: the time does not rise")
    streams = {}
    for imu, first in IMUS.items():
        for sensor, (offset, _, divisor) in SENSORS.items():
            values = table[:, first + offset : first + offset + 3] / divisor
            modality = _modality(imu, sensor)
            streams[modality.name] = _stream(modality, times, values)
    streams["hr"] = _stream(HR, times, table[:, 2:3])
    return Recording(name, person, {"source": "PAMAP2"}, streams, _labels(times, table[:, 1]))


def _stream(modality: Modality, times: NDArray[np.int64], values: NDArray[np.float64]) -> Stream:
    complete = ~np.isnan(values).any(axis=1)
    return Stream(modality, times[complete], values[complete].astype(np.float32))


def _labels(times: NDArray[np.int64], activity: NDArray[np.float64]) -> list[Label]:
    edges = [0, *(np.flatnonzero(np.diff(activity)) + 1).tolist(), len(activity)]
    ends = np.append(times[1:], times[-1] + round(1e9 / RATE_HZ))
    return [
        Label(int(times[first]), int(ends[last - 1]), LABELS[int(activity[first])])
        for first, last in pairwise(edges)
        if int(activity[first]) in LABELS
    ]


DATA_SET = DataSet(
    "pamap2",
    "PAMAP2: IMUs on hand, chest and ankle and heart rate, 18 activities, 9 people (Reiss and Stricker, 2012)",
    MODALITIES,
    tuple(LABELS.values()),
    entries,
    bring="get PAMAP2 Physical Activity Monitoring from the UCI repository and unpack it (Protocol/, Optional/)",
)
