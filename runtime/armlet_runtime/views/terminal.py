"""The screen of a live run or a replay in a terminal: 80 x 24 is enough, and only what changed is written."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..bundle import UNKNOWN
from ..decisions import Decision
from ..modalities import subset_name
from .lines import JournalView, LineView, certified_text
from .monitor import LinkView, Monitor, State, one_line, subsets_line

if TYPE_CHECKING:
    from rich.text import Text

    from ..live import Summary
    from ..modalities import Modality
    from ..model import Policy

# A calm screen: not more often than the eye asks for, and little work on a small board.
REFRESH_S = 0.5

# Height of a signal, in eighths of a line; where the terminal has no such characters, in tenths of a grey.
_BLOCKS, _GREYS = " ▁▂▃▄▅▆▇█", " .:-=+*%@"

# Lines that are neither of a label nor of a signal nor of a wearable, the one for notices included; and the fewest
# labels that are shown, however many of the others there are.
_FIXED_LINES, _FEWEST_LABELS = 10, 3

# Columns of a wearable's name, and of what stands beside it up to the clock's bound.
_NARROWEST_NAME, _WIDEST_NAME, _BESIDE_NAME = 8, 20, 46

_STYLES = {"streaming": "green", "linked": "green", "missing": "red", "gone": "red", "refused": "red"}


class TerminalView(LineView):
    """Draws a :class:`armlet_runtime.views.monitor.Monitor` on the terminal, and leaves the terminal as it was."""

    def __init__(self, monitor: Monitor, modalities: Sequence[Modality]) -> None:
        """``monitor``: what is shown; ``modalities``: of the model."""
        super().__init__()
        self._monitor = monitor
        self._modalities = modalities
        self._shown = 0.0
        self._notice = ""
        self._painter: Painter | None = Painter()

    def links(self, links: Mapping[str, LinkView]) -> None:
        """Nothing: the monitor knows the links."""

    def decision(self, decision: Decision) -> None:
        """Nothing: the monitor knows the decision."""

    def problem(self, sentence: str) -> None:
        """Shown in the last line, until there is another."""
        self._notice = sentence

    def say(self, sentence: str) -> None:
        """Shown in the last line, until there is another."""
        self._notice = sentence

    def tick(self, now_ns: int) -> None:
        """Draw, if it is time to."""
        now = time.monotonic()
        if self._painter is None or now - self._shown < REFRESH_S:
            return
        self._shown = now
        width, height = self._painter.size()
        lines = frame(self._monitor, self._modalities, now_ns, width, height, self._painter.blocks)
        if self._notice:
            from rich.text import Text

            kept = lines[: height - 1]
            lines = [*kept, *[Text()] * (height - 1 - len(kept)), Text(one_line(self._notice), "yellow")]
        self._painter.paint(lines, width, height)

    def close(self) -> None:
        """Give the terminal back."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None

    def end(self, summary: Summary) -> None:
        """Give the terminal back, and show the summary."""
        self.close()
        super().end(summary)


