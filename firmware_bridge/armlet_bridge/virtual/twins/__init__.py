"""Twins: the GATT services of wearables without the air; a file for each profile of the runtime's wearables.

A twin declares the services of a wearable, handles writes to them, and yields the notifications that fall due.
"""

from .base import DeviceClock, Due, Twin, bumble_uuid, characteristic
from .imu import SCALES, ImuTwin
from .registry import make_twin, twin_for

__all__ = ["SCALES", "DeviceClock", "Due", "ImuTwin", "Twin", "bumble_uuid", "characteristic", "make_twin", "twin_for"]
