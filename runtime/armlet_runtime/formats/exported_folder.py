"""Folders of tables that armlet exports, and reads back as what they were.

A folder has one table for each modality, ``MODALITY.csv`` or ``.parquet``, with the columns ``time_s`` (from the
recording's first sample) and one for each channel, as a training's folder of data has them; ``labels.csv`` or
``.parquet``; and ``recording.json``, which has what the tables lack: units, rates, person and date.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..errors import DataError
from ..files import write_atomic
from ..modalities import Modality
from ..signals import Label, Recording, Stream
from .cell_table import Table, arrow, mistake, read_parquet, read_table
from .timestamps import times_ns

TIME = "time_s"
"""The column of times in exported tables and in training's folders, in seconds."""

LABEL_COLUMNS = ("recording", "person", "start_s", "end_s", "label")
"""The columns of tables of labels, in exported folders and in training's."""

LABELS, ABOUT = "labels", "recording.json"
SUFFIXES = (".csv", ".parquet")


class About(msgspec.Struct, frozen=True):
    """``recording.json`` of an exported folder."""

    name: str
    person: str
    meta: dict[str, str]
    modalities: list[Modality]


def read(folder: Path) -> Recording:
    """A recording from a folder that :func:`write` made.

    Raises:
        DataError: A file is missing, damaged, or does not fit ``recording.json``.
        MissingExtraError: It is of Parquet files, and pyarrow is not installed.
    """
    try:
        about = msgspec.json.decode((folder / ABOUT).read_bytes(), type=About)
        files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES}
        tables = {
            stem: read_parquet(file.read_bytes(), str(file))
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
    if not table.rows:
        return Stream(modality, np.zeros(0, np.int64), np.zeros((0, len(channels)), np.float32))
    times, _ = times_ns(table, clock)
    if times[0] < 0:
        raise table.wrong(0, clock, "times count from 0")
    columns = [index for index in channels if index is not None]
    return Stream(modality, times, table.float32(columns))


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


def write(folder: Path, recording: Recording, suffix: str) -> list[Path]:
    """Write a new folder of tables, ``suffix`` one of :data:`SUFFIXES`; the files written.

    Args:
        folder: Must not exist.
        recording: Its streams' times count from the first sample of any.
        suffix: ``.csv`` or ``.parquet``.

    Raises:
        DataError: The folder exists or cannot be written.
        MissingExtraError: For Parquet without pyarrow.
    """
    table: Callable[[Sequence[str], Sequence[Any]], bytes] = _csv if suffix == ".csv" else _parquet()
    files: dict[str, bytes] = {}
    for name, stream in recording.streams.items():
        # Decimal digits of whole nanoseconds, so that every time is read back unchanged.
        times = (
            stream.times_ns / 1e9
            if suffix == ".parquet"
            else [f"{t // 10**9}.{t % 10**9:09d}" for t in stream.times_ns.tolist()]
        )
        files[f"{name}{suffix}"] = table((TIME, *stream.modality.channels), [times, *stream.values.T])
    labels = recording.labels
    seconds = [[label.start_ns / 1e9 for label in labels], [label.end_ns / 1e9 for label in labels]]
    who = [[recording.name] * len(labels), [recording.person] * len(labels)]
    files[f"{LABELS}{suffix}"] = table(LABEL_COLUMNS, [*who, *seconds, [label.name for label in labels]])
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
        return ["" if value != value else str(value) for value in column]
    return [value if isinstance(value, str) else repr(value) for value in column]


def _parquet() -> Callable[[Sequence[str], Sequence[Any]], bytes]:
    pa, parquet = arrow()

    def write(names: Sequence[str], columns: Sequence[Any]) -> bytes:
        text = names == LABEL_COLUMNS
        kinds = [pa.string(), pa.string(), pa.float64(), pa.float64(), pa.string()] if text else [None] * len(columns)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        buffer = io.BytesIO()
        parquet.write_table(pa.Table.from_arrays(arrays, names=list(names)), buffer)
        return buffer.getvalue()

    return write
