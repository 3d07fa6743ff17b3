"""Classes that a board learns from an example: prototypes in embedding space.

**An example** is a few windows of something that the model does not know. Their embeddings, in every subset of the
modalities that were there, become prototypes. The bundle brings a *bank*: tokens of validation people's windows of the
classes that it knows. A prototype reaches :data:`REACH` of the way to the nearest window of the bank in its subset, so
that it takes none of them: what is new gets the room that is free, and where there is none, next to none. A window that
the model is sure of (:data:`armlet_runtime.deciding.SURE`) says nothing new: it gives no prototype, and none takes it,
however near it is. Both numbers were chosen on HAPT's validation people with the postural transitions as new classes
(``benchmarks/enrolment.py``). Where examples are kept: :mod:`armlet_runtime.layers`.

**What an example costs** nobody knows beforehand. In the rest of its recording a person sees where else the class would
be found (:func:`found_elsewhere`), knows what was going on there, and may take the example back. No rule does: the rest
may well be full of the new class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .deciding import SURE, softmax
from .engines.base import Float32
from .errors import BundleError, EnrolmentError, NotANumberError
from .layers import SCHEMA, Example, Layer, Prototype
from .live import LiveCore
from .manifest import Manifest
from .modalities import subset_name, subsets
from .model import BundleModel, load_array
from .recording import Packet
from .windows import WindowSpec

REACH = 0.9
MAX_WINDOWS = 16
"""Most windows of one example: what a file holds, and a hop compares with, stays small."""


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


class Bank:
    """Windows of the classes that a bundle knows: what an example is held against."""

    def __init__(self, manifest: Manifest, read: Callable[[str], bytes]) -> None:
        """Read a bundle's bank.

        Args:
            manifest: Of the bundle.
            read: Gives a member's bytes.

        Raises:
            EnrolmentError: The bundle has none.
            BundleError: The member is not what the manifest promises.
        """
        if manifest.bank is None:
            raise EnrolmentError("this bundle cannot learn classes: it was exported by an earlier armlet; export again")
        names = [modality.name for modality in manifest.modalities]
        rows = load_array(read(manifest.bank), manifest.bank, (None, len(names) * manifest.token_dim), np.float16)
        if not len(rows) or not np.isfinite(rows).all():
            raise BundleError(f"the member '{manifest.bank}' must hold at least one window, and finite numbers only")
        self.tokens: dict[str, Float32] = dict(zip(names, np.split(rows, len(names), axis=1), strict=True))
        self.windows = len(rows)


def make_example(model: BundleModel, bank: Bank, windows: Sequence[Mapping[str, Float32]], source: str) -> Example:
    """The prototypes of an example.

    Args:
        model: The bundle's model.
        bank: The bundle's bank.
        windows: Of each window, modality name to token (token_dim,) for the modalities that were there.
        source: See :class:`Example`.

    Raises:
        EnrolmentError: There is no window with a modality.
        EngineError: The engine failed.
    """
    # Of too many windows, some that are spread evenly.
    count = min(len(windows), MAX_WINDOWS)
    chosen = [windows[index * len(windows) // count] for index in range(count)]
    names = [modality.name for modality in model.manifest.modalities]
    prototypes = {}
    for subset in subsets(names):
        there = [tokens for tokens in chosen if all(name in tokens for name in subset)]
        points = _new_points(model, subset, there)
        if points:
            known = np.stack([
                model.aggregate({name: bank.tokens[name][row] for name in subset})[1] for row in range(bank.windows)
            ])  # fmt: skip
            prototypes[subset_name(subset)] = tuple(
                Prototype(
                    tuple(point.tolist()),
                    # Not 0 where a window of the bank is the very same: a distance is divided by it.
                    max(REACH * float(np.sqrt(np.square(known - point).sum(axis=1).min())), 1e-6),
                )
                for point in points
            )
    if not prototypes:
        raise EnrolmentError("there was no window with a sensor in it to learn from")
    return Example(source, model.engine.name, len(chosen), prototypes)


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
    core = LiveCore(model, layer=Layer(SCHEMA, "").enrol(name, example))
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


def taken_for(model: BundleModel, windows: Sequence[Mapping[str, Float32]]) -> str | None:
    """The class of the bundle that the model is sure all windows of an example are, so that it shows nothing new.

    Args:
        model: The bundle's model.
        windows: As for :func:`make_example`.
    """
    names = [modality.name for modality in model.manifest.modalities]
    found = [
        one for tokens in windows for one in _decided(model, tuple(name for name in names if name in tokens), [tokens])
    ]
    labels = {label for sure, label, _ in found if sure > SURE}
    return labels.pop() if len(labels) == 1 and all(sure > SURE for sure, _, _ in found) else None


def _new_points(model: BundleModel, subset: tuple[str, ...], windows: Sequence[Mapping[str, Float32]]) -> list[Float32]:
    """Embeddings of the windows that the model is not sure of; of the one it is least sure of if there are none."""
    found = _decided(model, subset, windows)
    unsure = [embedding for sure, _, embedding in found if sure <= SURE]
    return unsure or [embedding for _, _, embedding in sorted(found, key=lambda one: one[0])[:1]]


def _decided(
    model: BundleModel, subset: tuple[str, ...], windows: Sequence[Mapping[str, Float32]]
) -> list[tuple[float, str, Float32]]:
    """Of each window that has a number for a score: probability of the best class, its label, and the embedding."""
    confidence = model.manifest.confidence
    temperature = confidence.temperature[subset_name(subset)] if confidence is not None else 1.0
    found = []
    for tokens in windows:
        try:
            logits, embedding = model.aggregate({name: tokens[name] for name in subset})
        except NotANumberError:
            continue
        label = model.manifest.labels[int(logits.argmax())]
        found.append((max(softmax(logits.tolist(), temperature)), label, embedding))
    return found
