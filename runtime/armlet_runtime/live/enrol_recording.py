"""Examples of a new class in a recording: their windows, and further occurrences of the class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from ..arrays import Float32
from ..model import SCHEMA, BundleModel, Example, Layer, Policy
from ..signals import Packet
from ..windows import WindowSpec
from .core import LiveCore


class Stretch(NamedTuple):
    """Consecutive windows that get the label of an example; a gap of a single window is allowed.

    Attributes:
        begin_s: Begin of the first window.
        length_s: Time from there to the end of the last window.
        label: The most frequent label of the windows without the example.
    """

    begin_s: float
    length_s: float
    label: str


def recorded_windows(
    model: BundleModel, packets: Sequence[Packet], at_s: float, length_s: float | None
) -> list[dict[str, Float32]]:
    """The windows of an example in a recording, cut as in a live run.

    Args:
        model: The bundle's model.
        packets: Of the recording, in order of arrival.
        at_s: Seconds after the first packet at which the example begins.
        length_s: Length of the example; None for one window, which is also the minimum.

    Returns:
        For each window of the example, modality name to token.

    Raises:
        DataError: The packets are out of order.
        EngineError: The engine failed.
    """
    core = LiveCore(model)
    window = model.manifest.window
    begin_ns, end_ns = _span_ns(window, packets, at_s, length_s)
    tokens: list[dict[str, Float32]] = []
    for decision in chain.from_iterable(map(core.packet, packets)):
        if decision.window_end_ns > end_ns:
            break
        if decision.window_end_ns - round(window.length_s * 1e9) >= begin_ns:
            tokens += core.recent(0.0)
    return tokens


def _span_ns(window: WindowSpec, packets: Sequence[Packet], at_s: float, length_s: float | None) -> tuple[int, int]:
    """Begin and end of the windows of an example, on the clock of the arrivals."""
    begin_ns = packets[0].arrival_ns + round(at_s * 1e9)
    # A window more or less, because the grid of windows lies where the run's first sample put it.
    longest_s = max(length_s or 0.0, window.length_s) + window.hop_s
    return begin_ns, begin_ns + round(longest_s * 1e9)


def other_occurrences(
    model: BundleModel, name: str, example: Example, packets: Sequence[Packet], at_s: float, length_s: float | None
) -> list[Stretch]:
    """Occurrences of an example in the rest of its recording.

    Args:
        model: The bundle's model.
        name: Name of the class.
        example: The example, made of the windows at ``at_s``.
        packets, at_s, length_s: As for :func:`recorded_windows`; windows that overlap the example are left out.

    Raises:
        DataError: The packets are out of order.
        EngineError: The engine failed.
    """
    labels, window = model.manifest.labels, model.manifest.window
    begin_ns, end_ns = _span_ns(window, packets, at_s, length_s)
    core = LiveCore(model, policy=Policy(layer=Layer(SCHEMA, "").enrol(name, example)))
    matches = []
    for decision in chain.from_iterable(map(core.packet, packets)):
        window_ns = decision.window_end_ns - round(window.length_s * 1e9)
        if decision.raw_label == name and (decision.window_end_ns <= begin_ns or window_ns >= end_ns):
            scores = decision.scores[: len(labels)]
            matches.append(((window_ns - packets[0].arrival_ns) / 1e9, labels[scores.index(max(scores))]))
    groups: list[list[tuple[float, str]]] = []
    for match in matches:
        if groups and match[0] - groups[-1][-1][0] < 2.5 * window.hop_s:
            groups[-1].append(match)
        else:
            groups.append([match])
    return [
        Stretch(
            group[0][0],
            group[-1][0] - group[0][0] + window.length_s,
            Counter(label for _, label in group).most_common(1)[0][0],
        )
        for group in groups
    ]
