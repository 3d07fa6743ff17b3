"""What a live run or a replay writes where there is no screen: lines for what changes, sentences for the journal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..decisions import Decision
from ..live import Output
from ..modalities import subset_name
from .monitor import LinkView, one_line

if TYPE_CHECKING:
    from ..bundle import CertificateRow
    from ..live import Opened, Summary
    from ..model import Policy


class LineView(Output):
    """Prints a line when a link or the subset changes."""

    def __init__(self, policy: Policy | None = None) -> None:
        """``policy``: with the certificate of the bundle in use; None for none."""
        self._links: Mapping[str, LinkView] = {}
        self._states: dict[str, str] = {}
        self._subset: tuple[str, ...] | None = None
        self._first_end_ns: int | None = None
        self._certified = policy.certified if policy else {}

    def links(self, links: Mapping[str, LinkView]) -> None:
        """The links as they are, and will be: each :meth:`tick` shows what is new of them."""
        self._links = links

    def tick(self, now_ns: int) -> None:
        """Show what is new of the links."""
        for name, link in self._links.items():
            if self._states.get(name) != link.state:
                self._states[name] = link.state
                why = f" ({link.problem})" if link.problem and link.state == "missing" else ""
                print(f"{name}: {link.state}{why}", flush=True)

    def decision(self, decision: Decision) -> None:
        """Show a decision if its subset is another than that of the one before."""
        if self._first_end_ns is None:
            self._first_end_ns = decision.window_end_ns
        if self._is_new_subset(decision):
            at_s = (decision.window_end_ns - self._first_end_ns) / 1e9
            subset = subset_name(decision.subset)
            print(
                f"{at_s:8.2f} s  window {decision.index}: {subset} -> {decision.label or decision.reason}"
                f"{certified_text(self._certified.get(subset))}",
                flush=True,
            )

    def _is_new_subset(self, decision: Decision) -> bool:
        before, self._subset = self._subset, decision.subset
        return decision.subset != before

    def became(self, opened: Opened) -> None:
        """Another bundle decides from now on."""
        self._certified = opened.policy.certified
        manifest = opened.bundle.manifest
        self.say(f"{manifest.name} {manifest.version} is in use from now on")

    def say(self, sentence: str) -> None:
        """Something that people want to know."""
        print(sentence, flush=True)

    def problem(self, sentence: str) -> None:
        """Something went wrong, and the run goes on."""
        print(f"armlet: {sentence}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""

    def end(self, summary: Summary) -> None:
        """Show the summary."""
        self.close()
        for line in summary_lines(summary):
            print(line, flush=True)


class JournalView(LineView):
    """Writes a sentence to the journal when something happens, with its weight (sd-daemon(3))."""

    _NOTICE, _WARNING = "<5>", "<4>"

    def __init__(self, policy: Policy | None = None) -> None:
        """``policy``: see :class:`LineView`."""
        super().__init__(policy)
        self._told: dict[str, str] = {}
        self._sent: set[str] = set()

    def tick(self, now_ns: int) -> None:
        """Tell what became of a wearable: that it sends, that it was lost, why it cannot be had."""
        for name, link in self._links.items():
            why = f": {link.problem}" if link.problem else ""
            if link.state == "streaming":
                self._sent.add(name)
                self._tell(name, self._NOTICE, f"'{name}' sends.")
            elif link.state == "missing" and name in self._sent:
                self._tell(name, self._WARNING, f"'{name}' is gone{why}.")
            elif link.state == "missing":
                self._tell(name, self._NOTICE, f"'{name}' is looked for.")
            elif link.state in ("waiting", "refused"):
                what = "could not be connected" if link.state == "waiting" else "cannot be used"
                self._tell(name, self._WARNING, f"'{name}' {what}{why}. It is tried again.")

    def decision(self, decision: Decision) -> None:
        """Tell on what decisions rest from now on, or why there is none."""
        if not self._is_new_subset(decision):
            return
        subset = subset_name(decision.subset)
        if decision.reason is None:
            told = certified_text(self._certified.get(subset)).strip()
            print(f"{self._NOTICE}Decisions rest on {subset}{f' {told}' if told else ''}.", flush=True)
        else:
            print(f"{self._WARNING}There is no decision on {subset}: {decision.reason}.", flush=True)

    def _tell(self, name: str, weight: str, sentence: str) -> None:
        if self._told.get(name) != sentence:
            self._told[name] = sentence
            print(f"{weight}{one_line(sentence)}", flush=True)


def certified_text(row: CertificateRow | None) -> str:
    """What the certificate says of a subset, to put behind a decision; empty if it says nothing."""
    if row is None:
        return ""
    interval = ""
    if row.macro_f1_low is not None and row.macro_f1_high is not None:
        interval = f" [{row.macro_f1_low:.2f}, {row.macro_f1_high:.2f}]"
    return f"  (certified macro-F1 {row.macro_f1:.2f}{interval})"


def summary_lines(summary: Summary) -> list[str]:
    """The summary in a few lines."""
    subsets = ", ".join(f"{name} {count}" for name, count in summary.subsets.items()) or "none"
    lines = [
        f"{summary.decisions} decisions, {summary.missed} missed ({subsets})",
        f"engine {summary.engine} {summary.engine_version}: {summary.engine_detail}",
    ]
    for name, row in summary.certified.items():
        lines.append(f"on {name}:{certified_text(row)}")
    if summary.undecided:
        lines.append("no decision: " + ", ".join(f"{why} {count}" for why, count in summary.undecided.items()))
    if summary.latency_s is not None and summary.compute_s is not None:
        latency, compute = summary.latency_s, summary.compute_s
        lines.append(
            f"latency p50 {latency.p50 * 1e3:.1f} ms, p99 {latency.p99 * 1e3:.1f} ms; "
            f"computing p50 {compute.p50 * 1e3:.2f} ms, p99 {compute.p99 * 1e3:.2f} ms"
        )
    memory = (
        f"memory {summary.memory['resident_bytes'] / 2**20:.0f} MiB, peak {summary.memory['peak_bytes'] / 2**20:.0f}"
    )
    if summary.cold_start_s is not None:
        memory += f"; first decision {summary.cold_start_s:.1f} s after the start"
    lines.append(memory)
    for name, wearable in summary.wearables.items():
        for profile, counts in wearable.profiles.items():
            told = ", ".join(f"{what.replace('_', ' ')} {count}" for what, count in counts.items() if count)
            lines.append(f"{name} ({profile}): {told}")
        if not wearable.profiles:
            lines.append(f"{name}: {wearable.state} {wearable.problem}".rstrip())
    lines += [f"{what}: {why}" for what, why in summary.problems.items()]
    for sink in summary.sinks:
        lost = f", {sink.lost} lost" if sink.lost else ""
        lines.append(f"{sink.sink}: {sink.sent} sent{lost}" + (f" ({sink.problem})" if sink.problem else ""))
    if summary.dropped_packets:
        lines.append(f"{summary.dropped_packets} packets were lost because this process was too busy")
    return lines
