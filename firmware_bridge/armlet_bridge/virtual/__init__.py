"""Virtual wearables, with the packets of real wearables, on a virtual air.

Imports the runtime and the radio.
"""

from .air import AirController, AirLink
from .air_ports import serve
from .wearable import LinkLoss, Play, VirtualWearable, WearableSpec, default_wearables, put_on

__all__ = [
    "AirController",
    "AirLink",
    "LinkLoss",
    "Play",
    "VirtualWearable",
    "WearableSpec",
    "default_wearables",
    "put_on",
    "serve",
]
