"""Tables of text that people bring: rows, numbers, times and units, each mistake with its file, row and column."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float64, Int64
from ..errors import DataError
from ..signals import Stream
from ..wearables import UNITS

STANDARD_GRAVITY = 9.80665
"""m/s2 in one g (ISO 80000-3)."""

ASSUMED = "assumed_units"
"""Key of a recording's meta: modalities whose unit was assumed."""

MISSING = ("", "nan", "null", "na")
"""What stands, in any case, where a value is not known."""

_MOMENTS = {"s": 10**9, "ms": 10**6, "us": 10**3, "µs": 10**3, "μs": 10**3, "ns": 1, "sec": 10**9, "seconds": 10**9}

# Spelling to what it measures and how many of the first unit of its kind it is.
_SPELLINGS: dict[str, tuple[str, float]] = {
    "g": ("acceleration", 1.0),
    "mg": ("acceleration", 1e-3),
    "m/s2": ("acceleration", 1 / STANDARD_GRAVITY),
    "m/s^2": ("acceleration", 1 / STANDARD_GRAVITY),
    "m/s²": ("acceleration", 1 / STANDARD_GRAVITY),
    "rad/s": ("turning", 1.0),
    "deg/s": ("turning", math.pi / 180),
    "°/s": ("turning", math.pi / 180),
    "dps": ("turning", math.pi / 180),
    "ut": ("flux density", 1.0),
    "µt": ("flux density", 1.0),
    "gauss": ("flux density", 100.0),
    "t": ("flux density", 1e6),
    "v": ("voltage", 1.0),
    "mv": ("voltage", 1e-3),
    "uv": ("voltage", 1e-6),
    "µv": ("voltage", 1e-6),
    "us": ("conductance", 1.0),
    "µs": ("conductance", 1.0),
    "s": ("time", 1.0),
    "ms": ("time", 1e-3),
    "degc": ("temperature", 1.0),
    "°c": ("temperature", 1.0),
    "c": ("temperature", 1.0),
    "bpm": ("beats", 1.0),
    "%": ("share", 1.0),
}


def mistake(file: str, problem: str, row: int | None = None, column: str | None = None) -> DataError:
    """One mistake in a file that somebody brought: ``file, row 7, column x: problem``."""
    place = [file]
    place += [f"row {row}"] if row is not None else []
    place += [f"column {column}"] if column is not None else []
    return DataError(printable(f"{', '.join(place)}: {problem}"))


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        file: Its name, for messages.
        names: Of the columns; empty strings for those without.
        lines: Line of each row in the file, from 1.
        columns: Texts of each column, in the order of ``names``.
    """

    file: str
    names: tuple[str, ...]
    lines: list[int]
    columns: list[list[str]]

    def column(self, *names: str) -> int | None:
        """The first column of one of these names, in any case; None if there is none."""
        lower = [name.lower() for name in self.names]
        return next((lower.index(name.lower()) for name in names if name.lower() in lower), None)

    def numbers(self, column: int) -> Float64:
        """A column as numbers (rows,); NaN where none is known.

        Raises:
            DataError: A cell holds something else than a finite number.
        """
        values = np.empty(len(self.lines))
        for index, text in enumerate(self.columns[column]):
            try:
                value = float(text)
            except ValueError:
                value = math.inf
            if value - value != 0:  # NaN or infinite, or no number
                if text.strip().lower() not in MISSING:
                    raise self.wrong(index, column, f"'{shown(text)}' is not a number")
                value = math.nan
            values[index] = value
        return values

    def float32(
        self, columns: Sequence[int], values: Float64, rows: Sequence[int] | Int64, factor: float = 1.0
    ) -> NDArray[np.float32]:
        """Values (n, columns) of some rows and columns times a factor, as recordings hold them.

        Raises:
            DataError: One is too large for that.
        """
        with np.errstate(over="ignore"):
            narrow = (values * factor).astype(np.float32)
        if np.isinf(narrow).any():
            row, column = np.argwhere(np.isinf(narrow))[0]
            raise self.wrong(int(rows[row]), columns[int(column)], "is larger than a float32 can be")
        return narrow

    def wrong(self, index: int, column: int | None, problem: str) -> DataError:
        """A mistake in one row."""
        return mistake(self.file, problem, self.lines[index], None if column is None else self.title(column))

    def title(self, column: int) -> str:
        """What a column is called in messages."""
        return self.names[column] or str(column + 1)


def printable(text: str) -> str:
    """Text on one line, whatever characters a file that somebody brought has put into it."""
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


def shown(text: str) -> str:
    """A cell of a file that somebody brought, short enough for a sentence."""
    clean = printable(text.strip())
    return clean if len(clean) <= 40 else f"{clean[:37]}..."


def decode(data: bytes, file: str) -> str:
    """The text of a file.

    Raises:
        DataError: It is not UTF-8 (with or without a mark).
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise mistake(file, "is not text in UTF-8", data[: error.start].count(b"\n") + 1) from error


