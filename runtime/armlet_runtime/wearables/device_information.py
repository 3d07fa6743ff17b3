"""The Device Information service of the Bluetooth SIG: the maker, model and versions of a wearable, as UTF-8 texts.

Source: Device Information Service 1.2.
"""

from __future__ import annotations

from .profile import sig

SERVICE_UUID = sig(0x180A)

TEXTS = {
    "maker": sig(0x2A29),
    "model": sig(0x2A24),
    "serial": sig(0x2A25),
    "hardware": sig(0x2A27),
    "firmware": sig(0x2A26),
    "software": sig(0x2A28),
}
"""Characteristics by what they say."""


def decode(data: bytes) -> str:
    """A text; bytes that are no UTF-8 become replacement characters, control characters spaces, ends are trimmed."""
    text = data.decode(errors="replace")
    return "".join(character if character.isprintable() else " " for character in text).strip()
