"""The golden run: does this machine get from a bundle's programs what was measured when it was exported?

Besides the stored windows it runs the programs on inputs that must not break them (:data:`ODD_INPUTS`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from ..arrays import Float32
from ..bundle import Manifest
from ..errors import NotANumberError
from ..modalities import subsets
from .bundle_model import BundleModel, ends_of, load_array, programs_of

FLOAT_TOLERANCE = 1e-4
"""Largest difference of a logit of a float program: other processors add up in another order (seen: 3e-8 a layer).
Integer programs must give the same bits."""

ODD_INPUTS = (
    "a non-contiguous window gives the same token",
    "names in another order give the same scores",
    "NaN and infinity in a window are refused",
    "extreme values give finite scores",
)
"""What :func:`odd_inputs` looks at."""

STEPS_HOLD = "step programs give the scores of whole windows"
"""What :func:`step_difference` looks at."""

STEP_TOLERANCE = 1e-5
"""Largest difference of a token or logit of a step program from the windowed one's: the same columns are averaged, in
another order of sums at most. Integer programs have steps far larger, so for them this means the same integers."""

STEP_WINDOWS, STEP_HOPS = 16, 10
"""From so many windows on, so many steps are taken, one after another: an error must not build up."""

EXTREME = 1e4
"""Standard deviations: far beyond what a sensor can send, and far from where float32 ends."""


class GoldenResult(msgspec.Struct, frozen=True):
    """The result of a golden run.

    Attributes:
        engine: Engine name, with its ``version`` and ``detail``.
        precision: The one of all programs, or ``mixed``.
        windows: Golden windows, each run in every subset.
        max_difference: Largest absolute difference of a logit from the stored logit.
        tolerance: Largest difference allowed.
        failed: Names of the :data:`ODD_INPUTS` that failed, and :data:`STEPS_HOLD` if that failed.
        passed: Whether all of it held.
        steps: Largest difference of step programs from whole-window programs; None if no encoder is incremental.
    """

    engine: str
    version: str
    detail: str
    precision: str
    windows: int
    max_difference: float
    tolerance: float
    failed: tuple[str, ...]
    passed: bool
    steps: float | None = None


def run_encoders(model: BundleModel, windows: Mapping[str, Float32]) -> dict[str, Float32]:
    """Tokens (n, token_dim) of all windows (n, channels, samples), normalised, by modality name.

    Raises:
        DataError: A window has another shape than the model takes, or is not finite.
        EngineError: The engine failed.
    """
    return {
        name: np.stack([model.encode_normalised(name, window) for window in array]) for name, array in windows.items()
    }


def run_subsets(
    model: BundleModel, windows: dict[str, Float32], tokens: dict[str, Float32] | None = None
) -> tuple[Float32, Float32]:
    """Run every subset over all windows.

    Args:
        model: The model.
        windows: Modality name to (n, channels, samples), normalised, for all modalities of the model.
        tokens: Their tokens from :func:`run_encoders`, if they are there already.

    Returns:
        Logits (subsets, n, labels) and embeddings (subsets, n, embedding_dim), the subsets in the order of
        :func:`armlet_runtime.modalities.subsets`.

    Raises:
        DataError: A window has another shape than the model takes, or is not finite.
        EngineError: The engine failed.
    """
    names = [modality.name for modality in model.manifest.modalities]
    count = len(windows[names[0]])
    tokens = run_encoders(model, {name: windows[name] for name in names}) if tokens is None else tokens
    parts = subsets(names)
    logits = np.empty((len(parts), count, len(model.manifest.labels)), np.float32)
    embeddings = np.empty((len(parts), count, model.manifest.embedding_dim), np.float32)
    for i, subset in enumerate(parts):
        for j in range(count):
            logits[i, j], embeddings[i, j] = model.aggregate({name: tokens[name][j] for name in subset})
    return logits, embeddings


def odd_inputs(model: BundleModel, windows: Mapping[str, Float32]) -> tuple[str, ...]:
    """Give the programs what a careless caller or a broken sensor would, in every subset of one window.

    Args:
        model: The model.
        windows: Modality name to (n, channels, samples), normalised; the first of each is used.

    Returns:
        Names of the :data:`ODD_INPUTS` that failed; empty on a healthy machine.

    Raises:
        EngineError: The engine failed.
    """
    contiguous, order, refused, extremes = ODD_INPUTS
    first = {name: np.ascontiguousarray(array[0]) for name, array in windows.items()}
    failed = []

    def strided(window: Float32) -> Float32:
        wide = np.repeat(window, 2, axis=1)
        wide[:, 1::2] = np.inf  # what an engine would read that ignores strides
        return wide[:, ::2]

    tokens = {name: model.encode_normalised(name, window) for name, window in first.items()}
    if not all(
        np.array_equal(model.encode_normalised(name, window), tokens[name])
        for name, part in first.items()
        for window in (strided(part), np.asfortranarray(part), part[::-1][::-1])
    ):
        failed.append(contiguous)
    names = list(first)
    for subset in subsets(names):
        scores = model.aggregate({name: tokens[name] for name in subset})[0]
        if not np.array_equal(model.aggregate({name: tokens[name] for name in reversed(subset)})[0], scores):
            failed.append(order)
            break
    broken = (np.nan, np.inf, -np.inf)
    if not all(_is_refused(model, name, part, value) for name, part in first.items() for value in broken):
        failed.append(refused)
    ends = [
        {name: (np.where(np.indices(part.shape).sum(0) % step == 0, sign, -sign) * EXTREME).astype(np.float32)
         for name, part in first.items()}
        for sign in (1, -1)
        for step in (1, 2)
    ]  # fmt: skip
    extreme = {name: [model.encode_normalised(name, end[name]) for end in ends] for name in names}
    try:
        for subset in subsets(names):
            for place in range(len(ends)):
                model.aggregate({name: extreme[name][place] for name in subset})
    except NotANumberError:
        failed.append(extremes)
    return tuple(failed)


def step_difference(model: BundleModel, windows: Mapping[str, Float32]) -> float | None:
    """Difference of the step programs from the whole-window programs; None if no encoder is incremental.

    Each of :data:`STEP_WINDOWS` windows is followed by :data:`STEP_HOPS` others, each a hop later; what they lack comes
    from the windows after it. Compared are tokens, and the logits of all modalities and of each alone.

    Args:
        model: The model.
        windows: Modality name to (n, channels, samples), normalised; at least one.

    Returns:
        The largest absolute difference; NaN if any difference is NaN.

    Raises:
        EngineError: The engine failed.
    """
    if not model.steps:
        return None
    signals = {name: np.concatenate(list(array), axis=1) for name, array in windows.items()}
    names, count = list(windows), len(next(iter(windows.values())))
    subsets_compared = [names, *([name] for name in names if len(names) > 1)]
    differences = [0.0]
    for first in np.arange(min(count, STEP_WINDOWS)) * count // min(count, STEP_WINDOWS):
        still = {
            name: model.encode_normalised(name, array[first])
            for name, array in windows.items()
            if name not in model.steps
        }
        states: dict[str, Float32] = {}
        for hop in range(STEP_HOPS + 1):
            whole, stepped = dict(still), dict(still)
            for name, step in model.steps.items():
                signal, length = signals[name], windows[name].shape[2]
                window = signal.take(first * length + hop * step.hop + np.arange(length), axis=1, mode="wrap")
                whole[name], state = model.begin(name, window)
                if hop == 0:
                    stepped[name], states[name] = whole[name], state
                    continue
                stepped[name], states[name] = model.step(name, ends_of(step, window), states[name])
                differences.append(float(np.abs(stepped[name] - whole[name]).max()))
            for subset in subsets_compared:
                scores, wanted = (
                    model.aggregate({name: tokens[name] for name in subset})[0] for tokens in (stepped, whole)
                )
                differences.append(float(np.abs(scores - wanted).max()))
    return float(np.max(differences))


def step_tolerance(engine: str) -> float:
    """How far an engine's step programs may be from its whole-window programs.

    Another provider, after the colon of the engine's name, computes in float as it likes.
    """
    return FLOAT_TOLERANCE if ":" in engine else STEP_TOLERANCE


def what_failed(model: BundleModel, windows: Mapping[str, Float32]) -> tuple[tuple[str, ...], float | None]:
    """Which of :data:`ODD_INPUTS` and :data:`STEPS_HOLD` do not hold, and what :func:`step_difference` found.

    Raises:
        EngineError: The engine failed.
    """
    failed, steps = odd_inputs(model, windows), step_difference(model, windows)
    if steps is not None and not steps <= step_tolerance(model.engine.name):  # so also for a NaN
        failed += (STEPS_HOLD,)
    return failed, steps


def _is_refused(model: BundleModel, name: str, window: Float32, value: float) -> bool:
    broken = window.copy()
    broken[-1, -1] = value
    try:
        model.encode_normalised(name, broken)
    except NotANumberError:
        return True
    return False


def golden_windows(manifest: Manifest, read: Callable[[str], bytes]) -> dict[str, Float32]:
    """The golden windows of a bundle: modality name to (n, channels, samples), normalised.

    Raises:
        BundleError: A member is not such an array.
    """
    return {
        modality.name: load_array(
            read(manifest.golden.windows[modality.name]),
            manifest.golden.windows[modality.name],
            (None, len(modality.channels), manifest.window.samples(modality)),
        )
        for modality in manifest.modalities
    }


def physical_windows(manifest: Manifest, read: Callable[[str], bytes]) -> dict[str, Float32]:
    """The golden windows in physical units: modality name to (n, channels, samples); arguments and errors as for
    :func:`golden_windows`.
    """
    return {
        name: manifest.normalisation[name].undo(windows) for name, windows in golden_windows(manifest, read).items()
    }


def run_golden(model: BundleModel, read: Callable[[str], bytes]) -> GoldenResult:
    """Run the golden windows in every subset, compare with the logits that the same engine gave at export, and look at
    :data:`ODD_INPUTS`.

    Raises:
        BundleError: A golden member is not what the manifest promises.
        EngineError: The engine failed.
    """
    manifest = model.manifest
    stored_under, programs = programs_of(manifest, model.engine.name)
    windows = golden_windows(manifest, read)
    logits, _ = run_subsets(model, windows)
    member = manifest.golden.logits[stored_under]
    stored = load_array(read(member), member, logits.shape)
    precisions = {ref.precision for ref in programs.by_part.values()}
    tolerance = manifest.golden.tolerance.get(stored_under)
    if tolerance is None:
        tolerance = 0.0 if precisions == {"int8"} else FLOAT_TOLERANCE
    if model.engine.name != stored_under and ":" in model.engine.name:
        # Another provider of the same engine rounds as it likes between the layers.
        tolerance = max(tolerance, FLOAT_TOLERANCE)
    difference = float(np.max(np.abs(logits - stored), initial=0.0))
    failed, steps = what_failed(model, windows) if logits.shape[1] else ((), None)
    return GoldenResult(
        engine=model.engine.name,
        version=model.engine.version,
        detail=model.engine.detail,
        precision=precisions.pop() if len(precisions) == 1 else "mixed",
        windows=logits.shape[1],
        max_difference=difference,
        tolerance=tolerance,
        failed=failed,
        passed=difference <= tolerance and not failed,  # false also for a NaN
        steps=steps,
    )
