"""A recording: the streams of one wearing, with their clocks, as they arrived.

It has two layers, and may have either or both. *Packets* are the bytes that wearables sent, with the host's arrival
times and the links' events: what a live run writes and a replay reads. *Streams* are decoded samples on one common
clock: what data sets bring, training reads and virtual wearables play. Files of them are in :mod:`.recording_layout`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..decisions import Decision
from ..errors import DataError
from ..modalities import Modality

ENDED_NS = "ended_ns"
"""Key of :attr:`Recording.meta`: host's monotonic clock at the end of a live run, up to which a replay decides."""

BEGAN = "began"
"""Key of :attr:`Recording.meta`: when it began, ISO 8601; UTC if it ends in Z, else the local time of the place."""


@dataclass(frozen=True)
class Stream:
    """The samples of one modality.

    Attributes:
        modality: Their modality; ``modality.rate_hz`` is the nominal rate.
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
    """The bytes of a packet as the wearable sent them, or an event of its link.

    Attributes:
        arrival_ns: Host's monotonic clock when they arrived.
        wearable: The wearable's name in the session.
        kind: ``data`` (a notification), ``info`` and ``written`` (what was read and written to start the wearable: the
            profile needs it to decode), ``connected``, ``disconnected``, ``earlier`` (a notification from before the
            recording began: a decoder learns from it, and its samples are not of this recording).
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
        decisions: Of the live run, in order, each as :meth:`armlet_runtime.decisions.Decision.to_json` gives it: with
            their embeddings they would take ten times the memory.
        truncated: The file it was read from had no end: its writer was killed, or the file was cut off, and what is
            here is all up to the last whole chunk.
    """

    name: str
    person: str
    meta: dict[str, str] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    labels: list[Label] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)
    decisions: list[bytes] = field(default_factory=list)
    truncated: bool = False


def now_text() -> str:
    """This moment, as :data:`BEGAN` has it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def decoded(line: bytes) -> Decision:
    """A decision of :attr:`Recording.decisions`.

    Raises:
        DataError: The line is not a valid decision.
    """
    try:
        return msgspec.json.decode(line, type=Decision)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"a line is not a valid decision: {error}") from error
