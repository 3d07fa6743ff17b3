"""Sessions of an Empatica E4 wristband, as E4 connect gives them out: a folder of CSV files, or that folder zipped.

The files, by the ``info.txt`` that comes with every session: in each the first row is the time of its first sample
(Unix seconds, UTC; once for each column) and the second its rate in Hz. ``ACC.csv`` is in 1/64 g, ``BVP.csv`` the
blood volume pulse without a unit, ``EDA.csv`` in microsiemens, ``TEMP.csv`` in degrees Celsius,
``HR.csv`` the mean heart rate. ``IBI.csv`` has the time in its first row, and then the beats: seconds
since it, and the interval before. ``tags.csv`` has the times at which the button was pressed, one a row.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..modalities import Modality
from ..signals import BEGAN, Label, Recording, Stream
from ..wearables import XYZ, heart_rate, thermometer
from .cell_table import Table, mistake, read_table
from .timestamps import iso_text

# File to modality without its rate, and the factor to its unit.
_SIGNALS: Mapping[str, tuple[str, tuple[str, ...], str, float]] = {
    "ACC.csv": ("acc", XYZ, "g", 1 / 64),
    "BVP.csv": ("ppg", ("bvp",), "au", 1.0),
    "EDA.csv": ("eda", ("wrist",), "uS", 1.0),
    "TEMP.csv": ("temp", ("skin",), thermometer.MODALITY.unit, 1.0),
    "HR.csv": ("hr", heart_rate.MODALITY.channels, heart_rate.MODALITY.unit, 1.0),
}
_BEATS, _TAGS = "IBI.csv", "tags.csv"
FILES = (*_SIGNALS, _BEATS, _TAGS)

# A press of the button has no length; a label must have one.
_PRESS_NS = 1_000_000

# A session of 24 hours at 32 Hz is 30 MB; a zipped file that unpacks to more is not a session.
_LARGEST_BYTES = 1 << 30


def is_ours(source: Path) -> bool:
    """Whether a folder or a zip file holds such a session."""
    if source.is_dir():
        return any((source / file).is_file() for file in _SIGNALS)
    if source.suffix.lower() != ".zip" or not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return any(Path(name).name in _SIGNALS for name in archive.namelist())


def files_of(source: Path) -> dict[str, bytes]:
    """The session's files by name.

    Raises:
        DataError: They cannot be read.
    """
    try:
        if source.is_dir():
            return {file: (source / file).read_bytes() for file in FILES if (source / file).is_file()}
        return unzipped(source.read_bytes(), source.name)
    except OSError as error:
        raise DataError(f"{error.filename or source} cannot be read: {error.strerror}") from error


def unzipped(data: bytes, file: str) -> dict[str, bytes]:
    """The session's files in a zipped folder, by name.

    Raises:
        DataError: It is damaged, or a file in it is too large.
    """
    files = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                if Path(info.filename).name in FILES:
                    if info.file_size > _LARGEST_BYTES:
                        raise mistake(file, f"'{info.filename}' unpacks to {info.file_size} bytes: it is no session")
                    files[Path(info.filename).name] = archive.read(info)
    except DataError:
        raise
    except Exception as error:  # zipfile and zlib raise a dozen kinds on bytes that they cannot read
        raise DataError(f"{file} is a damaged zip file: {error}") from error
    return files


def read(files: Mapping[str, bytes], name: str, person: str) -> Recording:
    """A session from its files by name.

    Raises:
        DataError: A file does not have the layout above, or no file has samples.
    """
    streams: dict[str, Stream] = {}
    for file, (key, channels, unit, factor) in _SIGNALS.items():
        # An empty file is a sensor that gave nothing; heart rate comes only after ten seconds.
        if files.get(file, b"").strip():
            stream = _signal(read_table(files[file], file, ",", header=False), key, channels, unit, factor)
            if len(stream.times_ns):
                streams[key] = stream
    if files.get(_BEATS, b"").strip():
        beats = _beats(read_table(_without_title(files[_BEATS]), _BEATS, ",", header=False))
        if len(beats.times_ns):
            streams[heart_rate.RR_MODALITY.name] = beats
    if not streams:
        raise DataError(f"there are no samples in {', '.join(files) or name}")
    began = min(int(stream.times_ns[0]) for stream in streams.values())
    pressed = read_table(files[_TAGS], _TAGS, ",", header=False) if files.get(_TAGS, b"").strip() else None
    presses = [] if pressed is None else [_unix_ns(pressed, index) - began for index in range(pressed.rows)]
    return Recording(
        name,
        person,
        {"source": "Empatica E4", BEGAN: iso_text(began)},
        {key: Stream(stream.modality, stream.times_ns - began, stream.values) for key, stream in streams.items()},
        [Label(at, at + _PRESS_NS, "tag") for at in sorted(presses) if at >= 0],
    )


def _signal(table: Table, name: str, channels: tuple[str, ...], unit: str, factor: float) -> Stream:
    if len(table.names) != len(channels) or table.rows < 2:
        raise mistake(
            table.file,
            f"needs a row with the time, one with the rate, and {len(channels)} columns, "
            f"not {table.rows} rows of {len(table.names)}",
        )
    start, rate = _unix_ns(table, 0), table.number(1, 0)
    if not 0.01 <= rate <= 10_000:
        raise table.wrong(1, 0, f"a rate is from 0.01 to 10,000 Hz, not {rate:g}")
    values = table.float32(range(len(channels)), factor, skip=2)
    times = start + np.rint(np.arange(len(values)) * (1e9 / rate)).astype(np.int64)
    return Stream(Modality(name, channels, unit, rate), times, values)


def _without_title(data: bytes) -> bytes:
    """``IBI.csv`` without the word in its first row, so that its rows are all numbers."""
    first, newline, rest = data.partition(b"\n")
    return first.split(b",")[0].strip() + b",0" + newline + rest


def _beats(table: Table) -> Stream:
    start = _unix_ns(table, 0)
    if len(table.names) != 2:
        raise mistake(table.file, f"has the time of a beat and an interval in each row, not {len(table.names)} numbers")
    offsets = table.numbers(0)[1:]
    for index, offset in enumerate(offsets):
        before = offsets[index - 1] if index else -np.inf
        if not (0 <= offset < 1e8 and offset > before):
            raise table.wrong(index + 1, 0, f"{offset:g} s is not later than the beat before")
    times = start + np.rint(offsets * 1e9).astype(np.int64)
    return Stream(heart_rate.RR_MODALITY, times, table.float32([1], skip=1))


def _unix_ns(table: Table, index: int) -> int:
    seconds = table.number(index, 0)
    if not 0 <= seconds < 4e9:
        raise table.wrong(index, 0, f"{seconds:g} is no Unix time in seconds")
    return round(float(seconds) * 1e6) * 1000