class Painter:
    """Writes lines onto the terminal's other screen, each only if it is another than before.

    Attributes:
        blocks: Whether the terminal's encoding has block characters.
    """

    def __init__(self) -> None:
        """Take the terminal."""
        from rich.console import Console

        self._file = io.StringIO()
        # The terminal's own sixteen colours, which every terminal and every theme has. Names and problems come over the
        # air: they are text, whatever brackets they hold.
        self._console = Console(
            file=self._file, force_terminal=True, color_system="standard", markup=False, highlight=False, width=500,
            no_color="NO_COLOR" in os.environ,
        )  # fmt: skip
        self._before: list[str] = []
        self._size = (0, 0)
        self.blocks = "utf" in (sys.stdout.encoding or "").lower()
        self._write("\x1b[?1049h\x1b[?25l\x1b[2J")

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            columns, rows = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            columns, rows = 0, 0
        return columns or 80, rows or 24

    def paint(self, lines: Sequence[Text], width: int, height: int) -> None:
        """Show these lines and no others."""
        drawn = [self._drawn(line, width) for line in lines[:height]]
        if self._size != (width, height):
            self._size, self._before = (width, height), []
            self._write("\x1b[2J")
        drawn += [""] * (len(self._before) - len(drawn))
        old = [*self._before, *[""] * (len(drawn) - len(self._before))]
        pairs = enumerate(zip(drawn, old, strict=True), 1)
        changed = [f"\x1b[{row};1H{new}\x1b[K" for row, (new, was) in pairs if new != was]
        self._before = drawn
        if changed:
            self._write("".join(changed))

    def close(self) -> None:
        """Give the terminal back as it was."""
        self._write("\x1b[?25h\x1b[?1049l")

    def _drawn(self, line: Text, width: int) -> str:
        line.truncate(width, overflow="ellipsis")
        self._file.seek(0)
        self._file.truncate()
        self._console.print(line, end="", soft_wrap=True)
        text = self._file.getvalue()
        return text if self.blocks else text.encode("ascii", "replace").decode()

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def frame(
    monitor: Monitor, modalities: Sequence[Modality], now_ns: int, width: int, height: int, blocks: bool = True
) -> list[Text]:
    """The lines of one picture, at most ``height``.

    Args:
        monitor: What is shown.
        modalities: Of the model.
        now_ns: Time on the clock of the arrivals.
        width: Columns.
        height: Rows.
        blocks: Whether block characters can be shown.
    """
    from rich.text import Text

    state = monitor.state(now_ns)
    room = max(height - _FIXED_LINES - len(state.signals) - len(state.wearables), _FEWEST_LABELS)
    lines = [_header(state, width), *_decision(state), Text(), *_scores(state, width, room, blocks), Text()]
    seen = subsets_line(monitor.timeline, len(modalities), width - 10)
    lines.append(Text.assemble(("subsets  ", "dim"), seen))
    for modality, signal in zip(modalities, state.signals, strict=True):
        room = max(width - 45, 10)
        name = Text(f"{signal.modality:8.8} ", "bold" if signal.present else "dim")
        points = monitor.line(modality, now_ns, room)
        newest = next((point for point in reversed(points) if point is not None), None)
        line = spark(points, _BLOCKS if blocks else _GREYS)
        value = "" if newest is None else f"{newest:.3g}"
        age = "never" if signal.age_s is None else f"{signal.age_s:.2f} s"
        style = "green" if signal.present else "red"
        about = Text.assemble(
            f"{value:>7} {signal.unit:6.6} ", (f"{signal.coverage:4.0%} ", style), (f"{age:>9}", style)
        )
        lines.append(Text.assemble(name, (line, "cyan"), about))
    # On a narrow terminal names are cut, so that the clock stays.
    wide = max(_NARROWEST_NAME, min(_WIDEST_NAME, width - _BESIDE_NAME))
    lines += [Text(), Text(f"{'wearable':{wide}} {'link':10} {'Hz':>4} {'lost':>5} {'bad':>4}  clock", "dim")]
    lines += [] if state.wearables else [Text("none heard yet", "dim")]
    room = height - len(lines) - 1
    shown = state.wearables if len(state.wearables) <= room else state.wearables[: max(room - 1, 0)]
    # Why a wearable does not send stands below it where there is a line for it.
    below = len(shown) + sum(bool(one.problem) for one in shown) <= room
    for one in shown:
        extra = [f"{one.rssi} dBm"] if one.rssi is not None else []
        extra += [f"{one.battery}%"] if one.battery is not None else []
        clock = _clock_text(one.clock.drift_ppm, one.clock.bound_ms, blocks) if one.clock else "none"
        counts = f" {one.rate_hz:4.0f} {one.lost:5} {one.malformed:4}  {clock:17} "
        link = (f"{one.state:10.10}", _STYLES.get(one.state, ""))
        lines.append(Text.assemble(_cells(one.name, wide), " ", link, counts, (" ".join(extra), "dim")))
        if below and one.problem:
            lines.append(Text(f"  {one.problem}", "yellow"))
    if len(shown) < len(state.wearables):
        lines.append(Text(f"and {len(state.wearables) - len(shown)} more", "dim"))
    lines += [Text(f"{what}: {why}", "yellow") for what, why in state.problems.items()]
    return lines[:height]


