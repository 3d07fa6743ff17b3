"""MMAct: clips of 37 actions of 20 people, a phone's and a watch's sensors (Kong et al., ICCV 2019).

As its authors give out the trimmed sensor files: ``acc_phone_clip``, ``acc_watch_clip``, ``gyro_clip`` and
``orientation_clip``, each with ``subject1/scene1/session1/ACTION.csv``: rows of time, x, y, z without a header. A clip
is a recording with one label; a stream whose file is missing is a missing modality. Android gives samples when it
likes: they are brought onto an even grid, times counted from each stream's first sample, since all streams of a clip
are trimmed to the same action. Time is read as a date with clock time, or as a number of seconds, milliseconds or
nanoseconds, whichever makes the clip's rate plausible. The video is not read here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.errors import DataError, MissingExtraError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label, Recording, Stream

from .base import DataSet, Entry
from .pamap2 import STANDARD_GRAVITY

XYZ = ("x", "y", "z")
# Folder to modality and what to divide by for its unit: Android gives m/s2, rad/s and degrees.
SIGNALS = {
    "acc_phone_clip": (Modality("phone_acc", XYZ, "g", 100.0), STANDARD_GRAVITY),
    "acc_watch_clip": (Modality("watch_acc", XYZ, "g", 100.0), STANDARD_GRAVITY),
    "gyro_clip": (Modality("phone_gyro", XYZ, "rad/s", 50.0), 1.0),
    "orientation_clip": (Modality("phone_orientation", ("azimuth", "pitch", "roll"), "deg", 50.0), 1.0),
}
LABELS = (
    "carrying", "carrying_heavy", "carrying_light", "checking_time", "closing", "crouching", "drinking", "entering",
    "exiting", "fall", "jumping", "kicking", "loitering", "looking_around", "opening", "picking_up", "pocket_in",
    "pocket_out", "pointing", "pulling", "pushing", "running", "setting_down", "sitting", "sitting_down", "standing",
    "standing_up", "talking", "talking_on_phone", "talking_on_phone_desk", "throwing", "transferring_object",
    "using_pc", "using_phone", "using_phone_desk", "walking", "waving_hand",
)  # fmt: skip

# By person: the last four are the cross-subject test of its authors; two of the others were set aside for good.
TEST = ("17", "18", "19", "20")
VALIDATION = ("15", "16")
TRAIN = tuple(str(person) for person in range(1, 15))
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}

# Samples further apart than this are not interpolated between.
LONGEST_PAUSE_S = 0.2


def entries(path: Path) -> list[Entry]:
    """A recording for each clip that has a file in one of the folders.

    Raises:
        DataError: No recording was found, or an action is not one of the 37.
    """
    split_of = {person: split for split, people in SPLITS.items() for person in people}
    clips: dict[Path, dict[str, Path]] = {}
    for folder in SIGNALS:
        for file in sorted((path / folder).glob("subject*/scene*/session*/*.csv")):
            clips.setdefault(file.relative_to(path / folder), {})[folder] = file
    if not clips:
        raise DataError(
            f"{path} has no acc_phone_clip/subject1/scene1/session1/*.csv; give the folder of the sensor files"
        )
    recordings = []
    for clip, files in sorted(clips.items()):
        subject, scene, session = (part for part in clip.parts[:3])
        person, action = subject.removeprefix("subject"), clip.stem.lower()
        if person not in split_of or action not in LABELS:
            raise DataError(f"{next(iter(files.values()))} is not a clip of MMAct: no such subject or action")
        name = f"mmact-p{person}-{scene}-{session}-{action}"
        recordings.append(Entry(name, person, split_of[person], partial(_read, files, name, person, action)))
    return recordings


def _read(files: dict[str, Path], name: str, person: str, action: str) -> Recording:
    streams = {}
    for folder, file in files.items():
        modality, divisor = SIGNALS[folder]
        seconds, values = _rows(file, modality.rate_hz)
        if len(seconds) >= 2:
            streams[modality.name] = _even(modality, seconds, values / divisor)
    end_ns = max((int(stream.times_ns[-1]) for stream in streams.values()), default=0)
    labels = [Label(0, end_ns + 1, action)] if streams else []
    return Recording(name, person, {"source": "MMAct"}, streams, labels)


def _rows(file: Path, rate_hz: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds since the first row (n,), strictly rising, and values (n, 3)."""
    try:
        import pyarrow as pa
        from pyarrow import csv
    except ImportError as error:
        raise MissingExtraError("reading MMAct needs pyarrow: pip install 'armlet[train]'") from error

    if not file.stat().st_size:
        return np.zeros(0), np.zeros((0, 3))  # some published clips are empty
    try:
        table = csv.read_csv(
            file,
            csv.ReadOptions(column_names=["time", *XYZ]),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(XYZ, pa.float64())),
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file} is not a table of time, x, y, z: {error}") from error
    times = table["time"]
    if pa.types.is_timestamp(times.type):
        seconds = times.cast(pa.timestamp("ns")).cast(pa.int64()).to_numpy() / 1e9
    elif pa.types.is_integer(times.type) or pa.types.is_floating(times.type):
        seconds = _seconds(times.to_numpy().astype(np.float64), rate_hz)
    else:
        raise DataError(f"{file}: its first column is neither a date with clock time nor a number")
    values = np.stack([table[axis].to_numpy() for axis in XYZ], axis=1)
    whole = ~(np.isnan(seconds) | np.isnan(values).any(axis=1))
    seconds, values = seconds[whole], values[whole]
    seconds, first = np.unique(seconds, return_index=True)
    return seconds - seconds[0] if len(seconds) else seconds, values[first]


def _seconds(times: NDArray[np.float64], rate_hz: float) -> NDArray[np.float64]:
    """Numbers as seconds, in the usual unit by which the samples come closest to the nominal rate."""
    steps = np.diff(np.unique(times))
    if not len(steps):
        return times
    units = np.array([1.0, 1e3, 1e6, 1e9])
    off = np.abs(np.log(np.median(steps) / units * rate_hz))
    return np.asarray(times / units[int(np.argmin(off))])


def _even(modality: Modality, seconds: NDArray[np.float64], values: NDArray[np.float64]) -> Stream:
    """Samples on an even grid, linear between neighbours; none in a pause."""
    grid = np.arange(int(seconds[-1] * modality.rate_hz + 1e-6) + 1) / modality.rate_hz
    after = np.clip(np.searchsorted(seconds, grid, side="left"), 1, len(seconds) - 1)
    inside = seconds[after] - seconds[after - 1] <= LONGEST_PAUSE_S
    even = np.stack([np.interp(grid, seconds, column) for column in values.T], axis=1)
    times = np.rint(grid * 1e9).astype(np.int64)
    return Stream(modality, times[inside], even[inside].astype(np.float32))


DATA_SET = DataSet(
    "mmact",
    "MMAct: clips of 37 actions, phone (acc, gyro, orientation) and watch (acc), 20 people (Kong et al., 2019)",
    tuple(modality for modality, _ in SIGNALS.values()),
    LABELS,
    entries,
    bring="ask its authors for MMAct and unpack the trimmed sensor files (acc_phone_clip/ and so on)",
)
