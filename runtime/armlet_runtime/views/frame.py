"""A frame of a run for a terminal, as lines of styled text; 80 x 24 characters are enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..bundle import UNKNOWN
from .monitor import Monitor
from .state import Point, State
from .summary_text import certified_text

if TYPE_CHECKING:
    from rich.text import Text

    from ..modalities import Modality

# Height of a signal in eighths of a line; on a terminal without block characters, in shades of grey.
_BLOCKS, _GREYS = " ▁▂▃▄▅▆▇█", " .:-=+*%@"

# Lines besides those of the decision, the labels, the signals and the wearables, with the line for notices; and the
# fewest labels that are shown, however many other lines are needed.
_FIXED_LINES, _FEWEST_LABELS = 8, 3

# Columns of a wearable's name, and of its other cells up to the clock's bound; of a label; of a modality, and of its
# other cells.
_NARROWEST_NAME, _WIDEST_NAME, _BESIDE_NAME = 8, 20, 46
_NARROWEST_LABEL, _BESIDE_LABEL = 18, 10
_NARROWEST_MODALITY, _BESIDE_TRACE, _NARROWEST_TRACE = 8, 37, 10

_STYLES = {"streaming": "green", "linked": "green", "missing": "red", "gone": "red", "refused": "red"}


def frame(
    monitor: Monitor, modalities: Sequence[Modality], now_ns: int, width: int, height: int, blocks: bool = True
) -> list[Text]:
    """The lines of a frame, at most ``height``; each is cut at the terminal's edge when it is printed.

    Args:
        monitor: Monitor of the run.
        modalities: Modalities of the model.
        now_ns: Time on the clock of the arrivals.
        width, height: Columns and rows of the terminal.
        blocks: Whether the terminal shows block characters.
    """
    from rich.text import Text

    state = monitor.state(now_ns)
    decision = _decision(state, width)
    others = _FIXED_LINES + len(decision) + len(state.signals) + len(state.wearables)
    scores = _scores(state, width, max(height - others, _FEWEST_LABELS), blocks)
    lines = [_header(state, width), Text(), *decision, Text(), *scores, Text()]
    lines.append(Text.assemble(("subsets  ", "dim"), subsets_line(monitor.timeline, len(modalities), width - 10)))
    lines += _signals(monitor, modalities, state, now_ns, width, blocks)
    lines += _wearables(state, width, height - len(lines) - 1, blocks)
    lines += [Text(f"{signal}: {reason}", "yellow") for signal, reason in state.problems.items()]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines[:height]


def _header(state: State, width: int) -> Text:
    from rich.text import Text

    seconds = int(state.newest.end_s) if state.newest else 0
    title = f" {state.bundle} on {state.engine}"
    clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    right = f"{'' if state.live else 'replay  '}{clock}  Ctrl-C ends "
    room = max(width - len(right) - 1, 0)
    return Text(f"{title[:room]:{room}} {right}", "reverse")


def _decision(state: State, width: int) -> list[Text]:
    """The decision, all names of its subset, the certificate and the times, in as few lines as possible."""
    from rich.text import Text

    newest = state.newest
    if newest is None:
        return [Text(" waiting for the first window", "bold"), Text()]
    style = "bold yellow" if newest.label == UNKNOWN else "bold green"
    label = (newest.label, style) if newest.label else (newest.reason or "", "bold red")
    lines = [Text.assemble(" ", label)]
    certified = certified_text(state.certified, state.certified_on)
    first, *others = newest.subset or ("none",)
    pieces = [f"  on {first}", *(f"+{name}" for name in others)]
    pieces += [f"  ({certified})"] if certified else []
    for piece in pieces:
        if lines[-1].cell_len + len(piece) > width:
            lines.append(Text(f"  {piece.strip()}"))
        else:
            lines[-1].append(piece)
    times = f"{state.decisions} decisions"
    if state.latency_s is not None and state.compute_s is not None:
        times += f"   latency {state.latency_s * 1e3:.0f} ms   computing {state.compute_s * 1e3:.1f} ms"
    return [*lines, Text(f" {times}", "dim")]


def _scores(state: State, width: int, height: int, blocks: bool) -> list[Text]:
    from rich.text import Text

    if not state.scores:
        return [Text(" no scores", "dim")]
    pairs = list(zip(state.labels, state.scores, strict=False))
    most = height if len(pairs) <= height else height - 1
    highest = sorted(range(len(pairs)), key=lambda index: -pairs[index][1])[:most]
    wide = _column([pairs[index][0] for index in highest], _NARROWEST_LABEL, width // 2)
    lines = []
    for index in sorted(highest):
        label, score = pairs[index]
        bar = ("█" if blocks else "#") * round(score * (width - wide - _BESIDE_LABEL))
        style = "bold" if index == highest[0] else ""
        lines.append(Text.assemble((f" {fitted(label, wide)} {score:5.2f} ", style), (bar, "blue")))
    if len(highest) < len(pairs):
        lines.append(Text(f" and {len(pairs) - most} more below {pairs[highest[-1]][1]:.2f}", "dim"))
    return lines


def _signals(
    monitor: Monitor, modalities: Sequence[Modality], state: State, now_ns: int, width: int, blocks: bool
) -> list[Text]:
    from rich.text import Text

    widest = max(width - _BESIDE_TRACE - _NARROWEST_TRACE, _NARROWEST_MODALITY)
    wide = _column([signal.modality for signal in state.signals], _NARROWEST_MODALITY, widest)
    room = max(width - wide - _BESIDE_TRACE, _NARROWEST_TRACE)
    lines = []
    for modality, signal in zip(modalities, state.signals, strict=True):
        name = Text(f"{fitted(signal.modality, wide)} ", "bold" if signal.present else "dim")
        points = monitor.line(modality, now_ns, room)
        newest = next((point for point in reversed(points) if point is not None), None)
        trace = spark(points, _BLOCKS if blocks else _GREYS)
        value = "" if newest is None else f"{newest:.3g}"
        age = "never" if signal.age_s is None else f"{signal.age_s:.2f} s"
        style = "green" if signal.present else "red"
        about = Text.assemble(
            f"{value:>7} {signal.unit:6.6} ", (f"{signal.coverage:4.0%} ", style), (f"{age:>9}", style)
        )
        lines.append(Text.assemble(name, (trace, "cyan"), about))
    return lines


def _wearables(state: State, width: int, height: int, blocks: bool) -> list[Text]:
    from rich.text import Text

    # On a narrow terminal names are cut, so that the clock stays.
    wide = max(_NARROWEST_NAME, min(_WIDEST_NAME, width - _BESIDE_NAME))
    lines = [Text(), Text(f"{'wearable':{wide}} {'link':10} {'Hz':>4} {'lost':>5} {'bad':>4}  clock", "dim")]
    lines += [] if state.wearables else [Text("no wearable heard yet", "dim")]
    room = height - len(lines)
    shown = state.wearables if len(state.wearables) <= room else state.wearables[: max(room - 1, 0)]
    # The problem of a wearable is shown below it if a line is free.
    below = len(shown) + sum(bool(wearable.problem) for wearable in shown) <= room
    for wearable in shown:
        extra = [f"{wearable.rssi} dBm"] if wearable.rssi is not None else []
        extra += [f"{wearable.battery}%"] if wearable.battery is not None else []
        clock = wearable.clock
        bound = _clock_text(clock.drift_ppm, clock.bound_ms, blocks) if clock else "none"
        counts = f" {wearable.rate_hz:4.0f} {wearable.lost:5} {wearable.malformed:4}  {bound:17} "
        link = (f"{wearable.state:10.10}", _STYLES.get(wearable.state, ""))
        lines.append(Text.assemble(fitted(wearable.name, wide), " ", link, counts, (" ".join(extra), "dim")))
        if below and wearable.problem:
            lines.append(Text(f"  {wearable.problem}", "yellow"))
    if len(shown) < len(state.wearables):
        lines.append(Text(f"and {len(state.wearables) - len(shown)} more", "dim"))
    return lines


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


def _column(names: Sequence[str], narrowest: int, widest: int) -> int:
    """Columns that hold all names, within limits."""
    from rich.cells import cell_len

    return max(narrowest, min(max(map(cell_len, names)), widest))


def spark(points: Sequence[float | None], levels: str) -> str:
    """A line of characters whose height is the value between the lowest and the highest; a blank for None."""
    values = [point for point in points if point is not None]
    if not values:
        return " " * len(points)
    lowest, highest = min(values), max(values)
    scale = (len(levels) - 2) / (highest - lowest) if highest > lowest else 0.0
    return "".join(" " if point is None else levels[1 + round((point - lowest) * scale)] for point in points)


def _clock_text(drift_ppm: float, bound_ms: float | None, blocks: bool) -> str:
    if bound_ms is None:
        return "not valid yet"
    return f"{round(drift_ppm):+d} ppm {'±' if blocks else '+-'}{bound_ms:.1f} ms"


def subsets_line(timeline: Sequence[Point], modalities: int, width: int) -> str:
    """The newest subsets, a character each: ``=`` all modalities, ``-`` some, ``.`` none or no decision."""
    return "".join(
        "." if point.reason or not point.subset else "=" if len(point.subset) == modalities else "-"
        for point in list(timeline)[-width:]
    )
