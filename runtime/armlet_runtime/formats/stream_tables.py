"""Tables of samples: CSV and Parquet with a column of times, and the folders of them that armlet exports.

An exported folder has one table for each modality, ``MODALITY.csv`` or ``.parquet``, with the columns ``time_s`` (from
the recording's first sample) and one for each channel, as a training's folder of data has them; ``labels.csv`` or
``.parquet``; and ``recording.json``, which says what the tables do not: units, rates, who and when. It reads back as
what it was. A table that somebody else made says in its columns' names what it holds: see :func:`streams_of`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..arrays import Int64
from ..errors import DataError, MissingExtraError, UsageError
from ..files import write_atomic
from ..modalities import Modality
from ..signals import BEGAN, Label, Recording, Stream
from ..wearables import UNITS, XYZ
from .table_reader import Table, assumed, canonical, iso_text, mistake, rate_of, read_table, split_unit, times_ns

TIME = "time_s"
"""The column of times in exported tables and in training's folders, in seconds."""

LABEL_COLUMNS = ("recording", "person", "start_s", "end_s", "label")
"""The columns of tables of labels, in exported folders and in training's."""

LABELS, ABOUT = "labels", "recording.json"
SUFFIXES = (".csv", ".parquet")

_TIMES = (
    TIME,
    "time",
    "timestamp",
    "timestamps",
    "t",
    "date",
    "datetime",
    "unix",
    "unixtime",
    "seconds",
    "seconds_elapsed",
    "sample_time",
)

# What others call a modality.
_CALLED: Mapping[str, str] = {
    "accelerometer": "acc", "acceleration": "acc", "accel": "acc", "a": "acc",
    "gyroscope": "gyro", "gyr": "gyro", "g": "gyro", "w": "gyro",
    "magnetometer": "mag", "magn": "mag", "m": "mag",
    "heart_rate": "hr", "heartrate": "hr", "heart rate": "hr", "pulse": "hr",
    "temperature": "temp", "gsr": "eda", "resp": "rsp", "respiration": "rsp", "sao2": "spo2", "bvp": "ppg",
}  # fmt: skip


class About(msgspec.Struct, frozen=True):
    """``recording.json`` of an exported folder."""

    name: str
    person: str
    meta: dict[str, str]
    modalities: list[Modality]


@dataclass(frozen=True)
class Columns:
    """One modality of a table, as ``--stream`` says it: its columns, and the unit they are in."""

    modality: str
    unit: str
    names: tuple[str, ...]


def parse_stream(text: str) -> Columns:
    """Read ``acc=ax,ay,az`` or ``acc[m/s2]=ax,ay,az``.

    Raises:
        UsageError: It is not of this form.
    """
    title, _, names = text.partition("=")
    modality, unit = split_unit(title)
    columns = tuple(name.strip() for name in names.split(","))
    if not re.fullmatch(r"\w+", modality) or not all(columns) or len(set(columns)) != len(columns):
        raise UsageError(f"--stream {text}: give MODALITY=COLUMN,COLUMN, or MODALITY[UNIT]=COLUMN,COLUMN")
    return Columns(modality, unit, columns)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_samples(
    data: bytes, file: str, name: str, person: str, wanted: Sequence[Columns] = (), time: str | None = None
) -> Recording:
    """A recording from one table that somebody made.

    Args:
        data: The file; Parquet if it begins as such, else text.
        file: Its name, for messages; a table of x, y and z alone is of the modality that it is named after.
        name: Of the recording.
        person: Who wore it.
        wanted: Which columns are what; none to tell it from their names.
        time: The column of times, with its unit in brackets if its name has none; None to tell it from their names.

    Raises:
        DataError: It is not such a table.
        MissingExtraError: It is Parquet, and pyarrow is not installed.
    """
    table = _parquet_table(data, file) if data.startswith(b"PAR1") else read_table(data, file)
    if not table.lines:
        raise mistake(file, "has no rows of samples")
    table, clock = _clock(table, time)
    times, absolute = times_ns(table, clock)
    streams, told = streams_of(table, clock, times, wanted)
    began = min(int(stream.times_ns[0]) for stream in streams)
    if not absolute and began < 0:
        raise table.wrong(0, clock, "times count from 0")
    # Times since 1970 become a beginning and times since then; others are the recording's own clock already.
    shift, meta = (began, {BEGAN: iso_text(began)}) if absolute else (0, {})
    untold = [one for one in streams if one.modality.name not in told]
    return Recording(
        name,
        person,
        {"source": file, **meta, **assumed(untold)},
        {one.modality.name: Stream(one.modality, one.times_ns - shift, one.values) for one in streams},
    )


