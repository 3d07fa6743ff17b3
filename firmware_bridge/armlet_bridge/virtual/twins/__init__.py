"""Twins: the GATT services of wearables without the air; one file a profile of the runtime's wearables.

A twin says which services a wearable has, does what is written to it, and tells which notifications fall due.
"""

from .base import DeviceClock, Due, Twin, bumble_uuid, characteristic
from .imu import SCALES, ImuTwin
from .registry import make_twin, twin_for

__all__ = ["SCALES", "DeviceClock", "Due", "ImuTwin", "Twin", "bumble_uuid", "characteristic", "make_twin", "twin_for"]
