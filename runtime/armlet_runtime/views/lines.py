"""A live run or a replay as lines, printed when a link or the subset changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..decisions import Decision
from ..live import Output
from ..modalities import subset_name
from ..model import Policy
from .line_writer import DirectWriter, LineWriter
from .summary_text import certified_text, summary_lines

if TYPE_CHECKING:
    from ..bluetooth import Link
    from ..live import Opened, Summary


class LineView(Output):
    """Prints a line when a link or the subset changes."""

    def __init__(self, policy: Policy | None = None, writer: LineWriter | None = None) -> None:
        """Print nothing yet; ``policy``: with the certificate; ``writer``: None for a :class:`DirectWriter`."""
        self._links: Mapping[str, Link] = {}
        self._states: dict[str, str] = {}
        self._subset: tuple[str, ...] | None = None
        self._first_end_ns: int | None = None
        self._policy = policy or Policy()
        self._writer: LineWriter = writer or DirectWriter()

    def links(self, links: Mapping[str, Link]) -> None:
        """Show these links; each :meth:`tick` reads them again."""
        self._links = links

    def tick(self, now_ns: int) -> None:
        """Show the links that changed."""
        for name, link in self._links.items():
            if self._states.get(name) != link.state:
                self._states[name] = link.state
                reason = f" ({link.problem})" if link.problem and link.state == "missing" else ""
                self._writer.line(f"{name}: {link.state}{reason}")

    def decision(self, decision: Decision) -> None:
        """Show a decision if its subset differs from that of the decision before."""
        if self._first_end_ns is None:
            self._first_end_ns = decision.window_end_ns
        if self._is_new_subset(decision):
            at_s = (decision.window_end_ns - self._first_end_ns) / 1e9
            subset = subset_name(decision.subset)
            certified = self._certified_text(subset)
            self._writer.line(
                f"{at_s:8.2f} s  window {decision.index}: {subset} -> {decision.label or decision.reason}"
                + (f"  ({certified})" if certified else "")
            )

    def _certified_text(self, subset: str) -> str:
        return certified_text(self._policy.certified.get(subset), self._policy.certified_on)

    def _is_new_subset(self, decision: Decision) -> bool:
        previous, self._subset = self._subset, decision.subset
        return decision.subset != previous

    def became(self, opened: Opened) -> None:
        """Show that another bundle decides from now on."""
        self._policy = opened.policy
        manifest = opened.bundle.manifest
        self.say(f"{manifest.name} {manifest.version} is in use from now on")

    def say(self, sentence: str) -> None:
        """Show a notice."""
        self._writer.line(sentence)

    def problem(self, sentence: str) -> None:
        """Show a problem; the run goes on."""
        self._writer.error(f"armlet: {sentence}")

    def close(self) -> None:
        """Write all lines, and restore the terminal."""
        self._writer.close()

    def end(self, summary: Summary) -> None:
        """Show the summary."""
        for line in summary_lines(summary):
            self._writer.line(line)
        self.close()
