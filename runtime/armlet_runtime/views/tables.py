"""Tables of figures on a terminal; many have a row for each subset of the modalities.

rich cuts a cell without blanks that is wider than its column, so that the rows of ``phone_acc+phone_gyro+...`` look
alike. Here the column of subsets gets the width that the others leave, and its cells wrap after a ``+``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text


class SubsetCell:
    """The name of a subset, as a cell for rich that is never cut."""

    def __init__(self, name: str) -> None:
        """``name``: as of :func:`armlet_runtime.modalities.subset_name`."""
        self._name = name
        *others, last = name.split("+")
        self._parts = [*(f"{part}+" for part in others), last]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement(max(map(len, self._parts)), len(self._name))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        line = ""
        for part in self._parts:
            if line and len(line) + len(part) > options.max_width:
                yield Text(line, overflow="fold")
                line = ""
            line += part
        yield Text(line, overflow="fold")


def figures_table(*headings: str, title: str = "", aligned_left: int = 2) -> Table:
    """An empty table for rich, in which only the column ``subset`` wraps if the terminal is narrow.

    Args:
        headings: Headings of the columns.
        title: Title above the table; empty for none.
        aligned_left: Number of columns aligned to the left; the others, which hold numbers, are aligned to the right.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < aligned_left else "right", no_wrap=heading != "subset")
    return table
