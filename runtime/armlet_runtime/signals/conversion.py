"""Recordings as the live loop takes them: their packets, or packets made of their streams; and packets as streams.

A stream whose rate the model does not want is brought to the model's before it is played. To a lower rate it goes
through a low-pass filter first, which a live run could not do without being late; to a higher one it is interpolated,
and what the wearable did not measure stays out of it. A live run refuses both, see :mod:`armlet_runtime.live.core`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..errors import DataError
from ..modalities import Modality
from ..wearables import replayed_samples as played
from .recording import Packet, Recording, Stream
from .streams import SampleRing, Wearable
from .windows import GAP_PERIODS, RATE_TOLERANCE, resample

# Samples that lie in the same tenth of a second are one packet, about as wearables send them.
PACKET_NS = 100_000_000

# The low-pass filter before a lower rate: a Kaiser window whose stop band is 60 dB down (Oppenheim & Schafer, 7.5.3),
# from 0.4 to 0.5 of the new rate.
_PASS, _STOP, _DECIBELS = 0.4, 0.5, 60.0

# Packets are decoded to streams with their clocks as they are then known, so many seconds behind the newest: the fit of
# a clock looks back some minutes only, and its newest line does not hold for the first hour.
_SETTLED_NS = 5_000_000_000
_KEEP_NS = 30_000_000_000

# By how much the time of a sample that was settled may yet move.
_CLOCK_MOVES_NS = 100_000_000


def packets_of(recording: Recording, modalities: Sequence[Modality]) -> tuple[list[Packet], list[str]]:
    """A recording's packets, or its streams of these modalities as packets; and a sentence on each changed rate.

    Args:
        recording: With packets, or with streams.
        modalities: Of the model.

    Raises:
        DataError: It has neither packets nor a stream that fits.
    """
    if recording.packets:
        return recording.packets, []
    streams, said = [], []
    for modality in modalities:
        stream = recording.streams.get(modality.name)
        if stream is None or not len(stream.times_ns):
            continue
        got = stream.modality
        if (got.channels, got.unit) != (modality.channels, modality.unit):
            raise DataError(
                f"the recording's '{got.name}' is {', '.join(got.channels)} in '{got.unit}'; "
                f"the model wants {', '.join(modality.channels)} in '{modality.unit}'"
            )
        if abs(got.rate_hz / modality.rate_hz - 1) > RATE_TOLERANCE:
            stream = at_rate(stream, modality.rate_hz)
            said.append(
                f"{got.name} comes at {got.rate_hz:g} Hz, and was brought to the model's {modality.rate_hz:g} Hz"
            )
        if len(stream.times_ns):
            streams.append(stream)
    if not streams:
        has = ", ".join(recording.streams) or "nothing"
        raise DataError(
            f"the recording has {has}; the model wants {', '.join(modality.name for modality in modalities)}"
        )
    return list(_play(recording.name or "recording", streams)), said


def _play(name: str, streams: Sequence[Stream]) -> Iterator[Packet]:
    first_ns = min(int(stream.times_ns[0]) for stream in streams)
    yield Packet(first_ns, name, "connected", "", b"")
    yield Packet(first_ns, name, "info", played.SOURCE, played.encode_info([stream.modality for stream in streams]))
    packets = []
    for index, stream in enumerate(streams):
        times = stream.times_ns
        starts = np.flatnonzero(np.diff(times // PACKET_NS, prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(times)], strict=True):
            newest = int(times[stop - 1])
            data = played.encode(index, newest - times[start:stop], stream.values[start:stop])
            packets.append(Packet(newest, name, "data", played.SOURCE, data))
    yield from sorted(packets, key=lambda packet: packet.arrival_ns)


def at_rate(stream: Stream, rate_hz: float) -> Stream:
    """A stream at another rate, on a grid that begins with its first sample; where it has gaps, so has the result."""
    own_hz = stream.modality.rate_hz
    finite = np.isfinite(stream.values).all(axis=1)
    times, values = stream.times_ns[finite], stream.values[finite]
    seconds = (times - times[0]) / 1e9 if len(times) else np.zeros(0)
    if own_hz > rate_hz and len(times):
        seconds, values = _low_passed(seconds, values, own_hz, rate_hz)
    count = math.floor(seconds[-1] * rate_hz + 1e-6) + 1 if len(seconds) else 0
    grid = np.arange(count) / rate_hz
    there, covered = resample(seconds, values, grid, 1 / own_hz)
    start = int(times[0]) if len(times) else 0
    stamps = start + np.rint(grid[covered] * 1e9).astype(np.int64)
    return Stream(_with_rate(stream.modality, rate_hz), stamps, there[covered])


def _with_rate(modality: Modality, rate_hz: float) -> Modality:
    return Modality(modality.name, modality.channels, modality.unit, rate_hz)


def _low_passed(
    seconds: NDArray[np.float64], values: Float32, own_hz: float, rate_hz: float
) -> tuple[NDArray[np.float64], Float32]:
    """Each gap-free stretch on a grid of its own rate, without what the new rate cannot carry."""
    width = (_STOP - _PASS) * rate_hz / own_hz
    taps = 2 * math.ceil((_DECIBELS - 7.95) / (14.36 * width) / 2) + 1
    n = np.arange(taps) - taps // 2
    cutoff = (_PASS + _STOP) * rate_hz / own_hz  # of half the own rate
    beta = 0.1102 * (_DECIBELS - 8.7)
    kernel = cutoff * np.sinc(cutoff * n) * np.kaiser(taps, beta)
    kernel /= kernel.sum()
    edges = np.flatnonzero(np.diff(seconds) > GAP_PERIODS / own_hz) + 1
    times, filtered = [], []
    for part in np.split(np.arange(len(seconds)), edges):
        grid = (
            seconds[part[0]]
            + np.arange(math.floor((seconds[part[-1]] - seconds[part[0]]) * own_hz + 1e-6) + 1) / own_hz
        )
        even, _ = resample(seconds[part], values[part], grid, 1 / own_hz)
        # Held at its ends, so that a stretch does not fade in and out.
        held = np.pad(even.astype(np.float64), ((taps // 2, taps // 2), (0, 0)), "edge")
        times.append(grid)
        filtered.append(np.stack([np.convolve(column, kernel, "valid") for column in held.T], axis=1))
    return np.concatenate(times), np.concatenate(filtered).astype(np.float32)


def with_streams(recording: Recording) -> Recording:
    """A recording whose packets are also there as streams, on the host's clock; streams that it has already stay.

    A modality that two wearables bring is of the one that brought it first, as in a live run; the other's is called
    ``MODALITY_2``.
    """
    if not recording.packets:
        return recording
    wearables: dict[str, Wearable] = {}
    found: dict[tuple[str, str], _Settled] = {}
    settled_ns = recording.packets[0].arrival_ns
    for packet in recording.packets:
        wearable = wearables.setdefault(packet.wearable, Wearable(packet.wearable, _KEEP_NS))
        if packet.arrival_ns - settled_ns > 2 * _SETTLED_NS:
            settled_ns = packet.arrival_ns - _SETTLED_NS
            _settle(wearables, found, settled_ns)
        wearable.take(packet)
    _settle(wearables, found, None)
    streams = dict(recording.streams)
    for key, one in found.items():
        if not one.parts:
            continue
        name = key[1]
        for number in range(2, 10):
            if name in streams:
                name = f"{key[1]}_{number}"
        times = np.concatenate([times for times, _ in one.parts])
        values = np.concatenate([values for _, values in one.parts])
        streams[name] = Stream(Modality(name, one.known.channels, one.known.unit, one.known.rate_hz), times, values)
    return replace(recording, streams=streams)


@dataclass
class _Settled:
    """What is settled of one modality of a wearable.

    Attributes:
        known: As it was sent at first.
        ring: Where its samples come from.
        taken: Of the samples that the ring has ever had, how many are settled.
        parts: Times and values of those, and of those of rings before with as many channels.
    """

    known: Modality
    ring: SampleRing
    taken: int = 0
    parts: list[tuple[NDArray[np.int64], Float32]] = field(default_factory=list)


def _settle(wearables: Mapping[str, Wearable], found: dict[tuple[str, str], _Settled], until_ns: int | None) -> None:
    """Take what is not taken yet, and lies before a time."""
    for wearable in wearables.values():
        for name, ring in wearable.rings.items():
            one = found.setdefault((wearable.name, name), _Settled(ring.modality, ring))
            if one.ring is not ring:  # it sends in another way now
                if ring.modality.channels != one.known.channels:
                    continue
                one.ring, one.taken = ring, 0
            if not ring.total:
                continue
            times, values = ring.samples(0)
            stop = len(times) if until_ns is None else int(np.searchsorted(times, until_ns))
            # Counted, for a sample's time is another one since its clock is known better; but what lies well before
            # the newest that was taken is taken, though of overlapping runs of a clock some do not show.
            start = max(len(times) - (ring.total - one.taken), 0)
            newest_ns = int(one.parts[-1][0][-1]) if one.parts else None
            if newest_ns is not None:
                start = max(start, int(np.searchsorted(times, newest_ns - _CLOCK_MOVES_NS)))
            if stop > start:
                one.taken = ring.total - (len(times) - stop)
                taken = times[start:stop]
                if newest_ns is not None:
                    taken = np.maximum(taken, newest_ns + 1 + np.arange(len(taken)))
                one.parts.append((taken, values[start:stop]))