def read_table(data: bytes, file: str, delimiter: str | None = None, header: bool = True) -> Table:
    """The rows of a text file; empty lines are left out, and so are empty cells at the ends of all rows.

    Args:
        data: The file.
        file: Its name, for messages.
        delimiter: Between cells; None to tell it from the first line (``,``, ``;`` or a tab). Where it is not a comma,
            numbers may have one.
        header: Whether the first line names the columns.

    Raises:
        DataError: It is no text, holds no rows, or a row is longer or shorter than the first.
    """
    text = decode(data, file)
    first = text.partition("\n")[0]
    if delimiter is None:
        delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names: tuple[str, ...] | None = None
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                # Some writers end the header, the rows, or both with a delimiter.
                names = tuple(cell.strip() for cell in cells) if header else ("",) * len(cells)
                while header and names and not names[-1]:
                    names = names[:-1]
                if header:
                    continue
            extra = len(cells) - len(names)
            if extra < 0 or any(cell.strip() for cell in cells[len(names) :]):
                what = "the header" if header else "the first row"
                cut = not text.endswith("\n") and reader.line_num == text.count("\n") + 1
                hint = ": the file was cut off here, so remove this row" if extra < 0 and cut else ""
                number = f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"
                raise mistake(file, f"has {number}; {what} has {len(names)}{hint}", reader.line_num)
            lines.append(reader.line_num)
            rows.append(cells[: len(names)])
    except csv.Error as error:
        raise mistake(file, f"cannot be read as a table: {error}", reader.line_num) from error
    if names is None:
        raise mistake(file, "is empty")
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in names]
    if delimiter != "," and rows and any(_COMMA.fullmatch(cell) for cell in rows[0]):
        columns = [[_pointed(cell) for cell in column] for column in columns]
    return Table(file, names, lines, columns)


# A number of a writer whose language has a comma where others have a point.
_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*", re.ASCII)


def _pointed(cell: str) -> str:
    return cell.replace(",", ".") if _COMMA.fullmatch(cell) else cell


def split_unit(title: str) -> tuple[str, str]:
    """``acc_x [mg]`` or ``acc_x (mg)`` as name and unit; the unit is empty if there is none."""
    found = re.fullmatch(r"(.*?)\s*[\[(]\s*([^\[\]()]*?)\s*[\])]\s*", title)
    return (found[1].strip(), found[2]) if found else (title.strip(), "")


def canonical(modality: str, unit: str) -> tuple[str, float]:
    """The unit that models are trained in, and the factor to it.

    A unit that is not of the kind that :data:`armlet_runtime.wearables.UNITS` has for the modality stays as it is.
    """
    want = UNITS.get(modality)
    if not unit:
        return want or "", 1.0
    have, wanted = _SPELLINGS.get(unit.lower()), _SPELLINGS.get((want or "").lower())
    if want is None or have is None or wanted is None or have[0] != wanted[0]:
        return unit, 1.0
    return want, have[1] / wanted[1]


def assumed(streams: Iterable[Stream]) -> dict[str, str]:
    """For a recording's meta: which units nothing in the file told, and :func:`canonical` therefore assumed."""
    told = ", ".join(f"{one.modality.name} in {one.modality.unit}" for one in streams if one.modality.unit)
    return {ASSUMED: told} if told else {}


# --- times ------------------------------------------------------------------------------------------------------------

_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?\s*(Z|[+-]\d\d:?\d\d)?", re.ASCII | re.IGNORECASE
)
_EPOCH = datetime(1970, 1, 1)
# Times are kept well inside int64, so that differences and offsets stay exact.
_FARTHEST_NS = 1 << 62


def iso_ns(text: str) -> int | None:
    """Nanoseconds since 1970 of a time in ISO 8601, of UTC if it names no zone; None if it is none."""
    found = _ISO.fullmatch(text.strip())
    if found is None:
        return None
    try:
        year, month, day, hour, minute, second = map(int, found.groups()[:6])
        moment = datetime(year, month, day, hour, minute, second) - _EPOCH
    except ValueError:
        return None
    zone = found[8]
    if zone and zone.upper() != "Z":
        digits = zone[1:].replace(":", "")
        shift = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
        moment = moment - shift if zone[0] == "+" else moment + shift
    nanoseconds = (moment.days * 86_400 + moment.seconds) * 10**9 + int((found[7] or "").ljust(9, "0"))
    return nanoseconds if abs(nanoseconds) < _FARTHEST_NS else None


