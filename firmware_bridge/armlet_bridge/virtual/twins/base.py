"""The base of all twins: GATT services with the bytes of a real wearable, and the notifications that fall due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from bumble.core import UUID
from bumble.device import Device
from bumble.gatt import Characteristic, CharacteristicValue, Service
from numpy.typing import NDArray

from armlet_runtime.errors import UsageError
from armlet_runtime.signals import Stream
from armlet_runtime.wearables import SIG_BASE
from armlet_runtime.windows import GAP_PERIODS

NOTIFY, INDICATE = Characteristic.Properties.NOTIFY, Characteristic.Properties.INDICATE
READ, WRITE = Characteristic.Properties.READ, Characteristic.Properties.WRITE
WRITE_QUIETLY = Characteristic.Properties.WRITE_WITHOUT_RESPONSE


@dataclass(frozen=True)
class DeviceClock:
    """A wearable's clock: ``epoch_us`` when the play begins, then fast by ``drift_ppm`` (slow if negative)."""

    epoch_us: int
    drift_ppm: float

    def at(self, elapsed_ns: int) -> int:
        """Return the clock's reading in microseconds, not wrapped."""
        return self.epoch_us + round(elapsed_ns * (1 + self.drift_ppm * 1e-6) / 1000)


class Due(NamedTuple):
    """A notification: its due time on the recording's clock, its bytes, and the characteristic that sends it."""

    at_ns: int
    value: bytes
    source: str


class Twin:
    """The GATT service of a wearable.

    Attributes:
        advertised: UUID of the advertised service.
        service: The service.
        notifying: Characteristics that send samples, by UUID.
        device: The device that has the service; set when the wearable is put on.
    """

    advertised: str
    device: Device

    def __init__(self, service_uuid: str, characteristics: Iterable[Characteristic], sends: Sequence[str]) -> None:
        self.advertised = service_uuid
        members = list(characteristics)
        self.service = Service(bumble_uuid(service_uuid), members)
        by_uuid = {member.uuid: member for member in members}
        self.notifying = {source: by_uuid[bumble_uuid(source)] for source in sends}

    def running(self, source: str) -> bool:
        """Return whether the host has started this characteristic's samples; for most a subscription is enough."""
        return True

    def is_due(self, due: Due) -> bool:
        """Return whether a notification is sent in the present state."""
        return self.running(due.source)

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """Yield all notifications for ``[begin_ns, end_ns)`` of the recording's clock, in order."""
        raise NotImplementedError

    def disconnected(self) -> None:
        """Reset the state that ends with a link."""


def bumble_uuid(uuid: str) -> UUID:
    """Convert a UUID to bumble's, with 16 bits where the SIG assigned them: advertisements have room for few bytes."""
    short = uuid[4:8] if uuid.endswith(SIG_BASE) else uuid
    return UUID.from_16_bits(int(short, 16)) if len(short) == 4 else UUID(uuid)


def characteristic(
    uuid: str,
    properties: Characteristic.Properties,
    value: bytes = b"",
    write: Callable[[bytes], None] | None = None,
) -> Characteristic:
    """Make a characteristic with a fixed value; ``write`` is called with each value that the host writes."""
    permissions = Characteristic.Permissions(0)
    if properties & READ:
        permissions |= Characteristic.READABLE
    if write is None:
        return Characteristic(bumble_uuid(uuid), properties, permissions, value)
    take = write
    permissions |= Characteristic.WRITEABLE
    handler = CharacteristicValue(read=lambda _: value, write=lambda _, data: take(bytes(data)))
    return Characteristic(bumble_uuid(uuid), properties, permissions, handler)


def taken(streams: Sequence[Stream]) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
    """Return times and values of streams that are sampled together, without missing samples (NaN).

    Raises:
        UsageError: The streams are not sampled at the same times.
    """
    first = streams[0]
    if any(not np.array_equal(first.times_ns, stream.times_ns) for stream in streams):
        names = " and ".join(stream.modality.name for stream in streams)
        raise UsageError(f"{names} are not sampled at the same times: give each a wearable of its own")
    whole = np.logical_and.reduce([np.isfinite(stream.values).all(axis=1) for stream in streams])
    return first.times_ns[whole], [stream.values[whole] for stream in streams]


def chunks(times_ns: NDArray[np.int64], begin_ns: int, end_ns: int, rate_hz: float, most: int) -> Iterator[slice]:
    """Yield the samples of ``[begin_ns, end_ns)`` in packets of ``most`` at most; a packet ends early at a gap."""
    first, last = np.searchsorted(times_ns, (begin_ns, end_ns))
    gaps = np.diff(times_ns[first:last]) > GAP_PERIODS * 1e9 / rate_hz
    bounds = [int(first), *(np.flatnonzero(gaps) + 1 + first).tolist(), int(last)]
    for start, stop in pairwise(bounds):
        for i in range(start, stop, most):
            yield slice(i, min(i + most, stop))


def whole_chunks(times_ns: NDArray[np.int64], begin_ns: int, end_ns: int, rate_hz: float, size: int) -> Iterator[slice]:
    """Yield only the full packets of :func:`chunks`."""
    return (chunk for chunk in chunks(times_ns, begin_ns, end_ns, rate_hz, size) if chunk.stop - chunk.start == size)


_answers: set[asyncio.Future[Any]] = set()


def keep(answer: asyncio.Future[Any]) -> None:
    """Keep a reference to a pending answer, as asyncio does not; an answer that the link's end cuts short is lost."""
    _answers.add(answer)

    def done(task: asyncio.Future[Any]) -> None:
        _answers.discard(task)
        if not task.cancelled():
            task.exception()

    answer.add_done_callback(done)