def _clock(table: Table, time: str | None) -> tuple[Table, int]:
    """The column of times, and the table with its unit in that column's name."""
    if time is None:
        lower = [split_unit(name)[0].lower() for name in table.names]
        found = next((lower.index(name) for name in _TIMES if name in lower), None)
        if found is None:
            starts = [i for i, name in enumerate(lower) if re.match(r"(time|timestamp|t)_", name)]
            found = starts[0] if starts else None
        if found is None:
            raise mistake(
                table.file, f"has no column of times (there are {', '.join(table.names)}); name it with --time", 1
            )
        return table, found
    column = table.column(time)
    if column is None:
        column = table.column(split_unit(time)[0])
        if column is None:
            raise mistake(table.file, f"has no column '{time}'; there are {', '.join(table.names)}", 1)
        names = (*table.names[:column], time, *table.names[column + 1 :])
        table = Table(table.file, names, table.lines, table.columns)
    return table, column


def streams_of(table: Table, clock: int, times: Int64, wanted: Sequence[Columns] = ()) -> tuple[list[Stream], set[str]]:
    """The streams that a table's columns hold, and the modalities whose unit it tells.

    A row in which a modality has no value is no sample of it.

    A column is ``MODALITY_CHANNEL`` (or with a dot or a blank) or ``MODALITY``, each with its unit in brackets; what is
    usual is understood, such as ``ax`` or ``accelerometer.x``. Values come in the units that models are trained in.

    Raises:
        DataError: A cell is no number, or no column tells what it holds.
    """
    groups = {one.modality: one for one in wanted} or _told(table, clock)
    streams, told = [], set()
    for modality, one in groups.items():
        indices = [table.column(name) for name in one.names]
        for name, index in zip(one.names, indices, strict=True):
            if index is None:
                raise mistake(table.file, f"has no column '{name}'; there are {', '.join(table.names)}", 1)
        columns = [index for index in indices if index is not None]
        unit = one.unit or split_unit(table.names[columns[0]])[1]
        if unit:
            told.add(modality)
        unit, factor = canonical(modality, unit)
        values = np.stack([table.numbers(index) for index in columns], axis=1)
        there = ~np.isnan(values).all(axis=1)
        if not there.any():
            continue
        known = Modality(modality, _channels(table, modality, columns, bool(wanted)), unit, rate_of(times[there]))
        narrow = table.float32(columns, values[there], np.flatnonzero(there), factor)
        streams.append(Stream(known, times[there], narrow))
    if not streams:
        raise mistake(table.file, "has no samples")
    return streams, told


def _told(table: Table, clock: int) -> dict[str, Columns]:
    """Modality to its columns, by the names of these."""
    stem = Path(table.file).stem.lower()
    file = _CALLED.get(stem, stem) if len(stem) > 1 else stem
    groups: dict[str, list[int]] = {}
    for index, title in enumerate(table.names):
        name, _ = split_unit(title)
        if index == clock or not name or name.lower() in _TIMES:  # some loggers write the time in several ways
            continue
        modality, _ = _parts(name)
        if not modality and name.lower() in XYZ and file not in UNITS:
            problem = f"does not say what {name} is of; say it with --stream, as in --stream 'acc[g]=x,y,z'"
            raise mistake(table.file, problem, 1, title)
        # A file that is named after a modality holds the channels of that one.
        groups.setdefault(modality or (file if file in UNITS else _word(name)), []).append(index)
    if not groups:
        raise mistake(table.file, "has no column besides the times", 1)
    found = {}
    for modality, indices in groups.items():
        units = {split_unit(table.names[index])[1] for index in indices}
        if len(units) > 1:
            problem = f"has '{modality}' in {' and '.join(sorted(map(repr, units)))}; say it with --stream"
            raise mistake(table.file, problem, 1)
        names = [table.names[index] for index in indices]
        ends = [split_unit(name)[0][-1:].lower() for name in names]
        if sorted(ends) == list(XYZ):  # whatever order a logger writes them in
            names = [names[ends.index(axis)] for axis in XYZ]
        found[modality] = Columns(modality, units.pop(), tuple(names))
    return found


