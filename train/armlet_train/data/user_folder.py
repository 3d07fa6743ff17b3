"""Data sets of users: a folder in armlet's format, and its mistakes in its owner's terms.

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
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tomllib

from armlet_runtime.errors import DataError
from armlet_runtime.formats import TIME
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label, Recording

from .datasets import SPLITS, DataSet, Entry
from .folder_mistakes import CheckReport, Mistakes
from .folder_tables import DESCRIPTION, SAMPLES, Row, by_recording, check_labels, read_streams, read_table, sample_files

T = TypeVar("T")


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


def is_folder(path: Path) -> bool:
    """Whether a path is meant as a data set in this format."""
    return (path / DESCRIPTION).is_file()


def open_folder(path: Path) -> tuple[DataSet, list[Entry]]:
    """The data set in a folder, and its recordings, not yet read.

    Raises:
        DataError: Its description or table has a mistake.
    """
    mistakes = Mistakes()
    description = _description(path, mistakes)
    table = read_table(path, mistakes)
    split_of = _splits(description, table, mistakes) if description is not None and table is not None else {}
    if mistakes.listed or description is None or table is None:
        raise _refusal(path, mistakes)
    modalities = _modalities(description)
    rows = by_recording(table)
    entries = [
        Entry(name, own[0].person, split_of[own[0].person], partial(_read, path, name, modalities, tuple(own)))
        for name, own in rows.items()
    ]
    labels = tuple(sorted({row.label for row in table if row.label}))
    return DataSet(description.name, description.name, modalities, labels, lambda _: entries), entries


def check(path: Path, limit: int = 200) -> CheckReport:
    """Read everything and list what is wrong, at most ``limit`` mistakes."""
    mistakes = Mistakes(limit)
    description = _description(path, mistakes)
    table = read_table(path, mistakes)
    if table is None:
        return CheckReport(str(path), 0, 0, mistakes.listed, mistakes.more)
    rows = by_recording(table)
    if description is not None:
        _splits(description, table, mistakes)
        modalities = _modalities(description)
        for name, own in rows.items():
            streams = read_streams(path, name, modalities, mistakes)
            check_labels(path, name, own, streams, mistakes)
        _check_strangers(path, rows, modalities, mistakes)
    people = {row.person for row in table}
    return CheckReport(str(path), len(rows), len(people), mistakes.listed, mistakes.more)


def _refusal(path: Path, mistakes: Mistakes) -> DataError:
    others = len(mistakes.listed) - 1
    more = f" ({others} more)" if others else ""
    return DataError(f"{path}/{mistakes.listed[0]}{more}; 'armlet data check {path}' lists every mistake")


def _read(path: Path, name: str, modalities: tuple[Modality, ...], rows: tuple[Row, ...]) -> Recording:
    mistakes = Mistakes()
    streams = read_streams(path, name, modalities, mistakes)
    if mistakes.listed:
        raise _refusal(path, mistakes)
    labels = [
        Label(round(row.start_s * 1e9), round(row.end_s * 1e9), row.label)
        for row in rows
        if row.label and row.start_s is not None and row.end_s is not None
    ]
    return Recording(
        name, rows[0].person, {"source": str(path)}, streams, sorted(labels, key=lambda label: label.start_ns)
    )


def _description(path: Path, mistakes: Mistakes) -> Description | None:
    try:
        table = tomllib.loads((path / DESCRIPTION).read_text())
    except FileNotFoundError:
        mistakes.add(DESCRIPTION, "is missing; it describes the modalities (see train/DATA.md)")
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        line = re.search(r"line (\d+)", str(error))
        mistakes.add(DESCRIPTION, f"is not TOML: {error}", int(line[1]) if line else None)
        return None
    before = len(mistakes.listed) + mistakes.more
    _check_keys(table, "", Description, ("name", "modalities"), mistakes)
    modalities = table.get("modalities")
    for name, described in modalities.items() if isinstance(modalities, dict) else []:
        if isinstance(described, dict):
            needed = ("channels", "unit", "rate_hz")
            _check_keys(described, f"modalities.{name}.", ModalityDescription, needed, mistakes)
            _check_types(described, f"modalities.{name}", ModalityDescription, mistakes)
    if isinstance(table.get("splits"), dict):
        _check_keys(table["splits"], "splits.", SplitDescription, SPLITS, mistakes)
    if len(mistakes.listed) + mistakes.more > before:
        return None
    description = _check_types(table, "", Description, mistakes)
    if description is not None:
        _check_modalities(description, mistakes)
    return description if len(mistakes.listed) + mistakes.more == before else None


def _check_types(table: dict[str, Any], place: str, kind: type[T], mistakes: Mistakes) -> T | None:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        inside = re.search(r" - at `\$(.*?)`$", str(error))
        problem = re.sub(r" - at `.*`$", "", str(error))
        if "unknown field" not in problem and "missing required" not in problem:  # named by _check_keys
            mistakes.add(DESCRIPTION, problem, None, (place + (inside[1] if inside else "")).strip(".") or None)
        return None


def _check_keys(table: dict[str, Any], place: str, kind: Any, needed: Iterable[str], mistakes: Mistakes) -> None:
    known = [field.name for field in msgspec.structs.fields(kind)]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            mistakes.add(DESCRIPTION, f"no such key; {hint}", None, place + key)
    for key in needed:
        if key not in table:
            mistakes.add(DESCRIPTION, "is missing", None, place + key)


def _check_modalities(description: Description, mistakes: Mistakes) -> None:
    if not description.modalities:
        mistakes.add(DESCRIPTION, "there must be at least one modality", None, "modalities")
    for name, described in description.modalities.items():
        place = f"modalities.{name}"
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            mistakes.add(DESCRIPTION, "a modality's name is of letters, digits and _ only", None, place)
        if not described.channels or len(set(described.channels)) != len(described.channels):
            mistakes.add(DESCRIPTION, "needs at least one channel, and no channel twice", None, f"{place}.channels")
        if TIME in described.channels:
            mistakes.add(DESCRIPTION, f"{TIME} is the name of the time", None, f"{place}.channels")
        if not 0 < described.rate_hz < math.inf:
            mistakes.add(DESCRIPTION, f"a rate is above 0 Hz, not {described.rate_hz:g}", None, f"{place}.rate_hz")


def _modalities(description: Description) -> tuple[Modality, ...]:
    return tuple(
        Modality(name, described.channels, described.unit, described.rate_hz)
        for name, described in description.modalities.items()
    )


def _splits(description: Description, table: list[Row], mistakes: Mistakes) -> dict[str, str]:
    """Person to split: by the description, or a fifth each for validation and test by the hash of the name."""
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


def _check_strangers(
    path: Path, rows: dict[str, list[Row]], modalities: tuple[Modality, ...], mistakes: Mistakes
) -> None:
    """Recordings with samples that the table does not name, and modalities that no recording has."""
    folder = path / SAMPLES
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.name not in rows:
            near = difflib.get_close_matches(entry.name, rows, 1)
            hint = f"; did the table mean it by '{near[0]}'?" if near else ""
            mistakes.add(f"{SAMPLES}/{entry.name}", f"no row of the table names this recording{hint}")
    have = {file.stem for name in rows for file in sample_files(path, name)}
    for modality in modalities:
        if modality.name not in have:
            mistakes.add(DESCRIPTION, "no recording has a file of this modality", None, f"modalities.{modality.name}")


def summary_lines(report: CheckReport) -> Iterator[str]:
    """The mistakes as text, one a line, and a last line."""
    for mistake in report.mistakes:
        yield str(mistake)
    if report.more:
        yield f"... and {report.more} more: correct these first, then check again"
    count = len(report.mistakes) + report.more
    what = f"{report.recordings} recordings of {report.people} people"
    yield f"{report.folder}: {what}, {'no mistake' if not count else f'{count} mistake' + 's' * (count > 1)}"
