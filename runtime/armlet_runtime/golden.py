"""The golden run: does this machine get from a bundle's programs what was measured when it was exported?"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from .engines.base import Float32
from .manifest import Manifest
from .modalities import subsets
from .model import BundleModel, load_array, programs_of

FLOAT_TOLERANCE = 1e-4
"""Largest difference of a logit of a float program: other processors add up in another order (seen: 3e-8 a layer).
Integer programs must give the same bits."""


class GoldenResult(msgspec.Struct, frozen=True):
    """What a golden run found.

    Attributes:
        engine: Engine name, with its ``version`` and ``detail``.
        precision: ``int8`` if every program is, else ``fp32``.
        windows: Golden windows, each run in every subset.
        max_difference: Largest absolute difference of a logit from the stored one.
        tolerance: Largest difference allowed.
        passed: Whether it was kept.
    """

    engine: str
    version: str
    detail: str
    precision: str
    windows: int
    max_difference: float
    tolerance: float
    passed: bool


def run_subsets(model: BundleModel, windows: dict[str, Float32]) -> tuple[Float32, Float32]:
    """Run every subset over all windows.

    Args:
        model: The model.
        windows: Modality name to (n, channels, samples), normalised, for all modalities of the model.

    Returns:
        Logits (subsets, n, labels) and embeddings (subsets, n, embedding_dim), the subsets in the order of
        :func:`armlet_runtime.modalities.subsets`.

    Raises:
        DataError: A window has another shape than the model takes.
        EngineError: The engine failed.
    """
    names = [modality.name for modality in model.manifest.modalities]
    count = len(windows[names[0]])
    tokens = {name: [model.encode_normalised(name, window) for window in windows[name]] for name in names}
    parts = subsets(names)
    logits = np.empty((len(parts), count, len(model.manifest.labels)), np.float32)
    embeddings = np.empty((len(parts), count, model.manifest.embedding_dim), np.float32)
    for i, subset in enumerate(parts):
        for j in range(count):
            logits[i, j], embeddings[i, j] = model.aggregate({name: tokens[name][j] for name in subset})
    return logits, embeddings


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


def golden_run(model: BundleModel, read: Callable[[str], bytes]) -> GoldenResult:
    """Run the golden windows in every subset and compare with the logits that the same engine gave at export.

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
    refs = (*programs.encoders.values(), programs.aggregator)
    precision = "int8" if all(ref.precision == "int8" for ref in refs) else "fp32"
    tolerance = 0.0 if precision == "int8" else FLOAT_TOLERANCE
    difference = float(np.max(np.abs(logits - stored), initial=0.0))
    return GoldenResult(
        engine=model.engine.name,
        version=model.engine.version,
        detail=model.engine.detail,
        precision=precision,
        windows=logits.shape[1],
        max_difference=difference,
        tolerance=tolerance,
        passed=difference <= tolerance,  # false also for a NaN
    )
