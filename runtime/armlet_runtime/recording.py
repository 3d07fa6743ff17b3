"""Recordings: the streams of one wearing, with their clocks, as they arrived; kept in MCAP files.

A recording has two layers, and a file may hold either or both. *Packets* are the bytes that wearables sent, with the
host's arrival times and the links' events: what a live run writes and a replay reads. *Streams* are decoded samples on
one common clock: what data sets bring, training reads and virtual wearables play.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .modalities import Modality


@dataclass(frozen=True)
class Stream:
    """The samples of one modality.

    Attributes:
        modality: What they are; ``modality.rate_hz`` is the nominal rate of the samples.
        times_ns: (n,) int64, strictly increasing, nanoseconds on the recording's common clock.
        values: (n, channels) float32 in ``modality.unit``.
    """

    modality: Modality
    times_ns: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Label:
    """A labelled span: ``[start_ns, end_ns)`` on the recording's common clock."""

    start_ns: int
    end_ns: int
    name: str


@dataclass(frozen=True)
class Packet:
    """Bytes as one wearable sent them, or an event of its link.

    Attributes:
        arrival_ns: Host's monotonic clock when they arrived.
        wearable: The wearable's name in the session.
        kind: ``data`` (a notification), ``info`` (what was read at connection: the profile needs it to decode),
            ``connected``, ``disconnected``.
        source: UUID of the characteristic; empty for link events.
        data: The bytes; empty for link events.
    """

    arrival_ns: int
    wearable: str
    kind: str
    source: str
    data: bytes


@dataclass
class Recording:
    """Streams, labels and packets of one wearing.

    Attributes:
        name: Unique within its data set, such as ``hapt-p02-r00``.
        person: Identifier of the wearer, for splits by person.
        meta: Anything else worth keeping, as strings.
        streams: By modality name.
        labels: In order of time.
        packets: In order of arrival.
    """

    name: str
    person: str
    meta: dict[str, str] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    labels: list[Label] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)
