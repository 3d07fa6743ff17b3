"""Texts for a screen: without control characters, and with names that stay different when they are shortened."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Text that came over the air, as one line without control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def fitted(text: str, width: int) -> str:
    """Text in exactly ``width`` columns; a long text loses its middle, because names differ at both ends."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return set_cell_size(text, width)
    head = (width - 2 + 1) // 2
    tail = ""
    for character in reversed(text):
        if cell_len(character + tail) > width - 2 - head:
            break
        tail = character + tail
    return set_cell_size(f"{set_cell_size(text, head)}..{tail}", width)