def _parts(name: str) -> tuple[str, str]:
    """Modality and channel that a column's name without its unit tells; a modality is empty if it tells none."""
    lower = name.lower()
    if lower in UNITS:
        return lower, ""
    if lower in _CALLED and len(lower) > 1:
        return _CALLED[lower], ""
    head, *tail = re.split(r"[_.\- ]", name, maxsplit=1)
    if tail and (head.lower() in UNITS or head.lower() in _CALLED):
        return _CALLED.get(head.lower(), head.lower()), tail[0]
    if lower[-1:] in XYZ and (lower[:-1] in UNITS or lower[:-1] in _CALLED):
        return _CALLED.get(lower[:-1], lower[:-1]), lower[-1]
    last = re.fullmatch(r"(.+)[_.\- ]([^_.\- ]+)", name)
    return (_word(last[1]), last[2]) if last else ("", name)


def _word(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_") or "column"


def _channels(table: Table, modality: str, columns: Sequence[int], given: bool) -> tuple[str, ...]:
    names = [split_unit(table.names[index])[0] for index in columns]
    if len(names) == 3 and [name[-1:].lower() for name in names] == list(XYZ):
        return XYZ
    if len(names) == 1 and modality in _SINGLE:
        return (_SINGLE[modality],)
    short = names if given else [_parts(name)[1] or name for name in names]
    return tuple(short) if len(set(short)) == len(short) else tuple(names)


# What armlet's profiles call the only channel of a modality.
_SINGLE = {"hr": "bpm", "rr": "interval", "ecg": "ecg", "spo2": "spo2"}


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet needs pyarrow, which is not installed: pip install 'armlet[recordings]'"
        ) from error
    return pyarrow, parquet


def _parquet_table(data: bytes, file: str) -> Table:
    """A Parquet file as the text that it would be in a CSV file, so that both are understood alike."""
    pa, parquet = _arrow()
    try:
        table = parquet.read_table(pa.BufferReader(data))
        columns = []
        for column in table.columns:
            if pa.types.is_timestamp(column.type):
                column = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64())
            columns.append(["" if one is None else str(one) for one in column.to_pylist()])
        names = [
            f"{name} [ns]" if pa.types.is_timestamp(kind) else name
            for name, kind in zip(table.column_names, table.schema.types, strict=True)
        ]
    except Exception as error:  # Arrow raises several kinds on bytes that it cannot read
        raise mistake(file, f"is a damaged Parquet file: {error}") from error
    return Table(file, tuple(names), list(range(1, table.num_rows + 1)), columns)


# --- folders that armlet exported -------------------------------------------------------------------------------------


def read_folder(folder: Path) -> Recording:
    """A recording from a folder that :func:`write_folder` made.

    Raises:
        DataError: Something is missing, damaged, or not what ``recording.json`` says.
        MissingExtraError: It is of Parquet files, and pyarrow is not installed.
    """
    try:
        about = msgspec.json.decode((folder / ABOUT).read_bytes(), type=About)
        files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES}
        tables = {
            stem: _parquet_table(file.read_bytes(), str(file))
            if file.suffix == ".parquet"
            else read_table(file.read_bytes(), str(file), ",")
            for stem, file in files.items()
        }
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise mistake(str(folder / ABOUT), f"is not what armlet writes: {error}") from error
    streams = {}
    for modality in about.modalities:
        table = tables.get(modality.name)
        if table is None:
            raise mistake(str(folder), f"has no {modality.name}.csv or .parquet, though {ABOUT} names it")
        streams[modality.name] = _stream(table, modality)
    labels = _read_labels(tables[LABELS]) if LABELS in tables else []
    return Recording(about.name, about.person, about.meta, streams, labels)


