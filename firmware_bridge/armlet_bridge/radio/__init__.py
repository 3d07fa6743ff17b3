"""Bleak's interface on bumble: a virtual air, or a USB dongle without BlueZ.

Imports the runtime.
"""

from .bumble_backend import ATT_MTU, Bluetooth, open_bluetooth

__all__ = ["ATT_MTU", "Bluetooth", "open_bluetooth"]
