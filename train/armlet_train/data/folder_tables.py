"""Tables and samples in a user's folder: CSV, Parquet and MCAP, with every mistake by file and row."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.errors import DataError, MissingExtraError
from armlet_runtime.formats import ABOUT, LABEL_COLUMNS, LABELS, TIME
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Stream, read_recording
from armlet_runtime.windows import RATE_TOLERANCE

from .folder_mistakes import Mistakes

DESCRIPTION = "dataset.toml"
SAMPLES = "samples"
SUFFIXES = (".csv", ".parquet", ".mcap")


_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_MISSING = ("", "nan", "NaN", "NAN", "null", "NA")


@dataclass
class Row:
    """One row of the table. ``line``: its line in the file."""

    line: int
    recording: str
    person: str
    start_s: float | None
    end_s: float | None
    label: str


def _table_file(path: Path) -> Path | None:
    return next((path / name for name in ("labels.csv", "labels.parquet") if (path / name).is_file()), None)


def read_table(path: Path, mistakes: Mistakes) -> list[Row] | None:
    """Its rows, as far as they name a recording and a person; None if it cannot be read at all."""
    file = _table_file(path)
    if file is None:
        mistakes.add("labels.csv", f"is missing; it has the columns {', '.join(LABEL_COLUMNS)} (see train/DATA.md)")
        return None
    columns = _columns(file, path, LABEL_COLUMNS, mistakes)
    if columns is None:
        return None
    lines, text = columns
    starts = _numbers(file.name, "start_s", lines, text["start_s"], mistakes)
    ends = _numbers(file.name, "end_s", lines, text["end_s"], mistakes)
    rows = []
    for index, line in enumerate(lines.tolist()):
        recording, person, label = (str(text[name][index]).strip() for name in ("recording", "person", "label"))
        start, end = (None if math.isnan(value[index]) else float(value[index]) for value in (starts, ends))
        for name, value in (("recording", recording), ("person", person)):
            if not value:
                mistakes.add(file.name, "is empty", line, name)
        if recording and not re.fullmatch(r"[^/\\]+", recording):
            mistakes.add(
                file.name, f"'{recording}' is the name of a folder in {SAMPLES}/, without / or \\", line, "recording"
            )
        if label and (start is None or end is None):
            mistakes.add(
                file.name, f"'{label}' needs a start and an end", line, "start_s" if start is None else "end_s"
            )
        elif not label and (start is not None or end is not None):
            mistakes.add(file.name, "is empty, but the row has a start or an end", line, "label")
        if start is not None and end is not None and not 0 <= start < end:
            mistakes.add(
                file.name, f"a label ends after it starts, at 0 or later ({start:g} to {end:g})", line, "end_s"
            )
        if recording and person:
            rows.append(Row(line, recording, person, start, end, label))
    for name, own in by_recording(rows).items():
        strange = next((row for row in own if row.person != own[0].person), None)
        if strange is not None:
            problem = (
                f"recording {name} is of person {own[0].person} in row {own[0].line}, and of {strange.person} here"
            )
            mistakes.add(file.name, problem, strange.line, "person")
    return rows


def by_recording(table: list[Row]) -> dict[str, list[Row]]:
    """Recording to its rows, in the order of the table."""
    rows: dict[str, list[Row]] = {}
    for row in table:
        rows.setdefault(row.recording, []).append(row)
    return rows


def check_labels(path: Path, name: str, rows: list[Row], streams: dict[str, Stream], mistakes: Mistakes) -> None:
    """Check the labels of one recording: they must not overlap, nor lie outside its samples."""
    file = _table_file(path)
    assert file is not None
    spans = sorted(
        (row.start_s, row.end_s, row) for row in rows if row.label and row.start_s is not None and row.end_s is not None
    )
    for (_, end, before), (start, _, row) in pairwise(spans):
        if start < end:
            problem = f"begins before '{before.label}' of row {before.line} ends, at {end:g} s"
            mistakes.add(file.name, problem, row.line, "start_s")
    if not streams:
        return
    first = min(int(stream.times_ns[0]) for stream in streams.values()) / 1e9
    slowest = max(1 / stream.modality.rate_hz for stream in streams.values())
    last = max(int(stream.times_ns[-1]) for stream in streams.values()) / 1e9
    for start, end, row in spans:
        if start < first - slowest or end > last + 2 * slowest:
            problem = (
                f"'{row.label}' ({start:g} to {end:g} s) is outside the samples of {name} ({first:g} to {last:g} s)"
            )
            mistakes.add(file.name, problem, row.line, "start_s" if start < first - slowest else "end_s")


def sample_files(path: Path, name: str) -> list[Path]:
    """The files of samples; what an export puts beside them is for people, and for its import."""
    folder = path / SAMPLES / name
    if not folder.is_dir():
        return []
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in files if file.name != ABOUT and file.stem != LABELS)


def read_streams(path: Path, name: str, modalities: tuple[Modality, ...], mistakes: Mistakes) -> dict[str, Stream]:
    """Whatever of a recording can be read."""
    files = sample_files(path, name)
    if not files:
        mistakes.add(f"{SAMPLES}/{name}", "the table names this recording, but it has no file of samples")
    known = {modality.name: modality for modality in modalities}
    streams: dict[str, Stream] = {}
    for file in files:
        place = str(file.relative_to(path))
        modality = known.get(file.stem)
        if modality is None or file.suffix not in SUFFIXES:
            near = difflib.get_close_matches(file.stem, known, 1)
            hint = f"did you mean '{near[0]}'?" if near and file.suffix in SUFFIXES else f"known are {', '.join(known)}"
            mistakes.add(place, f"is not MODALITY{' or MODALITY'.join(SUFFIXES)} of {DESCRIPTION}; {hint}")
        elif modality.name in streams:
            mistakes.add(place, f"'{modality.name}' has another file here; remove one of them")
        else:
            stream = _stream(file, path, modality, mistakes)
            if stream is not None:
                streams[modality.name] = stream
    return streams


def _stream(file: Path, path: Path, modality: Modality, mistakes: Mistakes) -> Stream | None:
    place = str(file.relative_to(path))
    if file.suffix == ".mcap":
        return _mcap(file, place, modality, mistakes)
    columns = _columns(file, path, (TIME, *modality.channels), mistakes)
    if columns is None:
        return None
    lines, text = columns
    seconds = _numbers(place, TIME, lines, text[TIME], mistakes)
    values = np.stack(
        [_numbers(place, channel, lines, text[channel], mistakes) for channel in modality.channels], axis=1
    )
    if not len(lines):
        mistakes.add(place, "has no row of samples; leave the file out if the modality was not recorded")
        return None
    empty = np.isnan(seconds)
    mistakes.rows(place, TIME, lines[empty], lambda _: "a sample needs a time; only values may be missing")
    times, kept, at = np.rint(seconds[~empty] * 1e9), values[~empty], lines[~empty]
    mistakes.rows(place, TIME, at[times < 0], lambda _: "times count from 0")
    falls = np.flatnonzero(np.diff(times) <= 0) + 1
    problem = "is not later than the time in the row before; sort the rows, and keep one of each time"
    mistakes.rows(place, TIME, at[falls], lambda index: f"{times[falls[index]] / 1e9:g} s {problem}")
    if empty.any() or (times < 0).any() or len(falls):
        return None
    _check_rate(place, times, modality, mistakes)
    return Stream(modality, times.astype(np.int64), kept.astype(np.float32))


def _check_rate(place: str, times: NDArray[np.float64], modality: Modality, mistakes: Mistakes) -> None:
    if len(times) < 2:
        return
    rate = 1e9 / float(np.median(np.diff(times)))
    if abs(rate / modality.rate_hz - 1) > RATE_TOLERANCE:
        problem = f"samples come at {rate:.4g} Hz; {DESCRIPTION} says {modality.rate_hz:g} Hz for '{modality.name}'"
        mistakes.add(place, f"{problem}. Correct it, or resample (with a low-pass filter) to that rate", None, TIME)


def _mcap(file: Path, place: str, modality: Modality, mistakes: Mistakes) -> Stream | None:
    try:
        recording = read_recording(file)
    except DataError as error:
        mistakes.add(place, str(error).removeprefix(f"{file}: ").removeprefix(f"{file} "))
        return None
    stream = recording.streams.get(modality.name)
    if stream is None or not len(stream.times_ns):
        has = ", ".join(recording.streams) or "no stream"
        mistakes.add(place, f"has no samples of '{modality.name}' (it has {has})")
        return None
    got = stream.modality
    if (got.channels, got.unit) != (modality.channels, modality.unit):
        described = f"{', '.join(modality.channels)} in {modality.unit}"
        mistakes.add(place, f"'{got.name}' is {', '.join(got.channels)} in {got.unit}; {DESCRIPTION} says {described}")
        return None
    _check_rate(place, stream.times_ns.astype(np.float64), modality, mistakes)
    return Stream(modality, stream.times_ns, stream.values)


def _columns(
    file: Path, path: Path, wanted: tuple[str, ...], mistakes: Mistakes
) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]] | None:
    """Line of each row, and the wanted columns unchanged (text, or a Parquet file's numbers)."""
    try:
        import pyarrow as pa
        from pyarrow import csv, parquet
    except ImportError as error:
        raise MissingExtraError("reading tables needs pyarrow: pip install 'armlet[train]'") from error

    place = str(file.relative_to(path))
    ragged: list[tuple[int, int, int]] = []

    def skip(row: Any) -> str:
        ragged.append((row.number, row.actual_columns, row.expected_columns))
        return "skip"

    try:
        if file.suffix == ".parquet":
            table = parquet.read_table(file)
            first = 1
        else:
            names = file.open(encoding="utf-8-sig").readline().rstrip("\n\r").split(",")
            table = csv.read_csv(
                file,
                csv.ReadOptions(use_threads=False),
                csv.ParseOptions(invalid_row_handler=skip, ignore_empty_lines=False),
                csv.ConvertOptions(
                    column_types={name.strip('"'): pa.string() for name in names}, strings_can_be_null=False
                ),
            )
            first = 2
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        mistakes.add(place, f"cannot be read as a table: {error}")
        return None
    bad = np.array([number for number, _, _ in ragged], np.int64)
    mistakes.rows(
        place, None, bad, lambda index: f"has {ragged[index][1]} columns; the first line has {ragged[index][2]}"
    )
    lacking = [name for name in wanted if name not in table.column_names]
    for name in lacking:
        near = difflib.get_close_matches(name, table.column_names, 1)
        hint = f"'{near[0]}' may be meant" if near else f"there are {', '.join(table.column_names)}"
        mistakes.add(place, f"is missing ({hint})", None, name)
    strange = [name for name in table.column_names if name not in wanted]
    if file.parent.parent.name == SAMPLES:
        for name in strange:
            mistakes.add(place, f"is no channel of {DESCRIPTION}; take it out, or name it there", None, name)
    if lacking:
        return None
    lines = np.setdiff1d(np.arange(first, first + table.num_rows + len(bad)), bad)
    return lines, {name: _array(table[name]) for name in wanted}


def _array(column: Any) -> NDArray[Any]:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.asarray(column.cast(pa.float64()).to_numpy())
    return np.asarray(column.cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False))


def _numbers(
    place: str, name: str, lines: NDArray[np.int64], column: NDArray[Any], mistakes: Mistakes
) -> NDArray[np.float64]:
    """A column as numbers, NaN for a missing value."""
    import pyarrow as pa
    from pyarrow import compute

    if column.dtype == object:
        text = pa.array(column, pa.string())
        missing = np.asarray(compute.is_in(text, pa.array(_MISSING)).to_numpy(zero_copy_only=False))
        number = np.asarray(compute.match_substring_regex(text, _NUMBER).to_numpy(zero_copy_only=False))
        wrong = np.flatnonzero(~missing & ~number)
        mistakes.rows(place, name, lines[wrong], lambda index: f"'{column[wrong[index]]}' is not a number")
        values = np.full(len(column), np.nan)
        values[number] = compute.cast(
            compute.utf8_trim_whitespace(text.filter(pa.array(number))), pa.float64()
        ).to_numpy()
    else:
        values = column.astype(np.float64)
    infinite = np.flatnonzero(np.isinf(values.astype(np.float32)) & ~np.isnan(values))
    mistakes.rows(place, name, lines[infinite], lambda index: f"{values[infinite[index]]:g} is infinite, or too large")
    values[infinite] = np.nan
    return values
