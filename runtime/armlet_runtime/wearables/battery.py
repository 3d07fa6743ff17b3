"""The Battery service of the Bluetooth SIG: how full a wearable's battery is.

Source: Battery Service 1.0, and the GATT Specification Supplement, characteristic 0x2A19: one u8, percent, 0 to 100.
"""

from __future__ import annotations

from ..errors import PacketError
from .profile import sig

SERVICE_UUID = sig(0x180F)
LEVEL_UUID = sig(0x2A19)


def encode(percent: int) -> bytes:
    """The bytes of the characteristic."""
    return bytes([percent])


def decode(data: bytes) -> int:
    """Charge in percent.

    Raises:
        PacketError: It is not one byte from 0 to 100.
    """
    if len(data) != 1 or data[0] > 100:
        raise PacketError(f"a battery level is one byte from 0 to 100, not {data.hex(' ') or 'nothing'}")
    return data[0]
