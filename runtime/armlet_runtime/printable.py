"""Text from elsewhere, such as a device's name, made safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text without characters that a terminal obeys or a reader does not see.

    Control characters (a terminal's escapes begin with one), line breaks, characters that change the direction of
    writing or have no width, and unassigned ones become escapes such as ``\\x1b``.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