def _stream(table: Table, modality: Modality) -> Stream:
    clock = table.column(TIME)
    channels = [table.names.index(name) if name in table.names else None for name in modality.channels]
    if clock is None or None in channels:
        raise mistake(table.file, f"needs the columns {TIME}, {', '.join(modality.channels)}", 1)
    if not table.lines:
        return Stream(modality, np.zeros(0, np.int64), np.zeros((0, len(channels)), np.float32))
    times, _ = times_ns(table, clock)
    if times[0] < 0:
        raise table.wrong(0, clock, "times count from 0")
    columns = [index for index in channels if index is not None]
    values = np.stack([table.numbers(index) for index in columns], axis=1) if columns else np.zeros((len(times), 0))
    return Stream(modality, times, table.float32(columns, values, range(len(times))))


def _read_labels(table: Table) -> list[Label]:
    columns = [table.column(name) for name in LABEL_COLUMNS]
    if None in columns:
        raise mistake(table.file, f"needs the columns {', '.join(LABEL_COLUMNS)}", 1)
    _, _, start, end, label = (column for column in columns if column is not None)
    starts, ends = table.numbers(start), table.numbers(end)
    labels = []
    for index, name in enumerate(table.columns[label]):
        if not name:
            continue  # the row of a recording without labels
        if not 0 <= starts[index] < ends[index] < 4e9:
            raise table.wrong(index, end, "a label ends after it starts, at 0 or later")
        labels.append(Label(round(starts[index] * 1e9), round(ends[index] * 1e9), name))
    return labels


def write_folder(folder: Path, recording: Recording, suffix: str) -> list[Path]:
    """Write a new folder of tables, ``suffix`` one of :data:`SUFFIXES`; the files written.

    Args:
        folder: Must not exist.
        recording: Its streams' times count from the first sample of any.
        suffix: ``.csv`` or ``.parquet``.

    Raises:
        DataError: The folder exists or cannot be written.
        MissingExtraError: For Parquet without pyarrow.
    """
    write: Callable[[Sequence[str], Sequence[Any]], bytes] = _csv if suffix == ".csv" else _parquet()
    files: dict[str, bytes] = {}
    for name, stream in recording.streams.items():
        # Decimal digits of whole nanoseconds, so that every time reads back as it was.
        times = (
            stream.times_ns / 1e9
            if suffix == ".parquet"
            else [f"{t // 10**9}.{t % 10**9:09d}" for t in stream.times_ns.tolist()]
        )
        files[f"{name}{suffix}"] = write((TIME, *stream.modality.channels), [times, *stream.values.T])
    labels = recording.labels
    seconds = [[one.start_ns / 1e9 for one in labels], [one.end_ns / 1e9 for one in labels]]
    who = [[recording.name] * len(labels), [recording.person] * len(labels)]
    files[f"{LABELS}{suffix}"] = write(LABEL_COLUMNS, [*who, *seconds, [one.name for one in labels]])
    about = About(recording.name, recording.person, recording.meta, [s.modality for s in recording.streams.values()])
    files[ABOUT] = msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n"
    for name in recording.streams:
        if not re.fullmatch(r"\w[\w.+-]*", name) or name == LABELS:
            raise DataError(f"the modality '{name}' cannot be the name of a file; export EDF+ instead")
    try:
        folder.mkdir()
        for name, data in files.items():  # recording.json last: a folder without it is not whole
            write_atomic(folder / name, data)
    except FileExistsError as error:
        raise DataError(f"{folder} exists already: choose another name for the export") from error
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}") from error
    return [folder / name for name in files]


def _csv(names: Sequence[str], columns: Sequence[Any]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    # The shortest digits that read back as the same float32; nothing for NaN.
    cells = [_cells(column) for column in columns]
    writer.writerows(zip(*cells, strict=True))
    return text.getvalue().encode()


def _cells(column: Any) -> list[str]:
    if isinstance(column, np.ndarray):
        return ["" if one != one else str(one) for one in column]
    return [one if isinstance(one, str) else repr(one) for one in column]


def _parquet() -> Callable[[Sequence[str], Sequence[Any]], bytes]:
    pa, parquet = _arrow()

    def write(names: Sequence[str], columns: Sequence[Any]) -> bytes:
        text = names == LABEL_COLUMNS
        kinds = [pa.string(), pa.string(), pa.float64(), pa.float64(), pa.string()] if text else [None] * len(columns)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        buffer = io.BytesIO()
        parquet.write_table(pa.Table.from_arrays(arrays, names=list(names)), buffer)
        return buffer.getvalue()

    return write
