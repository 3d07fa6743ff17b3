"""A live run or a replay on a terminal: a screen, repainted twice a second."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..decisions import Decision
from ..printable import one_line
from .frame import frame
from .lines import LineView
from .monitor import Monitor
from .screen import Screen

if TYPE_CHECKING:
    from ..bluetooth import Link
    from ..live import Summary
    from ..modalities import Modality

REFRESH_S = 0.5
"""Time between two frames: often enough for the eye, and little work for a small board."""


class TerminalView(LineView):
    """Draws a :class:`armlet_runtime.views.monitor.Monitor` on the terminal, and restores the terminal at the end."""

    def __init__(self, monitor: Monitor, modalities: Sequence[Modality]) -> None:
        """Switch the terminal to its alternate screen; ``modalities``: of the model."""
        super().__init__()
        self._monitor = monitor
        self._modalities = modalities
        self._shown = 0.0
        self._notice = ""
        self._screen: Screen | None = Screen()

    def links(self, links: Mapping[str, Link]) -> None:
        """Do nothing: the monitor has the links."""

    def decision(self, decision: Decision) -> None:
        """Do nothing: the monitor has the decision."""

    def problem(self, sentence: str) -> None:
        """Show a problem in the last line, until the next notice."""
        self._notice = sentence

    def say(self, sentence: str) -> None:
        """Show a notice in the last line, until the next notice."""
        self._notice = sentence

    def tick(self, now_ns: int) -> None:
        """Draw a frame, if it is time and the terminal has taken the frame before."""
        now = time.monotonic()
        if self._screen is None or now - self._shown < REFRESH_S or not self._screen.idle:
            return
        from rich.text import Text

        self._shown = now
        width, height = self._screen.size()
        lines = frame(self._monitor, self._modalities, now_ns, width, height, self._screen.blocks)
        if self._notice:
            notice = Text(one_line(self._notice), "yellow", no_wrap=True, overflow="ellipsis")
            lines = [*lines[: height - 1], *[Text()] * (height - 1 - len(lines)), notice]
        self._screen.show(lines)

    def close(self) -> None:
        """Restore the terminal."""
        if self._screen is not None:
            self._screen.close()
            self._screen = None

    def end(self, summary: Summary) -> None:
        """Restore the terminal, and show the summary."""
        self.close()
        super().end(summary)
