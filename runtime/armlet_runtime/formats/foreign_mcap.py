"""MCAP files that others wrote: their messages of numbers, as Foxglove and many loggers keep them in JSON.

A topic whose messages are JSON objects becomes one modality, named after the last part of the topic; its channels are
the fields that hold numbers, those of objects inside joined by dots. What the messages of ROS call
``linear_acceleration``, ``angular_velocity`` and ``magnetic_field`` are modalities of their own, in the units that
sensor_msgs/Imu and MagneticField say they are in (m/s2, rad/s, T). Samples are placed by the messages' log time,
which counts from 1970 in files of others. Messages in other encodings (protobuf, ROS, CDR) need their writer's own
tools.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from ..modalities import Modality
from ..signals import BEGAN, Recording, Stream
from .cell_table import mistake
from .timestamps import iso_text, rate_of
from .units import assumed, canonical

# What ROS calls them, to our word and their unit.
_PARTS = {
    "linear_acceleration": ("acc", "m/s2"),
    "angular_velocity": ("gyro", "rad/s"),
    "magnetic_field": ("mag", "T"),
}

# Later times are no times, and would not fit into int64.
_FARTHEST_NS = 1 << 62


def read(data: bytes, file: str, name: str, person: str) -> Recording:
    """A recording from an MCAP file that armlet did not write.

    Raises:
        DataError: The file is damaged, or holds no topic of numbers in JSON.
    """
    from mcap.reader import make_reader

    # By topic and part of its messages; an empty part for what is left.
    times: dict[tuple[str, str], list[int]] = {}
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    skipped: dict[str, str] = {}
    try:
        for _, channel, message in make_reader(io.BytesIO(data), validate_crcs=True).iter_messages():
            if channel.message_encoding != "json":
                skipped[channel.topic] = channel.message_encoding
                continue
            if message.log_time >= _FARTHEST_NS:
                continue
            parts: dict[str, dict[str, float]] = {}
            for place, value in _numbers(msgspec.json.decode(message.data)):
                parent, _, field = place.rpartition(".")
                part = parent.rpartition(".")[2]
                if part in _PARTS:
                    parts.setdefault(part, {})[field] = value
                else:
                    parts.setdefault("", {})[place] = value
            for part, numbers in parts.items():
                times.setdefault((channel.topic, part), []).append(message.log_time)
                rows.setdefault((channel.topic, part), []).append(numbers)
    except Exception as error:  # mcap, zstd and lz4 raise whatever the bytes lead them to
        raise mistake(file, f"is a damaged MCAP file: {type(error).__name__} {error}") from error
    streams: dict[str, Stream] = {}
    units_given: set[str] = set()
    for (topic, part), samples in rows.items():
        stream = _stream(topic, part, times[topic, part], samples)
        key = stream.modality.name
        if key in streams:  # of the same name in another place
            key = f"{key}_{len(streams) + 1}"
        streams[key] = replace(stream, modality=msgspec.structs.replace(stream.modality, name=key))
        if np.isinf(stream.values).any():
            raise mistake(file, f"has values of '{key}' that no sensor gives, beyond what 32 bits hold")
        if part:
            units_given.add(key)
    if not streams:
        others = ", ".join(f"{topic} ({encoding or 'no encoding'})" for topic, encoding in skipped.items())
        raise mistake(file, f"holds no topic of numbers in JSON{f', only {others}' if others else ''}")
    began = min(int(stream.times_ns[0]) for stream in streams.values())
    # Smaller than 1973 in nanoseconds: a clock that began with the machine or the recording.
    meta = {"source": file} | ({BEGAN: iso_text(began)} if began >= 10**17 else {})
    meta |= assumed(file, (stream for key, stream in streams.items() if key not in units_given))
    since = {key: replace(stream, times_ns=stream.times_ns - began) for key, stream in streams.items()}
    return Recording(name, person, meta, since)


def _numbers(message: Any, place: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(message, dict):
        for key, value in message.items():
            yield from _numbers(value, f"{place}.{key}" if place else str(key))
    elif isinstance(message, int | float) and not isinstance(message, bool) and abs(message) < 3e38:
        yield place or "value", float(message)


def _stream(topic: str, part: str, times: list[int], rows: list[dict[str, float]]) -> Stream:
    channels = tuple(dict.fromkeys(name for row in rows for name in row))
    values = np.array([[row.get(name, np.nan) for name in channels] for row in rows], np.float64)
    # Of several messages at one time the last holds; readers sort by time, and keep the order of equal times.
    stamps, first = np.unique(np.array(times, np.int64)[::-1], return_index=True)
    values = values[::-1][first]
    called = re.sub(r"\W+", "_", topic.rstrip("/").rpartition("/")[2].lower()).strip("_") or "topic"
    name, sent = _PARTS.get(part, (called, ""))
    unit, factor = canonical(name, sent)
    with np.errstate(over="ignore"):
        scaled = (values * factor).astype(np.float32)
    return Stream(Modality(name, channels, unit, rate_of(stamps)), stamps, scaled)
