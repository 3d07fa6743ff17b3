"""Links to wearables, kept up, on any adapter that bleak or another back end drives.

Imports the root, the wearables and the signals.
"""

from .adapters import Bluetooth, SystemBluetooth, open_bluetooth
from .choice import ANY, choose_wearables, names_of
from .link import Link
from .link_errors import sentence_of
from .reach import Nearby, who_is_near
from .run_loop import drive, play, run_main, turns
from .session import Session

__all__ = [
    "ANY",
    "Bluetooth",
    "Link",
    "Nearby",
    "Session",
    "SystemBluetooth",
    "choose_wearables",
    "drive",
    "names_of",
    "open_bluetooth",
    "play",
    "run_main",
    "sentence_of",
    "turns",
    "who_is_near",
]
