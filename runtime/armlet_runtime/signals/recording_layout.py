"""Recordings as MCAP files, written as they come and read front to back.

The file is MCAP 0 (https://mcap.dev/spec), chunked, zstd, indexed, with CRCs; all messages are JSON with a JSON schema,
so that Foxglove plots them::

    metadata "armlet.recording"   name, person
    metadata "armlet.meta"        the recording's own meta; a later record of this name adds to an earlier one
    topic /streams/NAME           one message a sample: {channel: number}, null for NaN; log time = the sample's time;
                                  the channel's metadata hold the modality as JSON
    topic /labels                 {"start_ns", "end_ns", "name"}; log time = start_ns
    topic /packets                {"wearable", "kind", "source", "data" (base64)}; log time = arrival_ns
    topic /decisions              a :class:`armlet_runtime.decisions.Decision`; log time = decided_ns
"""

from __future__ import annotations

import msgspec
import numpy as np

from ..errors import DataError
from .recording import Stream

INFO, META = "armlet.recording", "armlet.meta"
STREAMS, LABELS, PACKETS, DECISIONS = "/streams/", "/labels", "/packets", "/decisions"


class PacketMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A message of ``/packets``."""

    wearable: str
    kind: str
    source: str
    data: bytes


class LabelMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A message of ``/labels``."""

    start_ns: int
    end_ns: int
    name: str


def check_stream(stream: Stream) -> None:
    """Refuse a stream whose arrays do not fit each other.

    Raises:
        DataError: The arrays do not fit :class:`Stream`, times are negative or do not rise, or a value is infinite.
    """
    name, channels = stream.modality.name, len(stream.modality.channels)
    times, values = stream.times_ns, stream.values
    if times.dtype != np.int64 or values.dtype != np.float32 or values.shape != (len(times), channels):
        raise DataError(
            f"the stream '{name}' needs int64 times (n,) and float32 values (n, {channels}), "
            f"not {times.dtype} {times.shape} and {values.dtype} {values.shape}"
        )
    if len(times) and (times[0] < 0 or (np.diff(times) <= 0).any()):
        raise DataError(f"the times of the stream '{name}' must not be negative and must rise strictly")
    if np.isinf(values).any():
        raise DataError(f"the stream '{name}' holds an infinite value")
