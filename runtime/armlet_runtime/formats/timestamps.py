"""Times in files that people bring: dates, numbers of some unit, and the rate that they show."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation

import numpy as np

from ..arrays import Int64
from ..errors import DataError
from .cell_table import Table, mistake, shown
from .units import split_unit

_MOMENTS = {"s": 10**9, "ms": 10**6, "us": 10**3, "µs": 10**3, "μs": 10**3, "ns": 1, "sec": 10**9, "seconds": 10**9}

_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?\s*(Z|[+-]\d\d:?\d\d)?", re.ASCII | re.IGNORECASE
)
_EPOCH = datetime(1970, 1, 1)
# How many samples apart stamps are compared for the period, and by how much of it samples may come quicker.
_STRETCH = 100
_SLACK = 0.005

# Times are kept well inside int64, so that differences and offsets stay exact.
_FARTHEST_NS = 1 << 62


def iso_ns(text: str) -> int | None:
    """Nanoseconds since 1970 of a time in ISO 8601, in UTC if it names no zone; None for any other text."""
    match = _ISO.fullmatch(text.strip())
    if match is None:
        return None
    try:
        year, month, day, hour, minute, second = map(int, match.groups()[:6])
        moment = datetime(year, month, day, hour, minute, second) - _EPOCH
    except ValueError:
        return None
    zone = match[8]
    if zone and zone.upper() != "Z":
        digits = zone[1:].replace(":", "")
        shift = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
        moment = moment - shift if zone[0] == "+" else moment + shift
    nanoseconds = (moment.days * 86_400 + moment.seconds) * 10**9 + int((match[7] or "").ljust(9, "0"))
    return nanoseconds if abs(nanoseconds) < _FARTHEST_NS else None


def _names_zone(text: str) -> bool:
    match = _ISO.fullmatch(text.strip())
    return match is not None and match[8] is not None


def iso_text(unix_ns: int) -> str:
    """A time as :attr:`armlet_runtime.signals.recording.Recording.meta` has it: ISO 8601, UTC, to the microsecond."""
    moment = _EPOCH + timedelta(microseconds=unix_ns // 1000)
    return moment.replace(tzinfo=timezone.utc).isoformat().replace("+00:00", "Z")


def times_ns(
    table: Table, column: int, falling: str = "keep one row of each time", repeated: bool = False
) -> tuple[Int64, bool]:
    """A column of times in nanoseconds (rows,), and whether they count from 1970.

    ISO 8601, or numbers: their unit is in the column's name (``time [ms]``, ``time_s``), or, of times since 1970,
    shows in their size.

    Args:
        table: Holds the column.
        column: Its index.
        falling: Remedy, for the message on a time that is not later than the time before.
        repeated: Times may be equal to the time before; see :func:`sampling_times`.

    Raises:
        DataError: A cell is not a time, the unit is unknown, some times name a time zone and some do not, or a time is
            not later than the time before.
    """
    texts = table.columns[column]
    first = next((text for text in texts if text.strip()), "")
    is_date = iso_ns(first) is not None
    scale, absolute = (1, True) if is_date else _scale(table, column, first)
    zoned = _names_zone(first)
    result = np.empty(table.rows, np.int64)
    for index, text in enumerate(texts):
        time = iso_ns(text) if is_date else _nanoseconds(_decimal(text), scale)
        if time is None:
            problem = "is not a date and time like the first" if is_date else "is not a time"
            raise table.wrong(index, column, f"'{shown(text)}' {problem}")
        if is_date and _names_zone(text) != zoned:
            what = "no time zone, unlike the first time" if zoned else "a time zone, unlike the first time"
            raise table.wrong(index, column, f"'{shown(text)}' names {what}")
        result[index] = time
    falls = np.flatnonzero(np.diff(result) < (0 if repeated else 1))
    if len(falls):
        raise not_later(table, column, int(falls[0]) + 1, falling)
    return result, absolute


def not_later(table: Table, column: int, index: int, remedy: str = "keep one row of each time") -> DataError:
    """The mistake of a row whose time is not later than that of the row before."""
    text = shown(table.columns[column][index])
    return table.wrong(index, column, f"'{text}' is not later than the time in the row before; {remedy}")


def sampling_times(stamps: Int64) -> tuple[Int64, float] | None:
    """When samples (n,) were taken whose stamps are those of their delivery, and the rate in Hz.

    Android hands samples over in bursts, and several then have one time. A sample is never later than its stamp, so the
    times are the latest that are no later than any stamp and lie a period apart at least, less :data:`_SLACK` of it for
    a sensor that is quicker than it was measured. The period is that of the usual stretch of :data:`_STRETCH` samples,
    on which neither a burst nor a gap has much influence.

    Args:
        stamps: (n,) never falling.

    Returns:
        Times (n,), strictly rising, and the rate; None if the stamps do not tell a period.
    """
    stretch = min(_STRETCH, len(stamps) - 1)
    if stretch < 1:
        return None
    period_ns = float(np.median(stamps[stretch:] - stamps[:-stretch])) / stretch
    steps = np.rint(np.arange(len(stamps)) * period_ns * (1 - _SLACK)).astype(np.int64)
    if period_ns * (1 - _SLACK) < 2:
        return None
    times: Int64 = np.minimum.accumulate((stamps - steps)[::-1])[::-1] + steps
    return times, nominal_hz(1e9 / period_ns)


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return None
    # A number of a thousand digits is no time, and its products would overflow, as abs() of it does.
    return number if number.is_finite() and number.copy_abs() < _FARTHEST_NS else None


def _nanoseconds(number: Decimal | None, scale: int) -> int | None:
    return round(number * scale) if number is not None and abs(number) < _FARTHEST_NS // scale else None


def _scale(table: Table, column: int, first: str) -> tuple[int, bool]:
    """Nanoseconds of one unit of a column, and whether it counts from 1970 (later than 1973, that is).

    ``first``: The first cell that is not empty.
    """
    start = _decimal(first)
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
    numbers = map(_decimal, table.columns[column])
    if any(number is not None and number != int(number) for number in numbers):
        return 10**9, False
    raise mistake(
        table.file,
        "the unit of these times is unknown; put it into the name, as in 'time [ms]', or name it with --time",
        None,
        table.title(column),
    )


def rate_of(times: Int64) -> float:
    """The nominal rate in Hz of samples at such times (n,): the usual distance, and a whole number if one is near."""
    if len(times) < 2:
        return 1.0
    return nominal_hz(1e9 / float(np.median(np.diff(times))))


def nominal_hz(rate: float) -> float:
    """A whole number if one is near, else a measured rate to four digits."""
    if round(rate) > 0 and abs(rate / round(rate) - 1) < 0.01:
        return float(round(rate))
    return float(f"{rate:.4g}")
