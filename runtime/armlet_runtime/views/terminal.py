"""A live run or a replay on a terminal: one screen, repainted twice a second."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..decisions import Decision
from .frame import frame
from .lines import LineView
from .monitor import Monitor
from .printable import one_line
from .screen import Screen
from .state import LinkView

if TYPE_CHECKING:
    from ..live import Summary
    from ..modalities import Modality

# A calm screen: not more often than the eye asks for, and little work on a small board.
REFRESH_S = 0.5


class TerminalView(LineView):
    """Draws a :class:`armlet_runtime.views.monitor.Monitor` on the terminal, and leaves the terminal as it was."""

    def __init__(self, monitor: Monitor, modalities: Sequence[Modality]) -> None:
        """Switch the terminal to its other screen.

        Args:
            monitor: What is shown.
            modalities: Of the model.
        """
        super().__init__()
        self._monitor = monitor
        self._modalities = modalities
        self._shown = 0.0
        self._notice = ""
        self._screen: Screen | None = Screen()

    def links(self, links: Mapping[str, LinkView]) -> None:
        """Nothing: the monitor knows the links."""

    def decision(self, decision: Decision) -> None:
        """Nothing: the monitor knows the decision."""

    def problem(self, sentence: str) -> None:
        """Show a problem in the last line, until the next notice."""
        self._notice = sentence

    def say(self, sentence: str) -> None:
        """Show a notice in the last line, until the next one."""
        self._notice = sentence

    def tick(self, now_ns: int) -> None:
        """Draw, if it is time to and the terminal has taken the frame before."""
        now = time.monotonic()
        if self._screen is None or now - self._shown < REFRESH_S or not self._screen.idle:
            return
        from rich.text import Text

        self._shown = now
        width, height = self._screen.size()
        lines = frame(self._monitor, self._modalities, now_ns, width, height, self._screen.blocks)
        if self._notice:
            kept = lines[: height - 1]
            notice = Text(one_line(self._notice), "yellow", no_wrap=True, overflow="ellipsis")
            lines = [*kept, *[Text()] * (height - 1 - len(kept)), notice]
        self._screen.show(lines)

    def close(self) -> None:
        """Give the terminal back."""
        if self._screen is not None:
            self._screen.close()
            self._screen = None

    def end(self, summary: Summary) -> None:
        """Give the terminal back, and show the summary."""
        self.close()
        super().end(summary)
