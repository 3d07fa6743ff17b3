"""Choice of the twin that plays given streams: an entry for each profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from armlet_runtime.errors import UsageError
from armlet_runtime.signals import Stream
from armlet_runtime.wearables import UNITS, arduino, polar

from .arduino import ArduinoTwin
from .base import Twin
from .heart_rate import HeartRateTwin
from .imu import SCALES, ImuTwin
from .movesense import MovesenseTwin
from .muse import MUSE, MuseTwin
from .oximeter import OximeterTwin
from .polar import PolarTwin
from .thermometer import ThermometerTwin
from .thingy52 import ThingyTwin
from .uart import UartTwin


class Kind(NamedTuple):
    """The twin of a profile, and the modalities that it takes.

    Attributes:
        make: Makes the twin from the streams by modality, the samples in a packet, and the wearable's name.
        must: Modalities that it must play.
        can: Modalities that it can play, to the channels of each; None for any number.
        rates_hz: Sampling rates of the modalities that have a single rate.
    """

    make: Callable[[Mapping[str, Stream], int, str], Twin]
    must: frozenset[str]
    can: Mapping[str, int | None]
    rates_hz: Mapping[str, float] = MappingProxyType({})


_AXES = dict.fromkeys(SCALES, 3)
KINDS: Mapping[str, Kind] = {
    "imu": Kind(lambda streams, size, name: ImuTwin(list(streams.values()), size), frozenset(), _AXES),
    "heart_rate": Kind(
        lambda streams, size, name: HeartRateTwin(streams), frozenset({"hr"}), {"hr": 1, "rr": 1, "energy": 1}
    ),
    "oximeter": Kind(
        lambda streams, size, name: OximeterTwin(streams), frozenset({"spo2", "hr"}), {"spo2": 1, "hr": 1}
    ),
    "thermometer": Kind(lambda streams, size, name: ThermometerTwin(streams["temp"]), frozenset({"temp"}), {"temp": 1}),
    "polar": Kind(
        lambda streams, size, name: PolarTwin(streams),
        frozenset(),
        {kind.modality: len(kind.channels) for kind in polar.KINDS.values()},
    ),
    "muse": Kind(
        lambda streams, size, name: MuseTwin(streams),
        frozenset(),
        {name: len(modality.channels) for name, modality in MUSE.items()},
        {name: modality.rate_hz for name, modality in MUSE.items()},
    ),
    "movesense": Kind(lambda streams, size, name: MovesenseTwin(streams), frozenset(), {**_AXES, "ecg": 1}),
    "thingy52": Kind(lambda streams, size, name: ThingyTwin(streams), frozenset(_AXES), _AXES),
    "arduino": Kind(lambda streams, size, name: ArduinoTwin(streams), frozenset(), _AXES, arduino.RATES_HZ),
    "uart": Kind(lambda streams, size, name: UartTwin(streams, name), frozenset(), dict.fromkeys(UNITS)),
}
"""By profile, in order of preference."""


def twin_for(streams: Sequence[Stream]) -> str | None:
    """The profile whose twin plays these streams if none is named; None if none does."""
    return next((name for name, kind in KINDS.items() if not misfit(name, kind, streams)), None)


def make_twin(streams: Sequence[Stream], samples_per_packet: int, name: str, profile: str | None = None) -> Twin:
    """The twin of a profile that plays these streams; that of the first that can if none is named.

    Raises:
        UsageError: There is no such profile, or it does not carry these streams as they are.
    """
    chosen = profile or twin_for(streams)
    if chosen is None:
        names = " and ".join(stream.modality.name for stream in streams)
        raise UsageError(f"no virtual wearable carries {names}: give each a wearable of its own")
    kind = KINDS.get(chosen)
    if kind is None:
        raise UsageError(f"there is no virtual '{chosen}'; there are {', '.join(KINDS)}")
    if reason := misfit(chosen, kind, streams):
        raise UsageError(reason)
    return kind.make({stream.modality.name: stream for stream in streams}, samples_per_packet, name)


def misfit(profile: str, kind: Kind, streams: Sequence[Stream]) -> str:
    """Why a profile's twin cannot play these streams; empty if it can."""
    modalities = [stream.modality.name for stream in streams]
    if not kind.must <= set(modalities) <= kind.can.keys():
        needs = f", and needs {' and '.join(sorted(kind.must))}" if kind.must else ""
        return f"a virtual {profile} carries {', '.join(sorted(kind.can))}{needs}, not {' and '.join(modalities)}"
    for modality in (stream.modality for stream in streams):
        name, has, sends = modality.name, len(modality.channels), kind.can[modality.name]
        if sends not in (None, has):
            return f"a virtual {profile} sends {sends} channels of {name}; the recording has {has}"
        rate_hz = kind.rates_hz.get(name, modality.rate_hz)
        if abs(modality.rate_hz / rate_hz - 1) > 1e-3:
            return (
                f"a virtual {profile} sends {name} at {rate_hz:g} Hz; the recording has it at {modality.rate_hz:g} Hz"
            )
    return ""
