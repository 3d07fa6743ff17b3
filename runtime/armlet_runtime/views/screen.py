"""The terminal's alternate screen, painted by ``rich.live`` in a thread of its own.

``rich.live`` repaints the whole screen: compared with a painter that writes changed rows only, 2.8 instead of 1.9 kB
and some 3.0 instead of 2.4 ms for a frame of 80 x 24, twice a second. It follows a resize, overwrites text of other
programs, and restores the terminal at the end.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, cast

from .line_writer import write_all

if TYPE_CHECKING:
    from rich.text import Text


class Screen:
    """Shows frames on the terminal; drops frames that come while it is still being written to.

    Attributes:
        blocks: Whether the terminal's encoding has block characters.
    """

    def __init__(self) -> None:
        """Switch the terminal, which is standard output, to its alternate screen."""
        self._file = _Terminal(sys.stdout.fileno(), sys.stdout.encoding or "ascii")
        self.blocks = "utf" in self._file.encoding.lower()
        self._frames: queue.SimpleQueue[Sequence[Text] | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        # A daemon: a terminal that stays stalled must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="armlet-screen", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether the newest frame is on the terminal; until then further frames are dropped."""
        return self._idle.is_set()

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            columns, rows = os.get_terminal_size(self._file.fileno())
        except OSError:
            columns, rows = 0, 0
        return columns or 80, rows or 24

    def show(self, lines: Sequence[Text]) -> None:
        """Show a frame, unless the terminal is still taking the frame before."""
        if self.idle:
            self._idle.clear()
            self._frames.put(lines)

    def close(self) -> None:
        """Restore the terminal; waits while it is stalled, as any program that ends does."""
        self._frames.put(None)
        self._thread.join()

    def _run(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live

        # The terminal's own sixteen colours, which every terminal and every theme has. Names and problems come over the
        # air: they are text, whatever brackets they hold.
        console = Console(
            file=cast(IO[str], self._file), force_terminal=True, color_system="standard", markup=False, highlight=False,
            legacy_windows=False, no_color="NO_COLOR" in os.environ,
        )  # fmt: skip
        console.size = self.size()
        live = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        try:
            with live:
                self._idle.set()
                while (lines := self._frames.get()) is not None:
                    console.size = self.size()
                    live.update(Group(*lines), refresh=True)
                    self._idle.set()
        except OSError:
            # The terminal is gone (EIO after a hang-up): nobody can see this, and the run has other outputs.
            return


class _Terminal:
    """The part of a text file that rich needs; without a buffer, whose lock a blocked thread would keep."""

    def __init__(self, file: int, encoding: str) -> None:
        self.encoding = encoding
        self._file = file

    def write(self, text: str) -> int:
        write_all(self._file, text.encode(self.encoding, "replace"))
        return len(text)

    def flush(self) -> None:
        """Do nothing: everything is written already."""

    def fileno(self) -> int:
        return self._file

    def isatty(self) -> bool:
        return True
