"""The demo's report: one HTML file that needs nothing beside it, with its figures inside as SVG."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from armlet_runtime.decisions import Decision
from armlet_runtime.signals import Label

# One colour a meaning, in all figures; chosen to stay apart in the common colour blindnesses (Okabe and Ito, 2008).
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A8F98"
AXES_COLOURS = (BLUE, ORANGE, GREEN)

STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --good: #00795a; --bad: #b53a00; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
       background: #f5f7f9; }
main { max-width: 1060px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 0 0 4px; }
p { margin: 4px 0 12px; color: var(--soft); max-width: 80ch; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px; margin-top: 18px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin-top: 6px; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--line); padding: 6px 10px; }
td { border-bottom: 1px solid var(--line); padding: 6px 10px; }
td.number, th.number { text-align: right; }
tr:last-child td { border-bottom: 0; }
figure { margin: 10px 0 0; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
"""


@dataclass(frozen=True)
class Table:
    """A table: its head and its rows; columns from ``first_number`` on are set as numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    first_number: int = 1

    def html(self) -> str:
        """The table as HTML, its cells escaped."""

        def cells(tag: str, row: Sequence[str]) -> str:
            number = ' class="number"'
            return "".join(
                f"<{tag}{number if i >= self.first_number else ''}>{html.escape(cell)}</{tag}>"
                for i, cell in enumerate(row)
            )

        body = "".join(f"<tr>{cells('td', row)}</tr>" for row in self.rows)
        return f'<div class="wide"><table><tr>{cells("th", self.head)}</tr>{body}</table></div>'


@dataclass
class Section:
    """A heading, a paragraph, and what is shown under them."""

    title: str
    text: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The whole report as one HTML document."""
    parts = []
    for section in sections:
        tables = "".join(table.html() for table in section.tables)
        figures = "".join(f"<figure>{_svg(figure)}</figure>" for figure in section.figures)
        parts.append(
            f"<section><h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>{tables}{figures}</section>"
        )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main><h1>{html.escape(title)}</h1><p>{html.escape(summary)}</p>{''.join(parts)}</main></body></html>\n"
    )


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


@dataclass(frozen=True)
class LiveTrace:
    """The signals and decisions of a live run; times in seconds since the wearables began to stream.

    Attributes:
        signals: Modality name to (times (n,), values (n, channels), unit) as they came in over Bluetooth.
        decisions: With the time at which each window ended.
        truth: Labelled spans of what was played; times in nanoseconds since the start.
        losses: (start, end) of each link loss.
        lost: The modality whose link was cut.
    """

    signals: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float32], str]]
    decisions: Sequence[tuple[float, Decision]]
    truth: Sequence[Label]
    losses: Sequence[tuple[float, float]]
    lost: str


def figure_live(trace: LiveTrace, labels: Sequence[str]) -> Figure:
    """Signals with the link losses marked, and under them truth, decisions and subsets on one time axis."""
    count = len(trace.signals)
    figure = Figure(figsize=(11, 1.6 * count + 3.0))
    axes = figure.subplots(count + 1, 1, sharex=True, gridspec_kw={"height_ratios": [1.0] * count + [1.7]})
    for ax, (name, (times, values, unit)) in zip(axes, trace.signals.items(), strict=False):
        # A missing stretch is drawn as a gap, not as a line across it.
        gap = np.flatnonzero(np.diff(times) > 0.25) + 1
        shown_times = np.insert(times, gap, np.nan)
        for channel in range(values.shape[1]):
            shown = np.insert(values[:, channel].astype(np.float64), gap, np.nan)
            ax.plot(shown_times, shown, linewidth=0.5, color=AXES_COLOURS[channel % 3])
        ax.set_ylabel(f"{name} [{unit}]", fontsize=9)
        for i, (start, end) in enumerate(trace.losses):
            ax.axvspan(start, end, color=RED, alpha=0.18 if name == trace.lost else 0.06, linewidth=0)
            if name == trace.lost:
                ax.text((start + end) / 2, 0.5, "link lost" if i == 0 else "lost", transform=ax.get_xaxis_transform(),
                        ha="center", va="center", fontsize=9, color=RED)  # fmt: skip
        _clean(ax)

    ax = axes[-1]
    for span in trace.truth:
        if span.name in labels:
            start, end = span.start_ns / 1e9, span.end_ns / 1e9
            ax.barh(labels.index(span.name), end - start, left=start, height=0.8, color="#e3e8ee", linewidth=0)
    for subset, colour in ((True, BLUE), (False, ORANGE)):
        chosen = [
            (at, labels.index(d.label))
            for at, d in trace.decisions
            if d.label in labels and (len(d.subset) == count) == subset
        ]
        name = "decided on all sensors" if subset else f"decided without {trace.lost}"
        if chosen:
            ax.scatter(*zip(*chosen, strict=True), s=5, color=colour, label=name, zorder=3)
    for start, end in trace.losses:
        ax.axvspan(start, end, color=RED, alpha=0.06, linewidth=0)
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("seconds since the wearables began to stream (grey: true activity)", fontsize=9)
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=2, frameon=False)
    _clean(ax)
    if trace.decisions:
        ax.set_xlim(0, max(at for at, _ in trace.decisions) + 1)
    return figure


