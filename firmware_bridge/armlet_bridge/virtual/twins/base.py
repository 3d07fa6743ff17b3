"""What every twin is: GATT services that speak the bytes of a real wearable, and the notifications that fall due."""

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
from armlet_runtime.signals import GAP_PERIODS, Stream
from armlet_runtime.wearables import SIG_BASE

NOTIFY, INDICATE = Characteristic.Properties.NOTIFY, Characteristic.Properties.INDICATE
READ, WRITE = Characteristic.Properties.READ, Characteristic.Properties.WRITE
WRITE_QUIETLY = Characteristic.Properties.WRITE_WITHOUT_RESPONSE


@dataclass(frozen=True)
class DeviceClock:
    """A wearable's clock: ``epoch_us`` when the play begins, then fast by ``drift_ppm`` (slow if negative)."""

    epoch_us: int
    drift_ppm: float

    def at(self, elapsed_ns: int) -> int:
        """Its reading in microseconds, not wrapped."""
        return self.epoch_us + round(elapsed_ns * (1 + self.drift_ppm * 1e-6) / 1000)


class Due(NamedTuple):
    """One notification: when it falls due on the recording's clock, its bytes, and the characteristic that sends it."""

    at_ns: int
    value: bytes
    source: str


class Twin:
    """What a wearable speaks.

    Attributes:
        advertised: UUID of the service that it advertises.
        service: Its own service.
        notifying: Its characteristics that send samples, by UUID.
        device: The device that it lives on; set when it is put on.
    """

    advertised: str
    device: Device

    def __init__(self, service_uuid: str, characteristics: Iterable[Characteristic], sends: Sequence[str]) -> None:
        self.advertised = service_uuid
        all_of_them = list(characteristics)
        self.service = Service(bumble_uuid(service_uuid), all_of_them)
        by_uuid = {notifying.uuid: notifying for notifying in all_of_them}
        self.notifying = {source: by_uuid[bumble_uuid(source)] for source in sends}

    def running(self, source: str) -> bool:
        """Whether the host has started what this characteristic sends; being subscribed to is enough for most."""
        return True

    def is_due(self, due: Due) -> bool:
        """Whether a notification is sent as things stand."""
        return self.running(due.source)

    def packets(self, begin_ns: int, end_ns: int, clock: DeviceClock, sequence: int) -> Iterator[Due]:
        """All notifications for ``[begin_ns, end_ns)`` of the recording's clock, in order."""
        raise NotImplementedError

    def disconnected(self) -> None:
        """The host is gone."""


def bumble_uuid(uuid: str) -> UUID:
    """bumble's UUID, 16 bits long where the SIG assigned one: advertisements have room for few bytes."""
    short = uuid[4:8] if uuid.endswith(SIG_BASE) else uuid
    return UUID.from_16_bits(int(short, 16)) if len(short) == 4 else UUID(uuid)


def characteristic(
    uuid: str,
    properties: Characteristic.Properties,
    value: bytes = b"",
    write: Callable[[bytes], None] | None = None,
) -> Characteristic:
    """A characteristic with a fixed value; ``write``: what is done with what the host writes."""
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
    """Times and values of streams that are sampled together, without the samples that were not taken (NaN).

    Raises:
        UsageError: They are not sampled at the same times.
    """
    first = streams[0]
    if any(not np.array_equal(first.times_ns, stream.times_ns) for stream in streams):
        names = " and ".join(stream.modality.name for stream in streams)
        raise UsageError(f"{names} are not sampled at the same times: give each a wearable of its own")
    whole = np.logical_and.reduce([np.isfinite(stream.values).all(axis=1) for stream in streams])
    return first.times_ns[whole], [stream.values[whole] for stream in streams]


def chunks(times_ns: NDArray[np.int64], begin_ns: int, end_ns: int, rate_hz: float, most: int) -> Iterator[slice]:
    """Samples of ``[begin_ns, end_ns)`` in packets of at most so many; a packet ends early at a gap."""
    first, last = np.searchsorted(times_ns, (begin_ns, end_ns))
    gaps = np.diff(times_ns[first:last]) > GAP_PERIODS * 1e9 / rate_hz
    bounds = [int(first), *(np.flatnonzero(gaps) + 1 + first).tolist(), int(last)]
    for start, stop in pairwise(bounds):
        for i in range(start, stop, most):
            yield slice(i, min(i + most, stop))


def whole_chunks(times_ns: NDArray[np.int64], begin_ns: int, end_ns: int, rate_hz: float, size: int) -> Iterator[slice]:
    """As :func:`chunks`, but only packets that are full."""
    return (chunk for chunk in chunks(times_ns, begin_ns, end_ns, rate_hz, size) if chunk.stop - chunk.start == size)


_answers: set[asyncio.Future[Any]] = set()


def keep(answer: asyncio.Future[Any]) -> None:
    """Hold on to an answer that is on its way; asyncio itself does not. One that the link's end cuts short is lost."""
    _answers.add(answer)

    def done(task: asyncio.Future[Any]) -> None:
        _answers.discard(task)
        if not task.cancelled():
            task.exception()

    answer.add_done_callback(done)
