"""Text exports of Polar Sensor Logger, the Android app that many record a Polar H10 or Verity Sense with.

A session is one file a signal, ``Polar_H10_12345678_20260424_141011_ECG.txt``, of cells parted by semicolons. The
headers are those that the app's exports are published with, for example in https://github.com/obss/BIOBSS (its Polar
reader) and in programs that write the same layout::

    ECG   Phone timestamp;sensor timestamp [ns];timestamp [ms];ecg [uV]
    ACC   Phone timestamp;sensor timestamp [ns];X [mg];Y [mg];Z [mg]
    GYRO  Phone timestamp;sensor timestamp [ns];X [dps];Y [dps];Z [dps]
    MAGN  Phone timestamp;sensor timestamp [ns];X [G];Y [G];Z [G]
    PPG   Phone timestamp;sensor timestamp [ns];channel 0;channel 1;channel 2;ambient
    HR    Phone timestamp;HR [bpm];HRV [ms];Breathing interval [rpm];
    RR    Phone timestamp;RR-interval [ms]
    PPI   Phone Data RX timestamp;PP-interval [ms];error estimate [ms];blocker;contact;contact;hr [bpm]
    MARKER_20260424_141011.txt   Phone timestamp;Marker start/stop

The sensor's timestamp is that of the sample, on the wearable's clock; the phone's is that of the arrival, in local
time without a zone. Samples are placed by the sensor's clock, all of them by the least distance between the two clocks
(a packet is never early); heartbeats, which have only the phone's, by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..arrays import Float64, Int64
from ..modalities import Modality
from ..signals import BEGAN, Label, Recording, Stream
from ..wearables import UNITS, heart_rate, polar
from .cell_table import Table, mistake, read_table, shown
from .timestamps import iso_ns, iso_text, rate_of, times_ns

PHONE = ("Phone timestamp", "Phone Data RX timestamp")
SENSOR = "sensor timestamp [ns]"
MARKER = "Marker start/stop"

# Columns of a signal to what they are, and the factor to the unit of the modality.
_SIGNALS: tuple[tuple[tuple[str, ...], int, float], ...] = (
    (("ecg [uV]",), polar.ECG, 1e-3),
    (("X [mg]", "Y [mg]", "Z [mg]"), polar.ACC, 1e-3),
    (("X [dps]", "Y [dps]", "Z [dps]"), polar.GYRO, np.pi / 180),
    (("X [G]", "Y [G]", "Z [G]"), polar.MAG, 100.0),
    (("channel 0", "channel 1", "channel 2", "ambient"), polar.PPG, 1.0),
)
_BEATS = ("RR-interval [ms]", "PP-interval [ms]")

# Shortest distance of beats that came in one packet.
_CLOSEST_NS = 1_000_000

# A phone's clock is put right by less than this every now and then.
_CLOCK_STEP_NS = 1_000_000_000


def is_ours(data: bytes) -> bool:
    """Whether a file that begins with these bytes is such an export."""
    return data.removeprefix(b"\xef\xbb\xbf").startswith(tuple(f"{column};".encode() for column in PHONE))


def read(files: Sequence[tuple[str, bytes]], name: str, person: str) -> Recording:
    """One session: its files as (name, bytes), in any order.

    Raises:
        DataError: A file does not follow the format above, or two hold the same signal.
    """
    streams: list[tuple[str, Stream]] = []
    by_sensor: list[str] = []
    delays: list[int] = []
    marks: list[tuple[int, str]] = []
    for file, data in files:
        table = read_table(data, file, ";")
        if not table.rows:
            continue  # a signal that was switched on and never came
        phone = _phone_times(table)
        if (column := table.column(MARKER)) is not None:
            marks += zip(phone.tolist(), (text.strip() for text in table.columns[column]), strict=True)
        elif (column := table.column(SENSOR)) is not None and (known := _signal(table)) is not None:
            stream = _by_sensor(table, column, *known)
            by_sensor.append(stream.modality.name)
            delays.append(int((phone - stream.times_ns).min()))
            streams.append((file, stream))
        else:
            streams.append((file, _by_phone(table, phone)))
    _one_source_each([file for file, _ in streams], [stream.modality.name for _, stream in streams])
    if not streams:
        raise mistake(files[0][0] if files else name, "holds no samples")
    # All signals of one wearable are stamped with one clock, so one distance holds for them.
    delay = min(delays, default=0)
    recordings = {
        stream.modality.name: replace(stream, times_ns=stream.times_ns + delay)
        if stream.modality.name in by_sensor
        else stream
        for _, stream in streams
    }
    began = min(int(stream.times_ns[0]) for stream in recordings.values())
    return Recording(
        name,
        person,
        {"source": "Polar Sensor Logger", BEGAN: iso_text(began).removesuffix("Z")},
        {key: replace(stream, times_ns=stream.times_ns - began) for key, stream in recordings.items()},
        _labels(marks, began),
    )


def _phone_times(table: Table) -> Int64:
    column = table.column(*PHONE)
    if column is None:
        raise mistake(table.file, f"has no column '{PHONE[0]}', as Polar Sensor Logger writes", 1)
    times = np.empty(table.rows, np.int64)
    for index, text in enumerate(table.columns[column]):
        time = iso_ns(text)
        if time is None:
            raise table.wrong(index, column, f"'{shown(text)}' is no time such as 2026-04-24T14:10:15.270")
        times[index] = time
    return times


def _signal(table: Table) -> tuple[Sequence[int], int, float] | None:
    """Columns, Polar's number of the measurement, and factor; None if the signal has no sensor's time."""
    for names, measurement, factor in _SIGNALS:
        columns = [table.column(name) for name in names]
        if None not in columns:
            return [column for column in columns if column is not None], measurement, factor
    return None


def _by_sensor(table: Table, clock: int, columns: Sequence[int], measurement: int, factor: float) -> Stream:
    restart = "where the sensor's clock began anew, begin another session"
    times, _ = times_ns(table, clock, restart)
    kind = polar.KINDS[measurement]
    modality = Modality(kind.modality, kind.channels, UNITS[kind.modality], rate_of(times))
    return Stream(modality, times, table.float32(columns, factor))


def _by_phone(table: Table, phone: Int64) -> Stream:
    """Heart rate or the intervals of beats."""
    if (column := table.column(*_BEATS)) is not None:
        values = table.numbers(column) / 1e3
        return Stream(
            heart_rate.RR_MODALITY,
            _beat_times(phone, values),
            table.narrowed([column], values[:, None], range(len(values))),
        )
    if (column := table.column("HR [bpm]")) is not None:
        falls = np.flatnonzero(np.diff(phone) < -_CLOCK_STEP_NS)
        if len(falls):
            raise table.wrong(int(falls[0]) + 1, 0, "is earlier than the row before: the phone's clock was set back")
        return Stream(heart_rate.MODALITY, _rising(phone), table.float32([column]))
    known = ", ".join("/".join(names) for names, _, _ in _SIGNALS)
    raise mistake(table.file, f"holds none of the signals {known}, {'/'.join(_BEATS)}, HR [bpm]", 1)


def _beat_times(arrivals: Int64, intervals_s: Float64) -> Int64:
    """When beats ended: those that arrived together lie before their arrival by the intervals that follow them."""
    times = arrivals.copy()
    for index in range(len(times) - 2, -1, -1):
        following = float(intervals_s[index + 1])
        if arrivals[index] == arrivals[index + 1] and following > 0:
            times[index] = times[index + 1] - round(min(following, 10.0) * 1e9)
    return _rising(times)


def _rising(times: Int64) -> Int64:
    """The same times, made to rise, as those of packets that waited for each other."""
    steps = np.arange(len(times)) * _CLOSEST_NS
    rising: Int64 = np.maximum.accumulate(times - steps) + steps
    return rising


def _labels(marks: Sequence[tuple[int, str]], began: int) -> list[Label]:
    """Spans from each start to the stop after it."""
    labels, start = [], None
    for time, text in sorted(marks):
        if "START" in text.upper():
            start = time
        elif start is not None and time > start:
            if start >= began:
                labels.append(Label(start - began, time - began, "marker"))
            start = None
    return labels


def _one_source_each(files: Sequence[str], names: Sequence[str]) -> None:
    """Refuse two sources of one modality.

    Raises:
        DataError: Two are of one modality; the message names their files.
    """
    for index, name in enumerate(names):
        if name in names[:index]:
            raise mistake(files[index], f"holds '{name}', and so does {files[names.index(name)]}: import one of them")