def _names_zone(text: str) -> bool:
    found = _ISO.fullmatch(text.strip())
    return found is not None and found[8] is not None


def iso_text(unix_ns: int) -> str:
    """A time as :attr:`armlet_runtime.signals.recording.Recording.meta` has it: ISO 8601, UTC, to the microsecond."""
    moment = _EPOCH + timedelta(microseconds=unix_ns // 1000)
    return moment.replace(tzinfo=timezone.utc).isoformat().replace("+00:00", "Z")


def times_ns(table: Table, column: int, falling: str = "keep one row of each time") -> tuple[Int64, bool]:
    """A column of times in nanoseconds (rows,), and whether they count from 1970.

    ISO 8601, or numbers: their unit stands in the column's name (``time [ms]``, ``time_s``), or, of times since 1970,
    shows in their size. ``falling``: what is to be done about a time that is not later than the one before.

    Raises:
        DataError: A cell is no time, their unit cannot be told, some name a time zone and some do not, or a time is
            not later than the one before.
    """
    texts = table.columns[column]
    first = next((text for text in texts if text.strip()), "")
    if iso_ns(first) is not None:
        times = [iso_ns(text) for text in texts]
        absolute = True
        problem = "is not a date and time like the first one"
    else:
        numbers = [_decimal(text) for text in texts]
        start = next((number for number in numbers if number is not None), None)
        scale, absolute = _scale(table, column, start, numbers)
        times = [None if number is None else _nanoseconds(number, scale) for number in numbers]
        problem = "is not a time"
    for index, time in enumerate(times):
        if time is None:
            raise table.wrong(index, column, f"'{shown(texts[index])}' {problem}")
    zoned = [_names_zone(text) for text in texts] if absolute and iso_ns(first) is not None else []
    if len(set(zoned)) > 1:
        at, what = (zoned.index(False), "no") if zoned[0] else (zoned.index(True), "a")
        raise table.wrong(at, column, f"'{shown(texts[at])}' names {what} time zone, unlike the first time")
    result = np.array(times, np.int64)
    falls = np.flatnonzero(np.diff(result) <= 0)
    if len(falls):
        at = int(falls[0]) + 1
        raise table.wrong(at, column, f"'{shown(texts[at])}' is not later than the time in the row before; {falling}")
    return result, absolute


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return None
    # A number of a thousand digits is no time, and its products would overflow, as abs() of it does.
    return number if number.is_finite() and number.copy_abs() < _FARTHEST_NS else None


def _nanoseconds(number: Decimal, scale: int) -> int | None:
    return round(number * scale) if abs(number) < _FARTHEST_NS // scale else None


def _scale(table: Table, column: int, start: Decimal | None, numbers: Sequence[Decimal | None]) -> tuple[int, bool]:
    """Nanoseconds of one unit of a column, and whether it counts from 1970 (later than 1973, that is)."""
    name, unit = split_unit(table.names[column])
    unit = unit or name.lower().rpartition("_")[2]
    if start is None:
        return 1, False
    if unit.lower() in _MOMENTS:
        scale = _MOMENTS[unit.lower()]
        return scale, abs(start) * scale >= 10**17
    for scale in (10**9, 10**6, 10**3, 1):
        if 10**17 <= abs(start) * scale < 10**19:
            return scale, True
    if any(number is not None and number != int(number) for number in numbers):
        return 10**9, False
    raise mistake(
        table.file,
        "the unit of these times cannot be told; put it into the name, as in 'time [ms]', or name it with --time",
        None,
        table.title(column),
    )


def rate_of(times: Int64) -> float:
    """The nominal rate in Hz of samples at such times (n,): the usual distance, and a whole number if one is near."""
    if len(times) < 2:
        return 1.0
    rate = 1e9 / float(np.median(np.diff(times)))
    if round(rate) > 0 and abs(rate / round(rate) - 1) < 0.01:
        return float(round(rate))
    return float(f"{rate:.4g}")


def gathered(files: Sequence[str], names: Sequence[str]) -> None:
    """Refuse two sources of one modality.

    Raises:
        DataError: Two are the same; ``files`` says where each comes from.
    """
    for index, name in enumerate(names):
        if name in names[:index]:
            raise mistake(files[index], f"holds '{name}', and so does {files[names.index(name)]}: import one of them")
