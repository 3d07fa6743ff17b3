"""Data sets of one's own: a folder in armlet's format, and what is wrong with it in its owner's terms.

The format is described, with an example that a test runs, in ``train/DATA.md``: ``dataset.toml`` (modalities, splits),
``labels.csv`` or ``labels.parquet`` (recording, person, start_s, end_s, label) and ``samples/RECORDING/MODALITY.csv``,
``.parquet`` or ``.mcap``. :func:`check` reads all of it and finds every mistake; :func:`entries` reads the description
and the table and refuses the folder at the first.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import tomllib
from numpy.typing import NDArray

from armlet_runtime.errors import DataError, MissingExtraError
from armlet_runtime.formats import ABOUT, LABEL_COLUMNS, LABELS, TIME
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import RATE_TOLERANCE, Label, Recording, Stream, read_recording

from .datasets import SPLITS, DataSet, Entry

T = TypeVar("T")

DESCRIPTION = "dataset.toml"
SAMPLES = "samples"
SUFFIXES = (".csv", ".parquet", ".mcap")

# Of one kind of mistake in one column of one file, so many rows are named, and the others counted.
ROWS_NAMED = 3

_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_MISSING = ("", "nan", "NaN", "NAN", "null", "NA")


class ModalityDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[modalities.NAME]`` of ``dataset.toml``."""

    channels: tuple[str, ...]
    unit: str
    rate_hz: float


class SplitDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[splits]`` of ``dataset.toml``: people by split."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``dataset.toml``."""

    name: str
    modalities: dict[str, ModalityDescription]
    splits: SplitDescription | None = None


class Mistake(msgspec.Struct, frozen=True):
    """One thing that is wrong.

    Attributes:
        file: Relative to the folder.
        row: Line of a text file (the header is line 1), or row of a Parquet file (from 1); None for all of it.
        column: By name; for ``dataset.toml`` the key; None for all of them.
        problem: What is wrong and what to do.
    """

    file: str
    row: int | None
    column: str | None
    problem: str

    def __str__(self) -> str:
        """``file, row 7, column x: problem``."""
        place = [self.file]
        place += [f"row {self.row}"] if self.row is not None else []
        place += [f"column {self.column}"] if self.column is not None else []
        return f"{', '.join(place)}: {self.problem}"


class CheckReport(msgspec.Struct, frozen=True):
    """What ``armlet data check --json`` writes; ``more``: how many mistakes were found beyond those listed."""

    folder: str
    recordings: int
    people: int
    mistakes: list[Mistake]
    more: int


@dataclass
class _Mistakes:
    """Collects mistakes about one file at a time."""

    limit: float = math.inf
    found: list[Mistake] = field(default_factory=list)
    more: int = 0

    def add(self, file: str, problem: str, row: int | None = None, column: str | None = None) -> None:
        if len(self.found) < self.limit:
            self.found.append(Mistake(file, row, column, problem))
        else:
            self.more += 1

    def rows(self, file: str, column: str | None, rows: NDArray[np.int64], problem: Callable[[int], str]) -> None:
        """The same mistake in some rows; ``problem`` of an index into them."""
        for index in range(min(len(rows), ROWS_NAMED)):
            self.add(file, problem(index), int(rows[index]), column)
        if len(rows) > ROWS_NAMED:
            self.add(file, f"the same in {len(rows) - ROWS_NAMED} more rows", None, column)


@dataclass
class _Row:
    """One row of the table. ``line``: where it stands."""

    line: int
    recording: str
    person: str
    start_s: float | None
    end_s: float | None
    label: str


def is_folder(path: Path) -> bool:
    """Whether a path is meant as a data set in this format."""
    return (path / DESCRIPTION).is_file()


def open_folder(path: Path) -> tuple[DataSet, list[Entry]]:
    """The data set in a folder, and its recordings, not yet read.

    Raises:
        DataError: Its description or table has a mistake.
    """
    mistakes = _Mistakes()
    description = _description(path, mistakes)
    table = _table(path, mistakes)
    split_of = _splits(description, table, mistakes) if description is not None and table is not None else {}
    if mistakes.found or description is None or table is None:
        raise _refusal(path, mistakes)
    modalities = _modalities(description)
    rows = _by_recording(table)
    entries = [
        Entry(name, of[0].person, split_of[of[0].person], partial(_read, path, name, modalities, tuple(of)))
        for name, of in rows.items()
    ]
    labels = tuple(sorted({row.label for row in table if row.label}))
    return DataSet(description.name, description.name, modalities, labels, lambda _: entries), entries


def check(path: Path, limit: int = 200) -> CheckReport:
    """Read everything and list what is wrong, at most ``limit`` mistakes."""
    mistakes = _Mistakes(limit)
    description = _description(path, mistakes)
    table = _table(path, mistakes)
    if table is None:
        return CheckReport(str(path), 0, 0, mistakes.found, mistakes.more)
    rows = _by_recording(table)
    if description is not None:
        _splits(description, table, mistakes)
        modalities = _modalities(description)
        for name, of in rows.items():
            streams = _streams(path, name, modalities, mistakes)
            _check_labels(path, name, of, streams, mistakes)
        _check_strangers(path, rows, modalities, mistakes)
    people = {row.person for row in table}
    return CheckReport(str(path), len(rows), len(people), mistakes.found, mistakes.more)


