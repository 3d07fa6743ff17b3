"""Features made by hand, which a learned model must beat to be worth its training.

They are what activity recognition used before networks (Anguita et al., ESANN 2013, among many): for each channel its
mean, spread, extremes, jerkiness and spectrum, and for each modality the correlations of its channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from armlet_runtime.arrays import Float32

BANDS = 8
BAND_BINS = 4
"""The spectrum is averaged in 8 bands of 4 bins, from the lowest on: 0.4 to 12.5 Hz for windows of 2.56 s."""


def hand_features(windows: Mapping[str, Float32]) -> Float32:
    """(n, features) of windows (n, channels, samples) in their units, all modalities side by side.

    Logarithms stand where amplitudes range over decades; what is added to them keeps silence finite, in g and rad/s.
    """
    return np.concatenate([_of_modality(window) for window in windows.values()], axis=1)


def _of_modality(window: Float32) -> Float32:
    count, channels, _ = window.shape
    mean = window.mean(axis=2, keepdims=True)
    deviation = window.std(axis=2)
    spectrum = np.abs(np.fft.rfft(window - mean))[:, :, 1 : 1 + BANDS * BAND_BINS]
    bands = spectrum.reshape(count, channels, -1, BAND_BINS).mean(axis=3)
    step = np.abs(np.diff(window, axis=2)).mean(axis=2)
    first, second = np.triu_indices(channels, 1)
    together = ((window - mean)[:, first] * (window - mean)[:, second]).mean(axis=2)
    correlation = together / (deviation[:, first] * deviation[:, second] + 1e-12)
    parts = [
        mean[:, :, 0],
        np.log(deviation + 1e-3),
        np.log(bands + 1e-2).reshape(count, -1),
        np.log(step + 1e-4),
        window.min(axis=2),
        window.max(axis=2),
        correlation,
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)