def figure_confusions(matrices: Mapping[str, NDArray[np.int64]], labels: Sequence[str]) -> Figure:
    """One confusion matrix a subset, rows (truth) scaled to shares, counts written where they are not zero."""
    figure = Figure(figsize=(3.9 * len(matrices), 4.1))
    axes = np.atleast_1d(figure.subplots(1, len(matrices), sharey=True))
    for ax, (name, counts) in zip(axes, matrices.items(), strict=True):
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.55 else "#1c2430"
            ax.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
        ax.set_title(name, fontsize=10)
        ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
        ax.set_yticks(range(len(labels)), labels, fontsize=8)
        ax.set_xlabel("decided", fontsize=9)
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("true", fontsize=9)
    figure.tight_layout()
    return figure


def figure_latency(latency_ms: Sequence[float], compute_us: Sequence[float]) -> Figure:
    """Two histograms with their percentiles: window's end to decision, and the time inside the programs."""
    figure = Figure(figsize=(11, 2.7))
    axes = figure.subplots(1, 2)
    for ax, values, unit, title in (
        (axes[0], latency_ms, "ms", "window's end to decision out (waits for the last samples)"),
        (axes[1], compute_us, "µs", "time in encoders and aggregator"),
    ):
        data = np.asarray(values)
        top = float(np.percentile(data, 99.5))
        ax.hist(np.clip(data, None, top), bins=50, color=BLUE)
        for share, colour in ((50, GREEN), (99, RED)):
            at = float(np.percentile(data, share))
            ax.axvline(at, color=colour, linewidth=1.2, label=f"p{share} {at:.1f} {unit}")
        ax.set_title(title, fontsize=9)
        ax.set_xlabel(unit, fontsize=9)
        ax.legend(fontsize=8, frameon=False)
        _clean(ax)
    axes[0].set_ylabel("decisions", fontsize=9)
    figure.tight_layout()
    return figure


def figure_bars(panels: Mapping[str, Mapping[str, float]], number: str = "{:.0f}") -> Figure:
    """One panel of horizontal bars a quantity: title to (name to value)."""
    figure = Figure(figsize=(11, 0.7 + 0.36 * max(len(bars) for bars in panels.values())))
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for ax, (title, bars) in zip(axes, panels.items(), strict=True):
        names, values = list(bars), list(bars.values())
        ax.barh(names, values, color=BLUE, height=0.6)
        for i, value in enumerate(values):
            ax.text(value, i, " " + number.format(value), va="center", fontsize=8)
        ax.set_title(title, fontsize=9)
        ax.set_xlim(0, max(values) * 1.25)
        ax.invert_yaxis()
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
        _clean(ax)
    figure.tight_layout()
    return figure


def dash(value: Any, pattern: str) -> str:
    """``value`` formatted, or a dash for a missing value."""
    return "–" if value is None else pattern.format(value)
