"""What a wearable profile is: how the bytes of one GATT service become samples. Profiles do no input or output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..modalities import Modality


@dataclass(frozen=True)
class Counters:
    """At which values a profile's packet counter and device clock (us) start again from 0."""

    sequence_wrap: int
    clock_wrap_us: int


@dataclass(frozen=True)
class Batch:
    """The samples of one notification.

    Attributes:
        values: Modality name to (n, channels) float32 in the modality's unit; the same n for all, 0 for no sample.
        sequence: Packet counter as sent; None if the profile has none.
        clock_us: Device clock of the first sample as sent; None if the profile has none.
    """

    values: Mapping[str, NDArray[np.float32]]
    sequence: int | None = None
    clock_us: int | None = None

    @property
    def count(self) -> int:
        """Samples of each modality."""
        return len(next(iter(self.values.values())))


class Decoder(Protocol):
    """Decodes the notifications of one connection.

    Attributes:
        modalities: What the wearable carries, at its own rate.
        counters: How its counters wrap; None for a profile without counter and clock, whose samples are placed by
            arrival.
    """

    modalities: tuple[Modality, ...]
    counters: Counters | None

    def decode(self, data: bytes) -> Batch:
        """Read one notification.

        Raises:
            PacketError: The bytes do not follow the profile's layout.
        """


class Profile(Protocol):
    """One GATT service that carries samples.

    Attributes:
        name: Short name.
        service_uuid: What a wearable advertises.
        info_uuid: Characteristic that is read at connection, before the data; None if there is none.
        data_uuid: Characteristic that notifies.
        carries: Names of the modalities that a wearable with this service may carry.
    """

    name: str
    service_uuid: str
    info_uuid: str | None
    data_uuid: str
    carries: tuple[str, ...]

    def decoder(self, info: bytes) -> Decoder:
        """A decoder for one connection. ``info``: what ``info_uuid`` said; empty if there is none.

        Raises:
            PacketError: ``info`` does not follow the profile's layout.
        """
