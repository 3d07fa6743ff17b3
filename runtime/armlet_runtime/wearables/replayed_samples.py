"""Streams of a recording, as the packets of a wearable that does not exist: what a replay makes of imported samples.

No device speaks this; only :mod:`armlet_runtime.signals.conversion` makes such packets, and it is therefore in no list
of profiles. All little-endian::

    info   SOURCE   JSON: a list of modalities
    data   SOURCE   number of the modality in that list u8 | count n u16 | n times u32, ns before the newest |
                    n x channels float32

The arrival of a packet is the time of its newest sample, so that every sample lies where it was recorded.
"""

from __future__ import annotations

import struct

import msgspec
import numpy as np

from ..errors import PacketError
from ..modalities import Modality
from .profile import Batch, Group, ProfileBase, Steps, Wanted

SOURCE = "armlet.played"

_HEAD = struct.Struct("<BH")


def encode_info(modalities: list[Modality]) -> bytes:
    """The packet that goes before all others."""
    return msgspec.json.encode(modalities)


def encode(index: int, before_ns: np.ndarray, values: np.ndarray) -> bytes:
    """One packet: samples of modality ``index``, their times before the newest (n,), and values (n, channels)."""
    return _HEAD.pack(index, len(values)) + before_ns.astype("<u4").tobytes() + values.astype("<f4").tobytes()


class ReplayedDecoder:
    """See :class:`armlet_runtime.wearables.Decoder`."""

    def __init__(self) -> None:
        self.groups: tuple[Group, ...] = ()

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """See :class:`armlet_runtime.wearables.Decoder`."""
        if kind == "info":
            self._learn(data)
            return []
        if len(data) < _HEAD.size:
            raise PacketError(f"{len(data)} bytes are no samples")
        index, count = _HEAD.unpack_from(data)
        if index >= len(self.groups):
            raise PacketError(f"there is no modality {index}")
        group = self.groups[index]
        channels = len(group.modalities[0].channels)
        if not count or len(data) != _HEAD.size + 4 * count * (1 + channels):
            raise PacketError(f"{len(data)} bytes are not {count} samples of {channels} channels")
        before = np.frombuffer(data, "<u4", count, _HEAD.size).astype(np.int64)
        if before[-1] != 0 or (np.diff(before) >= 0).any():
            raise PacketError("the times of the samples do not rise to that of the newest")
        values = np.frombuffer(data, "<f4", offset=_HEAD.size + 4 * count).reshape(count, channels)
        return [Batch(group, {group.modalities[0].name: values.astype(np.float32)}, before_ns=before)]

    def _learn(self, data: bytes) -> None:
        try:
            modalities = msgspec.json.decode(data, type=list[Modality])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PacketError(f"this is no list of modalities: {error}") from error
        if not all(1e-6 <= modality.rate_hz <= 1e6 and modality.channels for modality in modalities):
            raise PacketError("a modality needs channels, and a rate from 0.000001 to 1,000,000 Hz")
        if len({modality.name for modality in modalities}) < len(modalities):
            raise PacketError("a modality is there twice")
        self.groups = tuple(Group(f"{ReplayedProfile.name}.{modality.name}", (modality,)) for modality in modalities)


class ReplayedProfile(ProfileBase):
    """See :class:`armlet_runtime.wearables.Profile`."""

    name = "played"
    services: tuple[str, ...] = ()
    sources: tuple[str, ...] = (SOURCE,)
    carries: tuple[str, ...] = ()

    def start(self, wanted: Wanted) -> Steps:
        """Nothing: there is no device."""
        yield from ()

    def decoder(self) -> ReplayedDecoder:
        """A decoder for one replay."""
        return ReplayedDecoder()
