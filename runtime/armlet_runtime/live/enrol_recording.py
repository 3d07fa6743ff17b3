"""Examples of a new class in a recording: the windows of one, and where else in it the class is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ..arrays import Float32
from ..model import SCHEMA, BundleModel, Example, Layer, Policy
from ..signals import Packet, WindowSpec
from .core import LiveCore


class Stretch(NamedTuple):
    """Windows in which an example is found, and that follow each other, or with one left out.

    Attributes:
        begin_s: Where the first of them begins.
        length_s: From there to the end of the last.
        label: What most of them are without the example.
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
        length_s: How long it is; None for one window, which is also the least.

    Returns:
        Of each window that lies in it, modality name to token.

    Raises:
        DataError: The packets are out of order.
        EngineError: The engine failed.
    """
    core = LiveCore(model)
    window = model.manifest.window
    begin_ns, end_ns = _span_ns(window, packets, at_s, length_s)
    found: list[dict[str, Float32]] = []
    for decision in (one for packet in packets for one in core.packet(packet)):
        if decision.window_end_ns > end_ns:
            break
        if decision.window_end_ns - round(window.length_s * 1e9) >= begin_ns:
            found += core.recent(0.0)
    return found


def _span_ns(window: WindowSpec, packets: Sequence[Packet], at_s: float, length_s: float | None) -> tuple[int, int]:
    """From when to when, on the clock of the arrivals, the windows of an example lie."""
    begin_ns = packets[0].arrival_ns + round(at_s * 1e9)
    # A window more or less, because the grid of windows lies where the run's first sample put it.
    longest_s = max(length_s or 0.0, window.length_s) + window.hop_s
    return begin_ns, begin_ns + round(longest_s * 1e9)


def found_elsewhere(
    model: BundleModel, name: str, example: Example, packets: Sequence[Packet], at_s: float, length_s: float | None
) -> list[Stretch]:
    """Where in the rest of its recording an example is found.

    Args:
        model: The bundle's model.
        name: Of its class.
        example: Made of the windows at ``at_s``.
        packets, at_s, length_s: As for :func:`recorded_windows`; windows that have a part of the example are left out.

    Raises:
        DataError: The packets are out of order.
        EngineError: The engine failed.
    """
    labels, window = model.manifest.labels, model.manifest.window
    begin_ns, end_ns = _span_ns(window, packets, at_s, length_s)
    core = LiveCore(model, policy=Policy(layer=Layer(SCHEMA, "").enrol(name, example)))
    found = []
    for decision in (one for packet in packets for one in core.packet(packet)):
        window_ns = decision.window_end_ns - round(window.length_s * 1e9)
        if decision.raw_label == name and (decision.window_end_ns <= begin_ns or window_ns >= end_ns):
            known = decision.scores[: len(labels)]
            found.append(((window_ns - packets[0].arrival_ns) / 1e9, labels[known.index(max(known))]))
    groups: list[list[tuple[float, str]]] = []
    for one in found:
        if groups and one[0] - groups[-1][-1][0] < 2.5 * window.hop_s:
            groups[-1].append(one)
        else:
            groups.append([one])
    return [
        Stretch(
            group[0][0],
            group[-1][0] - group[0][0] + window.length_s,
            Counter(label for _, label in group).most_common(1)[0][0],
        )
        for group in groups
    ]