def _refusal(path: Path, mistakes: _Mistakes) -> DataError:
    others = len(mistakes.found) - 1
    more = f" ({others} more)" if others else ""
    return DataError(f"{path}/{mistakes.found[0]}{more}; 'armlet data check {path}' lists every mistake")


def _read(path: Path, name: str, modalities: tuple[Modality, ...], rows: tuple[_Row, ...]) -> Recording:
    mistakes = _Mistakes()
    streams = _streams(path, name, modalities, mistakes)
    if mistakes.found:
        raise _refusal(path, mistakes)
    labels = [
        Label(round(row.start_s * 1e9), round(row.end_s * 1e9), row.label)
        for row in rows
        if row.label and row.start_s is not None and row.end_s is not None
    ]
    return Recording(name, rows[0].person, {"source": str(path)}, streams, sorted(labels, key=lambda one: one.start_ns))


# dataset.toml


def _description(path: Path, mistakes: _Mistakes) -> Description | None:
    try:
        table = tomllib.loads((path / DESCRIPTION).read_text())
    except FileNotFoundError:
        mistakes.add(DESCRIPTION, "is missing; it says what the modalities are (see train/DATA.md)")
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        line = re.search(r"line (\d+)", str(error))
        mistakes.add(DESCRIPTION, f"is not TOML: {error}", int(line[1]) if line else None)
        return None
    before = len(mistakes.found) + mistakes.more
    _check_keys(table, "", Description, ("name", "modalities"), mistakes)
    modalities = table.get("modalities")
    for name, described in modalities.items() if isinstance(modalities, dict) else []:
        if isinstance(described, dict):
            needed = ("channels", "unit", "rate_hz")
            _check_keys(described, f"modalities.{name}.", ModalityDescription, needed, mistakes)
            _check_types(described, f"modalities.{name}", ModalityDescription, mistakes)
    if isinstance(table.get("splits"), dict):
        _check_keys(table["splits"], "splits.", SplitDescription, SPLITS, mistakes)
    if len(mistakes.found) + mistakes.more > before:
        return None
    description = _check_types(table, "", Description, mistakes)
    if description is not None:
        _check_modalities(description, mistakes)
    return description if len(mistakes.found) + mistakes.more == before else None


def _check_types(table: dict[str, Any], place: str, kind: type[T], mistakes: _Mistakes) -> T | None:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        inside = re.search(r" - at `\$(.*?)`$", str(error))
        problem = re.sub(r" - at `.*`$", "", str(error))
        if "unknown field" not in problem and "missing required" not in problem:  # named by _check_keys
            mistakes.add(DESCRIPTION, problem, None, (place + (inside[1] if inside else "")).strip(".") or None)
        return None


def _check_keys(table: dict[str, Any], place: str, kind: Any, needed: Iterable[str], mistakes: _Mistakes) -> None:
    known = [one.name for one in msgspec.structs.fields(kind)]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            mistakes.add(DESCRIPTION, f"no such key; {hint}", None, place + key)
    for key in needed:
        if key not in table:
            mistakes.add(DESCRIPTION, "is missing", None, place + key)


def _check_modalities(description: Description, mistakes: _Mistakes) -> None:
    if not description.modalities:
        mistakes.add(DESCRIPTION, "there must be at least one modality", None, "modalities")
    for name, one in description.modalities.items():
        place = f"modalities.{name}"
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            mistakes.add(DESCRIPTION, "a modality's name is of letters, digits and _ only", None, place)
        if not one.channels or len(set(one.channels)) != len(one.channels):
            mistakes.add(DESCRIPTION, "needs at least one channel, and none twice", None, f"{place}.channels")
        if TIME in one.channels:
            mistakes.add(DESCRIPTION, f"{TIME} is the name of the time", None, f"{place}.channels")
        if not 0 < one.rate_hz < math.inf:
            mistakes.add(DESCRIPTION, f"a rate is above 0 Hz, not {one.rate_hz:g}", None, f"{place}.rate_hz")


def _modalities(description: Description) -> tuple[Modality, ...]:
    return tuple(Modality(name, one.channels, one.unit, one.rate_hz) for name, one in description.modalities.items())