def _header(state: State, width: int) -> Text:
    from rich.text import Text

    seconds = int(state.newest.end_s) if state.newest else 0
    left = f" {state.bundle} on {state.engine}"
    clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    right = f"{'' if state.live else 'replay  '}{clock}  Ctrl-C ends "
    room = max(width - len(right) - 1, 0)
    return Text(f"{left[:room]:{room}} {right}", "reverse")


def _decision(state: State) -> list[Text]:
    from rich.text import Text

    newest = state.newest
    if newest is None:
        return [Text(), Text(" waiting for the first window", "bold"), Text()]
    style = "bold yellow" if newest.label == UNKNOWN else "bold green"
    what = (newest.label, style) if newest.label else (newest.reason or "", "bold red")
    about = f"  on {subset_name(newest.subset)}{certified_text(state.certified)}"
    times = f"{state.decisions} decisions"
    if state.latency_s is not None and state.compute_s is not None:
        times += f"   latency {state.latency_s * 1e3:.0f} ms   computing {state.compute_s * 1e3:.1f} ms"
    return [Text(), Text.assemble(" ", what, about), Text(f" {times}", "dim")]


def _scores(state: State, width: int, height: int, blocks: bool) -> list[Text]:
    from rich.text import Text

    if not state.scores:
        return [Text(" no scores", "dim")]
    pairs = list(zip(state.labels, state.scores, strict=False))
    most = height if len(pairs) <= height else height - 1
    kept = sorted(range(len(pairs)), key=lambda index: -pairs[index][1])[:most]
    best = kept[0]
    lines = []
    for index in sorted(kept):
        label, score = pairs[index]
        room = width - 28
        bar = ("█" if blocks else "#") * round(score * room)
        style = "bold" if index == best else ""
        lines.append(Text.assemble((f" {_cells(label, 18)} {score:5.2f} ", style), (bar, "blue")))
    if len(kept) < len(pairs):
        lines.append(Text(f" and {len(pairs) - len(kept)} more below {min(pairs[i][1] for i in kept):.2f}", "dim"))
    return lines


def spark(points: Sequence[float | None], levels: str) -> str:
    """A line of characters whose height is the value between the lowest and the highest; a blank for None."""
    known = [point for point in points if point is not None]
    if not known:
        return " " * len(points)
    lowest, highest = min(known), max(known)
    scale = (len(levels) - 2) / (highest - lowest) if highest > lowest else 0.0
    return "".join(" " if point is None else levels[1 + round((point - lowest) * scale)] for point in points)


def _clock_text(drift_ppm: float, bound_ms: float | None, blocks: bool) -> str:
    if bound_ms is None:
        return "not valid yet"
    return f"{round(drift_ppm):+d} ppm {'±' if blocks else '+-'}{bound_ms:.1f} ms"


def _cells(text: str, width: int) -> str:
    """Text in exactly so many columns, whatever the width of its characters."""
    from rich.cells import set_cell_size

    return set_cell_size(text, width)


def make_view(monitor: Monitor, modalities: Sequence[Modality], policy: Policy) -> LineView:
    """What fits standard output: a screen on a terminal, sentences in the journal, else lines.

    Args:
        monitor: What a screen shows.
        modalities: Of the model.
        policy: See :class:`LineView`.
    """
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return TerminalView(monitor, modalities)
    return JournalView(policy) if _is_journal(sys.stdout.fileno()) else LineView(policy)


def _is_journal(file: int) -> bool:
    """Whether a file is the journal: systemd puts its device and inode into the environment (systemd.exec(5))."""
    status = os.fstat(file)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
