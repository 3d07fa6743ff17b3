"""What goes wrong with links: classes of errors, and how long to wait after each."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from bleak.exc import BleakBluetoothNotAvailableError, BleakCharacteristicNotFoundError, BleakGATTProtocolError

from ..errors import PacketError


@dataclass(frozen=True)
class Trouble:
    """A class of errors, and how long to wait after them.

    Attributes:
        name: Its name in messages.
        first_s: Longest wait after the first failure; it doubles with each further failure.
        longest_s: Longest wait after many failures.
    """

    name: str
    first_s: float
    longest_s: float

    def wait_s(self, failures_in_a_row: int) -> float:
        """Seconds until the next attempt: 0.5 to 1 times the longest wait, so that wearables do not fall into step."""
        longest_s = min(self.first_s * 2.0 ** (min(failures_in_a_row, 16) - 1), self.longest_s)
        return longest_s * random.uniform(0.5, 1.0)


AWAY = Trouble("away", 0.5, 15.0)
"""The wearable did not answer: out of reach, off, or taken by another host."""
CUT = Trouble("cut", 0.25, 4.0)
"""The link came up and went down again at once, or BlueZ did not report that it is up."""
BUSY = Trouble("busy", 0.25, 2.0)
"""The host's Bluetooth was doing something else."""
STALE = Trouble("stale", 0.25, 4.0)
"""The host remembers services that the wearable no longer has; its memory of them is deleted."""
LOCKED = Trouble("locked", 0.25, 30.0)
"""The wearable answers only to hosts that are bonded to it; the next attempt pairs."""
REFUSED = Trouble("refused", 60.0, 60.0)
"""The device is no wearable that armlet can use, or it refuses armlet's commands."""

UNEXPECTED = Trouble("unexpected", 1.0, 60.0)
"""An unexpected error of armlet's own code or of bleak. It concerns one link and is logged."""

# ATT errors (Core specification, Vol 3, Part F, 3.4.1.1).
_INVALID_HANDLE = 0x01
_PASSES = (0x0E, 0x11)  # unlikely error, insufficient resources: both come and go
_NEEDS_BOND = (0x05, 0x08, 0x0C, 0x0F)  # authentication, authorization, key size, encryption
# Error texts of BlueZ, as https://github.com/hbldh/bleak/issues and BlueZ's source have them.
_BUSY_TEXTS = ("InProgress", "in progress", "abort-by-local", "connection abort", "Busy", "NotReady")
_STALE_TEXTS = ("UnknownObject", "Service Discovery", "not found in", "does not exist")
_LOCKED_TEXTS = ("NotAuthorized", "NotPermitted: Not paired", "AuthenticationFailed", "Insufficient")
_CUT_TEXTS = ("failed to discover services", "was lost", "Not connected", "not connected", "NotConnected")


def trouble_of(error: BaseException) -> Trouble:
    """The class of an error that ended the connecting or starting of a wearable."""
    text = str(error)
    if isinstance(error, PacketError):
        return REFUSED
    if isinstance(error, BleakGATTProtocolError):
        code = int(error.code)
        known = {_INVALID_HANDLE: STALE, **dict.fromkeys(_NEEDS_BOND, LOCKED), **dict.fromkeys(_PASSES, CUT)}
        return known.get(code, REFUSED)
    if isinstance(error, BleakCharacteristicNotFoundError) or any(part in text for part in _STALE_TEXTS):
        return STALE
    for trouble, parts in ((BUSY, _BUSY_TEXTS), (LOCKED, _LOCKED_TEXTS), (CUT, _CUT_TEXTS)):
        if any(part in text for part in parts):
            return trouble
    return AWAY


def sentence_of(error: BaseException) -> str:
    """The text of an error; its type if it has none."""
    if isinstance(error, FileNotFoundError):  # of the D-Bus socket
        return "the system's D-Bus, over which BlueZ is reached, does not run"
    if isinstance(error, BleakBluetoothNotAvailableError):  # as text it is the pair of its message and its reason
        return str(error.args[0])
    if isinstance(error, BleakGATTProtocolError):  # as text it is the pair of its code and its message
        return f"{error.args[-1]} (ATT 0x{int(error.code):02x})"
    if isinstance(error, asyncio.TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__
