"""DREAMER: EEG and ECG of 23 people who watched 18 film clips (Katsigiannis & Ramzan, IEEE JBHI 22(1), 2018).

As its authors give it out: one file ``DREAMER.mat`` (MATLAB 5) with a structure ``DREAMER``, whose ``Data`` is a cell
for each person, a structure with ``EEG`` and ``ECG``, each with ``baseline`` and ``stimuli``: a cell for each clip,
an array (samples, channels). EEG has 14 channels at 128 Hz in microvolts (Emotiv EPOC, with its offset of thousands),
ECG 2 leads at 256 Hz in the raw units of its converter (Shimmer). ``ScoreValence``, ``ScoreArousal`` and
``ScoreDominance`` have one score from 1 to 5 for each clip.

A recording is one clip as one person saw it; the baselines (neutral clips) are left out. Both signals are filtered
and brought to 200 Hz, see :mod:`armlet_train.data.datasets._filters`. Each recording carries three labels from end to
end, one a dimension, such as ``low-valence`` or ``high-valence``; a recipe names the two of the dimension that it is
about. People of the paper that armlet follows (arXiv 2512.15250) were not split in a known way: here no person is in
two splits.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label, Recording

from ._filters import ECG_BAND_HZ, EEG_BAND_HZ, RATE_HZ, prepare, stream
from .base import DataSet, Entry

FILE = "DREAMER.mat"
CLIPS = 18
EEG_HZ, ECG_HZ = 128.0, 256.0
MAINS_HZ = 50.0
"""It was recorded in Scotland."""

EEG = Modality(
    "eeg",
    ("AF3", "F7", "F3", "FC5", "T7", "P7", "O1", "O2", "P8", "T8", "FC6", "F4", "F8", "AF4"),
    "uV",
    RATE_HZ,
)
ECG = Modality("ecg", ("1", "2"), "au", RATE_HZ)

HIGH = 4.0
"""Lowest high score: 3 is the middle of the scale, and counts as low."""

DIMENSIONS = ("valence", "arousal", "dominance")
LABELS = tuple(f"{level}-{dimension}" for dimension in DIMENSIONS for level in ("low", "high"))

# By person, in the file's order, drawn once for all.
TEST = ("4", "9", "13", "18", "22")
VALIDATION = ("2", "11", "16")
TRAIN = tuple(str(person) for person in range(1, 24) if str(person) not in TEST + VALIDATION)
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def entries(path: Path) -> list[Entry]:
    """A recording for each of the 18 clips of each of the 23 people.

    Args:
        path: The file, or the folder that it lies in.

    Raises:
        DataError: It is not there.
    """
    file = path if path.is_file() else path / FILE
    if not file.is_file():
        raise DataError(f"{path} has no {FILE}; give the file, or the folder that it lies in")
    return [
        Entry(f"dreamer-p{int(person):02d}-c{clip:02d}", person, split, partial(_read, file, int(person), clip))
        for split, people in SPLITS.items()
        for person in people
        for clip in range(1, CLIPS + 1)
    ]


@lru_cache(maxsize=1)
def _load(file: Path, changed_ns: int) -> Any:
    """The structure of the whole file (430 MB in all), kept from one clip to the next."""
    from scipy.io import loadmat

    try:
        content = loadmat(file, squeeze_me=True, struct_as_record=False)
    except NotImplementedError:
        raise DataError(f"{file} is a MATLAB 7.3 file and DREAMER's is not; save it again with -v7") from None
    except Exception as error:  # SciPy's reader fails in many ways; each means the same here
        raise DataError(f"{file} cannot be read as a MATLAB file ({type(error).__name__}: {error})") from None
    if "DREAMER" not in content:
        raise DataError(f"{file} has no structure DREAMER")
    return content["DREAMER"]


def _read(file: Path, person: int, clip: int) -> Recording:
    try:
        changed_ns = file.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    dreamer = _load(file, changed_ns)
    where = f"{file}, person {person}, clip {clip}"
    try:
        subject = np.atleast_1d(dreamer.Data)[person - 1]
        rates = float(dreamer.EEG_SamplingRate), float(dreamer.ECG_SamplingRate)
        eeg = np.asarray(subject.EEG.stimuli[clip - 1], np.float64)
        ecg = np.asarray(subject.ECG.stimuli[clip - 1], np.float64)
        scores = {name: float(getattr(subject, f"Score{name.title()}")[clip - 1]) for name in DIMENSIONS}
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{where} is not laid out as in DREAMER ({type(error).__name__}: {error})") from None
    if rates != (EEG_HZ, ECG_HZ):
        raise DataError(
            f"{file} has {rates[0]:g} Hz EEG and {rates[1]:g} Hz ECG; DREAMER has {EEG_HZ:g} and {ECG_HZ:g}"
        )
    for modality, values in ((EEG, eeg), (ECG, ecg)):
        if values.ndim != 2 or values.shape[1] != len(modality.channels):
            raise DataError(
                f"{where}: {modality.name} has the shape {values.shape}, not (samples, {len(modality.channels)})"
            )
    try:
        streams = {
            "eeg": stream(EEG, prepare(eeg, EEG_HZ, EEG_BAND_HZ, MAINS_HZ)),
            "ecg": stream(ECG, prepare(ecg, ECG_HZ, ECG_BAND_HZ, MAINS_HZ)),
        }
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    end_ns = min(round(len(eeg) / EEG_HZ * 1e9), round(len(ecg) / ECG_HZ * 1e9))
    labels = [Label(0, end_ns, f"{'high' if score >= HIGH else 'low'}-{name}") for name, score in scores.items()]
    meta = {"source": "DREAMER", **{name: f"{score:g}" for name, score in scores.items()}}
    return Recording(f"dreamer-p{person:02d}-c{clip:02d}", str(person), meta, streams, labels)


DATA_SET = DataSet(
    "dreamer",
    "DREAMER: 14-channel EEG and 2-lead ECG of 23 people, 18 film clips scored for valence, arousal, dominance",
    (EEG, ECG),
    LABELS,
    entries,
    bring=f"ask its authors for {FILE} (Zenodo record 546113)",
)
