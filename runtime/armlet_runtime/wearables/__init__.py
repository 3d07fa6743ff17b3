"""Wearables: one file per profile, each the single place of its UUIDs and packet layouts."""

from .heart_rate import HeartRateProfile
from .imu import ImuProfile
from .profile import Batch, Counters, Decoder, Profile

__all__ = ["PROFILES", "Batch", "Counters", "Decoder", "Profile", "profile_of_characteristic", "profiles_of_services"]

PROFILES: tuple[Profile, ...] = (ImuProfile(), HeartRateProfile())
"""Every profile that armlet knows."""


def profile_of_characteristic(uuid: str) -> Profile | None:
    """The profile that reads or subscribes to this characteristic; None if there is none."""
    return next((profile for profile in PROFILES if uuid in (profile.data_uuid, profile.info_uuid)), None)


def profiles_of_services(uuids: list[str]) -> list[Profile]:
    """The profiles among a wearable's services, in the order of :data:`PROFILES`."""
    return [profile for profile in PROFILES if profile.service_uuid in uuids]
