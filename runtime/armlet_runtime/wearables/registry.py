"""The profiles that armlet knows, and which of them a wearable speaks."""

from collections.abc import Iterable

from .arduino import ArduinoProfile
from .heart_rate import HeartRateProfile
from .imu import ImuProfile
from .movesense import MovesenseProfile
from .muse import MuseProfile
from .oximeter import OximeterProfile
from .polar import PolarProfile
from .profile import Profile
from .replayed_samples import ReplayedProfile
from .thermometer import ThermometerProfile
from .thingy52 import ThingyProfile
from .uart import UartProfile

PROFILES: tuple[Profile, ...] = (
    ImuProfile(),
    PolarProfile(),
    MuseProfile(),
    MovesenseProfile(),
    ThingyProfile(),
    ArduinoProfile(),
    UartProfile(),
    HeartRateProfile(),
    OximeterProfile(),
    ThermometerProfile(),
)
"""Every profile that armlet knows."""

# A replay's own packets are decoded like others, but no device speaks them.
_BY_SOURCE: dict[str, Profile] = {
    source: profile for profile in (*PROFILES, ReplayedProfile()) for source in profile.sources
}


def profile_of_characteristic(uuid: str) -> Profile | None:
    """The profile of a characteristic; None without one."""
    return _BY_SOURCE.get(uuid)


def profiles_of_services(uuids: Iterable[str]) -> list[Profile]:
    """The profiles that a connected wearable with these services speaks, in the order of :data:`PROFILES`."""
    have = set(uuids)
    return [profile for profile in PROFILES if have.intersection(profile.services)]


def profiles_of_advertisement(name: str | None, uuids: Iterable[str]) -> list[Profile]:
    """The profiles that a wearable may speak, by what it advertises, in the order of :data:`PROFILES`."""
    have = set(uuids)
    return [
        profile
        for profile in PROFILES
        if have.intersection(profile.services + profile.advertised) or (name and name.startswith(profile.names))
    ]
