"""A Muse headband, as a twin: see :mod:`armlet_runtime.wearables.muse`."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from armlet_runtime.signals import Stream
from armlet_runtime.wearables import muse

from .base import NOTIFY, WRITE, WRITE_QUIETLY, DeviceClock, Due, Twin, characteristic, taken, whole_chunks

MUSE = {group.modalities[0].name: group.modalities[0] for group in (muse.EEG, muse.PPG, muse.ACC, muse.GYRO)}
"""Modalities of a Muse headband."""


_MUSE_SIZES = {"eeg": muse.EEG_PER_PACKET, "ppg": muse.PPG_PER_PACKET}


class MuseTwin(Twin):
    """A Muse headband (:mod:`armlet_runtime.wearables.muse`)."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._streams = {name: (stream, *taken([stream])) for name, stream in streams.items()}
        self._on = False
        self._sources = {
            name: sources
            for name, sources in {
                "eeg": tuple(muse.EEG_UUIDS),
                "ppg": tuple(muse.PPG_UUIDS),
                "acc": (muse.ACC_UUID,),
                "gyro": (muse.GYRO_UUID,),
            }.items()
            if name in streams
        }
        control = characteristic(muse.CONTROL_UUID, WRITE | WRITE_QUIETLY | NOTIFY, write=self._written)
        # A headband has all of its characteristics but those of the PPG, whatever is played on it.
        all_sources = [*muse.EEG_UUIDS, muse.ACC_UUID, muse.GYRO_UUID, *(muse.PPG_UUIDS if "ppg" in streams else ())]
        sends = [source for sources in self._sources.values() for source in sources]
        super().__init__(
            muse.SERVICE_UUID, [control, *(characteristic(source, NOTIFY) for source in all_sources)], sends
        )

    def _written(self, data: bytes) -> None:
        self._on = {muse.command("d"): True, muse.command("h"): False}.get(data, self._on)

    def running(self, source: str) -> bool:
        """See :class:`Twin`."""
        return self._on

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """See :class:`Twin`."""
        return heapq.merge(*(self._signal(name, begin_ns, end_ns, sequence) for name in self._sources))

    def _signal(self, name: str, begin_ns: int, end_ns: int, sequence: int) -> Iterator[Due]:
        stream, times_ns, (values,) = self._streams[name]
        size = _MUSE_SIZES.get(name, muse.MOTION_PER_PACKET)
        for chunk in whole_chunks(times_ns, begin_ns, end_ns, stream.modality.rate_hz, size):
            # The counter is that of the samples since the play's begin, so that it goes on over gaps.
            number = sequence + round((int(times_ns[chunk.start]) - begin_ns) / 1e9 * stream.modality.rate_hz / size)
            at_ns, window = int(times_ns[chunk.stop - 1]), values[chunk]
            for i, source in enumerate(self._sources[name]):
                if name == "eeg":
                    value = muse.encode_eeg(number, window[:, i])
                elif name == "ppg":
                    value = muse.encode_ppg(number, window[:, i])
                else:
                    value = muse.encode_motion(number, window, muse.ACC_G if name == "acc" else muse.GYRO_RAD_S)
                yield Due(at_ns, value, source)

    def disconnected(self) -> None:
        """See :class:`Twin`."""
        self._on = False
