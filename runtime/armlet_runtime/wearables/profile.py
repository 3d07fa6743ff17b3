"""Wearable profiles: how a wearable is started, and how its bytes become samples.

Profiles do no input or output. They give a generator of :data:`Step`, which the Bluetooth session carries out; the
messages in both directions reach the decoder, live and again in every replay of the recording.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..modalities import Modality

UNITS: Mapping[str, str] = {
    "acc": "g",
    "gyro": "rad/s",
    "mag": "uT",
    "ecg": "mV",
    "eeg": "uV",
    "ppg": "count",
    "hr": "bpm",
    "rr": "s",
    "energy": "kJ",
    "spo2": "%",
    "temp": "degC",
    "eda": "uS",
    "emg": "mV",
    "eog": "uV",
}
"""The unit of each kind of signal, whatever the wearable sends: models are trained in these."""

XYZ = ("x", "y", "z")

SIG_BASE = "-0000-1000-8000-00805f9b34fb"
"""What follows the first eight digits of a UUID that the Bluetooth SIG assigned."""


def sig(number: int) -> str:
    """The UUID of a service or characteristic that the Bluetooth SIG assigned, as bleak writes it."""
    return f"{number:08x}{SIG_BASE}"


@dataclass(frozen=True)
class Counters:
    """Which of a wearable's counters is a clock, and at which values they start again from 0.

    With ``clock_wrap_ns`` the wearable stamps its packets with a clock. With ``sequence_wrap`` alone its packets are
    numbered and hold equally many samples, so that the number is a clock in samples. With neither, samples come at a
    steady rate and are counted here.

    Attributes:
        sequence_wrap: Of the packet counter; None without a counter.
        clock_wrap_ns: Of the device clock, in ns; None without a clock.
        stamps_last: The clock is that of a packet's last sample, not of its first.
        drift_ppm: How far its rate may be off; quartz clocks by no more than 100 (the worst that Bluetooth's sleep
            clock commonly is), a sensor's own oscillator by several thousand (data sheets of common IMUs).
    """

    sequence_wrap: int | None = None
    clock_wrap_ns: int | None = None
    stamps_last: bool = False
    drift_ppm: float = 100.0


SENSOR_DRIFT_PPM = 10_000.0
"""For :attr:`Counters.drift_ppm` of counted samples: sensors keep their nominal rate to about one percent."""


@dataclass(frozen=True)
class Group:
    """Modalities whose samples come together, at one rate and by one clock.

    Attributes:
        name: ``PROFILE`` or ``PROFILE.PART``; unique in a wearable.
        modalities: All of the same rate.
        counters: None if samples are placed by their arrival.
    """

    name: str
    modalities: tuple[Modality, ...]
    counters: Counters | None = None

    @cached_property
    def period_ns(self) -> int:
        """Nominal time between two samples."""
        return round(1e9 / self.modalities[0].rate_hz)


@dataclass(frozen=True)
class Batch:
    """The samples of one group in one notification.

    Attributes:
        group: Their group.
        values: Modality name to (n, channels) float32 in the modality's unit; the same n for all, 0 for no sample.
        sequence: Packet counter as sent; None without a counter.
        clock_ns: Device clock as sent, in ns; None without a clock.
        before_ns: Samples that are not evenly spaced: how long before the newest each was taken, (n,) int64 falling to
            0. None: they are a period apart.
    """

    group: Group
    values: Mapping[str, NDArray[np.float32]]
    sequence: int | None = None
    clock_ns: int | None = None
    before_ns: NDArray[np.int64] | None = None

    @property
    def count(self) -> int:
        """Samples of each modality."""
        return len(next(iter(self.values.values())))


@dataclass(frozen=True)
class Read:
    """Read a characteristic; the decoder gets the value as ``info``."""

    source: str


@dataclass(frozen=True)
class Subscribe:
    """Subscribe to a characteristic; the decoder gets each value as ``data``."""

    source: str


@dataclass(frozen=True)
class Write:
    """Write to a characteristic; the decoder gets it as ``written``."""

    source: str
    data: bytes
    response: bool = True


@dataclass(frozen=True)
class Ask:
    """Write, and wait for the notification that answers; the characteristic of the answer must be subscribed to.

    Attributes:
        source: Written to.
        data: The bytes to write.
        answers: Characteristic that answers.
        begins: How the answer begins.
    """

    source: str
    data: bytes
    answers: str
    begins: bytes


Step = Read | Subscribe | Write | Ask
Steps = Generator[Step, bytes, None]
"""What to do in order. A step is answered with what was read or what the wearable answered; empty otherwise."""


@dataclass(frozen=True)
class Wanted:
    """The modalities that a start should bring.

    Attributes:
        rates_hz: Modality to the rate wanted, None for any. Empty: every modality.
        characteristics: UUIDs of the characteristics that the wearable has.
        name: Its name.
        named: Whether a person named it. Other devices are not to be changed: what is stored or run on them stays.
    """

    rates_hz: Mapping[str, float | None] = field(default_factory=dict)
    characteristics: frozenset[str] = frozenset()
    name: str = ""
    named: bool = True

    def wants(self, *modalities: str) -> bool:
        """Whether any of these modalities is wanted."""
        return not self.rates_hz or any(name in self.rates_hz for name in modalities)

    def rate_hz(self, modalities: tuple[str, ...], default: float) -> float:
        """The rate wanted of these modalities."""
        return next((rate for name in modalities if (rate := self.rates_hz.get(name)) is not None), default)


class Decoder(Protocol):
    """Decodes the packets of one connection.

    Attributes:
        groups: The groups that the wearable sends, as far as the packets until now tell. A new tuple after each packet
            that a decoder must have had to decode later ones: recordings that begin later keep those packets.
    """

    groups: tuple[Group, ...]

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """Take in bytes; the samples that they complete.

        Args:
            kind: ``info`` (read), ``written`` (by the host) or ``data`` (a notification or indication).
            source: UUID of the characteristic.
            data: The bytes.

        Raises:
            PacketError: The bytes do not follow the profile's layout.
        """


class Profile(Protocol):
    """One way in which wearables send samples: its bytes, and how they are made to come.

    Attributes:
        name: Short name.
        services: UUIDs of the GATT services that it needs, one of which a wearable must have.
        advertised: Other services that such wearables show in their advertisements.
        names: How the advertised names of such wearables begin, if their advertisements show no service.
        sources: UUIDs of all characteristics that it reads, writes or subscribes to.
        carries: Names of the modalities that such a wearable may carry.
        silence_s: How long such a wearable may send nothing although all is well.
    """

    name: str
    services: tuple[str, ...]
    advertised: tuple[str, ...]
    names: tuple[str, ...]
    sources: tuple[str, ...]
    carries: tuple[str, ...]
    silence_s: float

    def start(self, wanted: Wanted) -> Steps:
        """How to make the samples come.

        Raises:
            PacketError: The wearable sent something that is not of this profile, or refuses.
        """

    def stop(self, wanted: Wanted) -> Steps:
        """How to make a started wearable stop, for those that would go on without a listener."""

    def decoder(self) -> Decoder:
        """A decoder for one connection."""


class ProfileBase:
    """What most profiles have in common; a profile need not derive from it."""

    advertised: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    silence_s: float = 0.0

    def stop(self, wanted: Wanted) -> Steps:
        """Nothing: the wearable stops when nobody listens."""
        yield from ()