def _splits(description: Description, table: list[_Row], mistakes: _Mistakes) -> dict[str, str]:
    """Person to split: as the description says, or a fifth each for validation and test by the hash of the name."""
    people = sorted({row.person for row in table})
    if description.splits is None:
        ranked = sorted(people, key=lambda person: hashlib.sha256(person.encode()).digest())
        fifth = max(1, len(ranked) // 5)
        return {
            person: "test" if place < fifth else "validation" if place < 2 * fifth else "train"
            for place, person in enumerate(ranked)
        }
    split_of: dict[str, str] = {}
    for split in SPLITS:
        for person in getattr(description.splits, split):
            if person in split_of:
                problem = f"person {person} is in '{split_of[person]}' too; a person belongs to one split"
                mistakes.add(DESCRIPTION, problem, None, f"splits.{split}")
            elif person not in people:
                mistakes.add(DESCRIPTION, f"person {person} has no recording in the table", None, f"splits.{split}")
            split_of.setdefault(person, split)
    for person in people:
        if person not in split_of:
            mistakes.add(DESCRIPTION, f"person {person} of the table is in no split", None, "splits")
    return split_of


# The table of labels and people


def _table_file(path: Path) -> Path | None:
    return next((path / name for name in ("labels.csv", "labels.parquet") if (path / name).is_file()), None)


def _table(path: Path, mistakes: _Mistakes) -> list[_Row] | None:
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
            rows.append(_Row(line, recording, person, start, end, label))
    for name, of in _by_recording(rows).items():
        strange = next((row for row in of if row.person != of[0].person), None)
        if strange is not None:
            problem = f"recording {name} is of person {of[0].person} in row {of[0].line}, and of {strange.person} here"
            mistakes.add(file.name, problem, strange.line, "person")
    return rows


def _by_recording(table: list[_Row]) -> dict[str, list[_Row]]:
    rows: dict[str, list[_Row]] = {}
    for row in table:
        rows.setdefault(row.recording, []).append(row)
    return rows


def _check_labels(path: Path, name: str, rows: list[_Row], streams: dict[str, Stream], mistakes: _Mistakes) -> None:
    """Labels of one recording: none over another, none outside its samples."""
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


# Samples


def _sample_files(path: Path, name: str) -> list[Path]:
    """The files of samples; what an export puts beside them is for people, and for its import."""
    folder = path / SAMPLES / name
    if not folder.is_dir():
        return []
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in files if file.name != ABOUT and file.stem != LABELS)


def _streams(path: Path, name: str, modalities: tuple[Modality, ...], mistakes: _Mistakes) -> dict[str, Stream]:
    """Whatever of a recording can be read."""
    files = _sample_files(path, name)
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
            mistakes.add(place, f"'{modality.name}' has another file here; keep one")
        else:
            stream = _stream(file, path, modality, mistakes)
            if stream is not None:
                streams[modality.name] = stream
    return streams


def _stream(file: Path, path: Path, modality: Modality, mistakes: _Mistakes) -> Stream | None:
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


def _check_rate(place: str, times: NDArray[np.float64], modality: Modality, mistakes: _Mistakes) -> None:
    if len(times) < 2:
        return
    rate = 1e9 / float(np.median(np.diff(times)))
    if abs(rate / modality.rate_hz - 1) > RATE_TOLERANCE:
        problem = f"samples come at {rate:.4g} Hz; {DESCRIPTION} says {modality.rate_hz:g} Hz for '{modality.name}'"
        mistakes.add(place, f"{problem}. Correct it, or resample (with a low-pass filter) to that rate", None, TIME)


def _mcap(file: Path, place: str, modality: Modality, mistakes: _Mistakes) -> Stream | None:
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
        said = f"{', '.join(modality.channels)} in {modality.unit}"
        mistakes.add(place, f"'{got.name}' is {', '.join(got.channels)} in {got.unit}; {DESCRIPTION} says {said}")
        return None
    _check_rate(place, stream.times_ns.astype(np.float64), modality, mistakes)
    return Stream(modality, stream.times_ns, stream.values)


def _check_strangers(
    path: Path, rows: dict[str, list[_Row]], modalities: tuple[Modality, ...], mistakes: _Mistakes
) -> None:
    """Recordings with samples that the table does not name, and modalities that no recording has."""
    folder = path / SAMPLES
    if not folder.is_dir():
        return
    for one in sorted(folder.iterdir()):
        if one.is_dir() and one.name not in rows:
            near = difflib.get_close_matches(one.name, rows, 1)
            hint = f"; did the table mean it by '{near[0]}'?" if near else ""
            mistakes.add(f"{SAMPLES}/{one.name}", f"no row of the table names this recording{hint}")
    have = {file.stem for name in rows for file in _sample_files(path, name)}
    for modality in modalities:
        if modality.name not in have:
            mistakes.add(DESCRIPTION, "no recording has a file of this modality", None, f"modalities.{modality.name}")


# Tables of text or numbers


def _columns(
    file: Path, path: Path, wanted: tuple[str, ...], mistakes: _Mistakes
) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]] | None:
    """Line of each row, and the wanted columns as they stand (text, or a Parquet file's numbers)."""
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
    place: str, name: str, lines: NDArray[np.int64], column: NDArray[Any], mistakes: _Mistakes
) -> NDArray[np.float64]:
    """A column as numbers, NaN where there is none."""
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


def summary_lines(report: CheckReport) -> Iterator[str]:
    """The mistakes as text, one a line, and a last line."""
    for mistake in report.mistakes:
        yield str(mistake)
    if report.more:
        yield f"... and {report.more} more: correct these first, then check again"
    count = len(report.mistakes) + report.more
    what = f"{report.recordings} recordings of {report.people} people"
    yield f"{report.folder}: {what}, {'no mistake' if not count else f'{count} mistake' + 's' * (count > 1)}"
