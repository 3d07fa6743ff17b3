"""Classes that a board learns from an example: prototypes in embedding space.

**An example** is a few windows of something that the model does not know. Their embeddings, in every subset of the
modalities that were there, become prototypes. The bundle brings a *bank*: tokens of validation people's windows of the
classes that it knows. A prototype reaches :data:`REACH` of the way to the nearest window of the bank in its subset, so
that it takes none of them: what is new gets the room that is free, and where there is none, next to none. A window that
the model is sure of (:data:`armlet_runtime.model.calibration.SURE`) says nothing new: it gives no prototype, and none
takes it, however near it is. Both numbers were chosen on HAPT's validation people with the postural transitions as new
classes (``benchmarks/enrolment.py``). Where examples are kept: :mod:`armlet_runtime.model.enrolled_classes`.

**The cost of an example** is not known beforehand. A person sees where else in its recording the class would be found
(:func:`armlet_runtime.live.other_occurrences`), knows what went on there, and may take the example back. No rule does:
the recording may well be full of the new class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..arrays import Float32
from ..bundle import Manifest
from ..errors import BundleError, EnrolmentError, NotANumberError
from ..modalities import subset_name, subsets
from .bundle_model import BundleModel, load_array
from .calibration import SURE, softmax
from .enrolled_classes import Example, Prototype

REACH = 0.9
MAX_WINDOWS = 16
"""Most windows of one example: what a file holds, and a hop compares with, stays small."""


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
        complete = [tokens for tokens in chosen if all(name in tokens for name in subset)]
        points = _new_points(model, subset, complete)
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


def taken_for(model: BundleModel, windows: Sequence[Mapping[str, Float32]]) -> str | None:
    """The class of the bundle that the model is sure all windows of an example are, so that it shows nothing new.

    Args:
        model: The bundle's model.
        windows: As for :func:`make_example`.
    """
    names = [modality.name for modality in model.manifest.modalities]
    outcomes = [
        outcome
        for tokens in windows
        for outcome in _decided(model, tuple(name for name in names if name in tokens), [tokens])
    ]
    labels = {label for sure, label, _ in outcomes if sure > SURE}
    return labels.pop() if len(labels) == 1 and all(sure > SURE for sure, _, _ in outcomes) else None


def _new_points(model: BundleModel, subset: tuple[str, ...], windows: Sequence[Mapping[str, Float32]]) -> list[Float32]:
    """Embeddings of the windows that the model is not sure of; else of the window that it is least sure of."""
    outcomes = _decided(model, subset, windows)
    unsure = [embedding for sure, _, embedding in outcomes if sure <= SURE]
    return unsure or [embedding for _, _, embedding in sorted(outcomes, key=lambda outcome: outcome[0])[:1]]


def _decided(
    model: BundleModel, subset: tuple[str, ...], windows: Sequence[Mapping[str, Float32]]
) -> list[tuple[float, str, Float32]]:
    """Of each window that has a number for a score: probability of the best class, its label, and the embedding."""
    confidence = model.manifest.confidence
    temperature = confidence.temperature[subset_name(subset)] if confidence is not None else 1.0
    outcomes = []
    for tokens in windows:
        try:
            logits, embedding = model.aggregate({name: tokens[name] for name in subset})
        except NotANumberError:
            continue
        label = model.manifest.labels[int(logits.argmax())]
        outcomes.append((max(softmax(logits.tolist(), temperature)), label, embedding))
    return outcomes
