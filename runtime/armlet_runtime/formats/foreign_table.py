"""Tables of samples that somebody else made: CSV or Parquet with a column of times.

Their columns' names say what they hold, see :func:`streams_of`, or the person who imports them does
(:func:`parse_stream`). Tables that armlet exported are read by :mod:`.exported_folder`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arrays import Int64
from ..errors import UsageError
from ..modalities import Modality
from ..signals import BEGAN, Recording, Stream
from ..wearables import UNITS, XYZ
from .cell_table import Table, mistake, read_parquet, read_table
from .exported_folder import TIME
from .timestamps import iso_text, not_later, rate_of, sampling_times, times_ns
from .units import assumed, canonical, split_unit

REBUILT = "rebuilt_times"
"""Key of a recording's meta: modalities whose times in the file were those of their delivery, and what was done."""

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

# Names of modalities in other programs.
_CALLED: Mapping[str, str] = {
    "accelerometer": "acc", "acceleration": "acc", "accel": "acc", "a": "acc",
    "gyroscope": "gyro", "gyr": "gyro", "g": "gyro", "w": "gyro",
    "magnetometer": "mag", "magn": "mag", "m": "mag",
    "heart_rate": "hr", "heartrate": "hr", "heart rate": "hr", "pulse": "hr",
    "temperature": "temp", "gsr": "eda", "resp": "rsp", "respiration": "rsp", "sao2": "spo2", "bvp": "ppg",
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """One modality of a table, as ``--stream`` names it: its columns, and their unit."""

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


def read(
    data: bytes, file: str, name: str, person: str, wanted: Sequence[Columns] = (), time: str | None = None
) -> Recording:
    """A recording from a single table.

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
    table = read_parquet(data, file) if data.startswith(b"PAR1") else read_table(data, file)
    if not table.rows:
        raise mistake(file, "has no rows of samples")
    table, clock = _clock(table, time)
    times, absolute = times_ns(table, clock, repeated=True)
    streams, units_given, rebuilt = streams_of(table, clock, times, wanted)
    began = min(int(stream.times_ns[0]) for stream in streams)
    if not absolute and began < 0:
        raise table.wrong(0, clock, "times count from 0")
    # Times since 1970 become a beginning and times since then; others are the recording's own clock already.
    shift, meta = (began, {BEGAN: iso_text(began)}) if absolute else (0, {})
    untold = [stream for stream in streams if stream.modality.name not in units_given]
    return Recording(
        name,
        person,
        {"source": file, **meta, **assumed(file, untold), **({REBUILT: "; ".join(rebuilt)} if rebuilt else {})},
        {stream.modality.name: Stream(stream.modality, stream.times_ns - shift, stream.values) for stream in streams},
    )


def _clock(table: Table, time: str | None) -> tuple[Table, int]:
    """The column of times, and the table with its unit in that column's name."""
    if time is None:
        lower = [split_unit(name)[0].lower() for name in table.names]
        place = next((lower.index(name) for name in _TIMES if name in lower), None)
        if place is None:
            starts = [i for i, name in enumerate(lower) if re.match(r"(time|timestamp|t)_", name)]
            place = starts[0] if starts else None
        if place is None:
            raise mistake(
                table.file, f"has no column of times (there are {', '.join(table.names)}); name it with --time", 1
            )
        return table, place
    column = table.column(time)
    if column is None:
        column = table.column(split_unit(time)[0])
        if column is None:
            raise mistake(table.file, f"has no column '{time}'; there are {', '.join(table.names)}", 1)
        names = (*table.names[:column], time, *table.names[column + 1 :])
        table = Table(table.file, names, table.lines, table.columns)
    return table, column


def streams_of(
    table: Table, clock: int, times: Int64, wanted: Sequence[Columns] = ()
) -> tuple[list[Stream], set[str], list[str]]:
    """The streams that a table's columns hold, the modalities whose unit it tells, and what was done about times.

    Where two samples of a modality bear one time, its times are those of the delivery, and its
    :func:`.sampling_times` are worked out from them. A row in which a modality has no value is no sample of it.

    A column is ``MODALITY_CHANNEL`` (or with a dot or a blank) or ``MODALITY``, each with its unit in brackets; what is
    usual is understood, such as ``ax`` or ``accelerometer.x``. Values come in the units that models are trained in.

    Raises:
        DataError: A cell is not a number, no column has a known name, or times cannot be worked out.
    """
    groups = {named.modality: named for named in wanted} or _told(table, clock)
    streams: list[Stream] = []
    units_given: set[str] = set()
    rebuilt: list[str] = []
    for modality, named in groups.items():
        indices = [table.column(name) for name in named.names]
        for name, index in zip(named.names, indices, strict=True):
            if index is None:
                raise mistake(table.file, f"has no column '{name}'; there are {', '.join(table.names)}", 1)
        columns = [index for index in indices if index is not None]
        unit = named.unit or split_unit(table.names[columns[0]])[1]
        if unit:
            units_given.add(modality)
        unit, factor = canonical(modality, unit)
        values = table.float32(columns, factor)
        complete = ~np.isnan(values).all(axis=1)
        if not complete.any():
            continue
        taken = times[complete]
        again = np.flatnonzero(np.diff(taken) == 0)
        if not len(again):
            rate_hz = rate_of(taken)
        else:
            sampled = sampling_times(taken)
            if sampled is None:
                raise not_later(table, clock, int(np.flatnonzero(complete)[again[0] + 1]))
            stamps, (taken, rate_hz) = taken, sampled
            rebuilt.append(
                f"{modality}: {len(again)} of {len(taken)} samples had the time of the sample before; taken at "
                f"{rate_hz:g} Hz, they are up to {(stamps - taken).max() / 1e6:.0f} ms earlier"
            )
        known = Modality(modality, _channels(table, modality, columns, bool(wanted)), unit, rate_hz)
        streams.append(Stream(known, taken, values[complete]))
    if not streams:
        raise mistake(table.file, "has no samples")
    return streams, units_given, rebuilt


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
        # A file that is named after a modality holds its channels.
        groups.setdefault(modality or (file if file in UNITS else _word(name)), []).append(index)
    if not groups:
        raise mistake(table.file, "has no column besides the times", 1)
    by_modality = {}
    for modality, indices in groups.items():
        units = {split_unit(table.names[index])[1] for index in indices}
        if len(units) > 1:
            problem = f"has '{modality}' in {' and '.join(sorted(map(repr, units)))}; say it with --stream"
            raise mistake(table.file, problem, 1)
        names = [table.names[index] for index in indices]
        ends = [split_unit(name)[0][-1:].lower() for name in names]
        if sorted(ends) == list(XYZ):  # whatever order a logger writes them in
            names = [names[ends.index(axis)] for axis in XYZ]
        by_modality[modality] = Columns(modality, units.pop(), tuple(names))
    return by_modality


def _parts(name: str) -> tuple[str, str]:
    """Modality and channel by a column's name without its unit; the modality is empty if the name has none."""
    lower = name.lower()
    if lower in UNITS:
        return lower, ""
    if lower in _CALLED and len(lower) > 1:
        return _CALLED[lower], ""
    head, *tail = re.split(r"[_.\- ]", name, maxsplit=1)
    if head.lower() in XYZ and tail and (tail[0].lower() in UNITS or tail[0].lower() in _CALLED):
        head, tail = tail[0], [head.lower()]  # x_acc
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
    last, parted = [name[-1:].lower() for name in names], [_parts(name)[1].lower() for name in names]
    if list(XYZ) in (last, parted):
        return XYZ
    if len(names) == 1 and modality in _SINGLE:
        return (_SINGLE[modality],)
    short = names if given else [_parts(name)[1] or name for name in names]
    return tuple(short) if len(set(short)) == len(short) else tuple(names)


# What armlet's profiles call the only channel of a modality.
_SINGLE = {"hr": "bpm", "rr": "interval", "ecg": "ecg", "spo2": "spo2"}
