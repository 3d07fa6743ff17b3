"""Recordings as the live loop takes them: their packets, or packets made of their streams; and packets as streams.

A stream of another rate than the model's is brought to the model's, see :mod:`.rate_conversion`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..errors import DataError
from ..modalities import Modality
from ..wearables import replayed_samples
from ..windows import RATE_TOLERANCE
from .rate_conversion import at_rate
from .recording import Packet, Recording, Stream
from .sample_ring import SampleRing
from .wearable import Wearable

# Samples that lie in the same tenth of a second are one packet, about as wearables send them.
PACKET_NS = 100_000_000

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
    streams, sentences = [], []
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
            sentences.append(
                f"{got.name} comes at {got.rate_hz:g} Hz, and was brought to the model's {modality.rate_hz:g} Hz"
            )
        if len(stream.times_ns):
            streams.append(stream)
    if not streams:
        has = ", ".join(recording.streams) or "nothing"
        raise DataError(
            f"the recording has {has}; the model wants {', '.join(modality.name for modality in modalities)}"
        )
    return list(_play(recording.name or "recording", streams)), sentences


def _play(name: str, streams: Sequence[Stream]) -> Iterator[Packet]:
    first_ns = min(int(stream.times_ns[0]) for stream in streams)
    yield Packet(first_ns, name, "connected", "", b"")
    yield Packet(
        first_ns,
        name,
        "info",
        replayed_samples.SOURCE,
        replayed_samples.encode_info([stream.modality for stream in streams]),
    )
    packets = []
    for index, stream in enumerate(streams):
        times = stream.times_ns
        starts = np.flatnonzero(np.diff(times // PACKET_NS, prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(times)], strict=True):
            newest = int(times[stop - 1])
            data = replayed_samples.encode(index, newest - times[start:stop], stream.values[start:stop])
            packets.append(Packet(newest, name, "data", replayed_samples.SOURCE, data))
    yield from sorted(packets, key=lambda packet: packet.arrival_ns)


def with_streams(recording: Recording) -> Recording:
    """A recording whose packets are also there as streams, on the host's clock; streams that it has already stay.

    A modality that two wearables bring is of the one that brought it first, as in a live run; the other's is called
    ``MODALITY_2``.
    """
    if not recording.packets:
        return recording
    wearables: dict[str, Wearable] = {}
    settled: dict[tuple[str, str], _Settled] = {}
    settled_ns = recording.packets[0].arrival_ns
    for packet in recording.packets:
        wearable = wearables.setdefault(packet.wearable, Wearable(packet.wearable, _KEEP_NS))
        if packet.arrival_ns - settled_ns > 2 * _SETTLED_NS:
            settled_ns = packet.arrival_ns - _SETTLED_NS
            _settle(wearables, settled, settled_ns)
        wearable.take(packet)
    _settle(wearables, settled, None)
    streams = dict(recording.streams)
    for key, stream in settled.items():
        if not stream.parts:
            continue
        name = key[1]
        for number in range(2, 10):
            if name in streams:
                name = f"{key[1]}_{number}"
        times = np.concatenate([times for times, _ in stream.parts])
        values = np.concatenate([values for _, values in stream.parts])
        streams[name] = Stream(
            Modality(name, stream.known.channels, stream.known.unit, stream.known.rate_hz), times, values
        )
    return replace(recording, streams=streams)


@dataclass
class _Settled:
    """The settled samples of one modality of a wearable.

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


def _settle(wearables: Mapping[str, Wearable], settled: dict[tuple[str, str], _Settled], until_ns: int | None) -> None:
    """Take what is not taken yet, and lies before a time."""
    for wearable in wearables.values():
        for name, ring in wearable.rings.items():
            stream = settled.setdefault((wearable.name, name), _Settled(ring.modality, ring))
            if stream.ring is not ring:  # it sends in another way now
                if ring.modality.channels != stream.known.channels:
                    continue
                stream.ring, stream.taken = ring, 0
            if not ring.total:
                continue
            times, values = ring.samples(0)
            stop = len(times) if until_ns is None else int(np.searchsorted(times, until_ns))
            # Counted, as a sample's time changes while its clock gets known better; but samples well before
            # the newest that was taken is taken, though of overlapping runs of a clock some do not show.
            start = max(len(times) - (ring.total - stream.taken), 0)
            newest_ns = int(stream.parts[-1][0][-1]) if stream.parts else None
            if newest_ns is not None:
                start = max(start, int(np.searchsorted(times, newest_ns - _CLOCK_MOVES_NS)))
            if stop > start:
                stream.taken = ring.total - (len(times) - stop)
                taken = times[start:stop]
                if newest_ns is not None:
                    taken = np.maximum(taken, newest_ns + 1 + np.arange(len(taken)))
                stream.parts.append((taken, values[start:stop]))
