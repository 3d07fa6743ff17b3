"""Text from elsewhere, such as a device's name, made safe to show."""

from __future__ import annotations

from typing import Any


def printable(text: str) -> str:
    """A text without characters that a terminal obeys or a reader does not see.

    Control characters (a terminal's escapes begin with one), line breaks, characters that change the direction of
    writing or have no width, and unassigned ones become escapes such as ``\\x1b``.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def one_line(text: str) -> str:
    """A text with a blank for each character that :func:`printable` escapes, such as a line break."""
    return "".join(char if char.isprintable() else " " for char in text)


def printable_texts(message: Any) -> Any:
    """A message of dictionaries and lists with every text in it made printable, keys too."""
    if isinstance(message, str):
        return printable(message)
    if isinstance(message, dict):
        return {printable_texts(key): printable_texts(value) for key, value in message.items()}
    if isinstance(message, list):
        return [printable_texts(value) for value in message]
    return message
