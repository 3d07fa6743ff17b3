"""A live run in the systemd journal: a sentence a line, with its priority."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..decisions import Decision
from ..modalities import subset_name
from ..printable import one_line
from .line_writer import LineWriter
from .lines import LineView

if TYPE_CHECKING:
    from ..model import Policy


class JournalView(LineView):
    """Writes events to the journal as sentences with a priority (sd-daemon(3))."""

    _NOTICE, _WARNING = "<5>", "<4>"

    def __init__(self, policy: Policy | None = None, writer: LineWriter | None = None) -> None:
        """``policy`` and ``writer``: see :class:`LineView`."""
        super().__init__(policy, writer)
        self._newest: dict[str, str] = {}  # wearable to its newest sentence
        self._sent: set[str] = set()

    def tick(self, now_ns: int) -> None:
        """Write the changes of each link: it sends, it was lost, or the reason for which it is not made."""
        for name, link in self._links.items():
            reason = f": {link.problem}" if link.problem else ""
            if link.state == "streaming":
                self._sent.add(name)
                self._write(name, self._NOTICE, f"'{name}' is sending.")
            elif link.state == "missing" and name in self._sent:
                self._write(name, self._WARNING, f"The link to '{name}' was lost{reason}.")
            elif link.state == "missing":
                self._write(name, self._NOTICE, f"Looking for '{name}'.")
            elif link.state in ("waiting", "refused"):
                verb = "could not be connected" if link.state == "waiting" else "cannot be used"
                self._write(name, self._WARNING, f"'{name}' {verb}{reason}. Trying again.")

    def decision(self, decision: Decision) -> None:
        """Write a new subset of the decisions, or the reason for which they have no label."""
        if not self._is_new_subset(decision):
            return
        subset = subset_name(decision.subset)
        if decision.reason is None:
            certified = self._certified_text(subset)
            self._writer.line(f"{self._NOTICE}Deciding on {subset}{f' ({certified})' if certified else ''}.")
        else:
            self._writer.line(f"{self._WARNING}No decision on {subset}: {decision.reason}.")

    def _write(self, name: str, priority: str, sentence: str) -> None:
        if self._newest.get(name) != sentence:
            self._newest[name] = sentence
            self._writer.line(f"{priority}{one_line(sentence)}")
