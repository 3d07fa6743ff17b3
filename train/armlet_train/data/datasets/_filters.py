"""Filters and rates that EEG and ECG are brought to, with SciPy; the steps and their order are those of CBraMod.

CBraMod's corpus was resampled to 200 Hz, band-passed from 0.3 to 75 Hz, and notched at the mains' frequency, in this
order (Wang et al., ICLR 2025, and its code). Filters run forwards and backwards, so they shift nothing in time: right
for recordings that are whole, and for training only. A board filters before the model's window.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Stream

RATE_HZ = 200.0
"""What every EEG, EOG and ECG here comes in, since the published weights take 200 Hz."""

EEG_BAND_HZ = (0.3, 75.0)
ECG_BAND_HZ = (0.5, 40.0)
"""CBraMod's band for EEG; for ECG the monitoring band of IEC 60601-2-27 (0.5 to 40 Hz)."""

ORDER = 4
NOTCH_QUALITY = 30.0
"""Of the Butterworth band-pass, and of the notch (its -3 dB band is a thirtieth of its frequency)."""

Values = NDArray[np.float64]


def prepare(values: Values, rate_hz: float, band_hz: tuple[float, float], notch_hz: float | None) -> Values:
    """(n, channels) at ``rate_hz`` to (m, channels) at :data:`RATE_HZ`, band-passed and notched.

    Args:
        values: Gap-free samples.
        rate_hz: Their rate; a whole number of Hz.
        band_hz: What passes; its upper end is lowered where the samples carry less.
        notch_hz: The mains' frequency; None, or above what the samples carry, for no notch.

    Raises:
        DataError: The samples are too few to be filtered, or not all of them are numbers.
    """
    from scipy import signal

    if not np.isfinite(values).all():
        raise DataError("some samples are not numbers, and a filter would spread them")
    ratio = Fraction(round(RATE_HZ), round(rate_hz))
    # One channel's offset (thousands of microvolts in an Emotiv's EEG) must not ring at the edges.
    centred = values - values.mean(axis=0)
    if ratio != 1:
        centred = signal.resample_poly(centred, ratio.numerator, ratio.denominator, axis=0, padtype="line")
    carried_hz = 0.45 * min(rate_hz, RATE_HZ)
    sections = _sections(
        band_hz[0], min(band_hz[1], carried_hz), notch_hz if notch_hz and notch_hz < carried_hz else 0.0
    )
    needed = 3 * (2 * len(sections) + 1)
    if len(centred) <= needed:
        raise DataError(f"{len(values)} samples at {rate_hz:g} Hz are too few to be filtered")
    filtered: Values = signal.sosfiltfilt(sections, centred, axis=0)
    return filtered


@cache
def _sections(low_hz: float, high_hz: float, notch_hz: float) -> Any:
    """Second-order sections (s, 6) of the band-pass and, if its frequency is not 0, of the notch."""
    from scipy import signal

    sections = signal.butter(ORDER, (low_hz, high_hz), "bandpass", fs=RATE_HZ, output="sos")
    if notch_hz:
        sections = np.vstack([sections, signal.tf2sos(*signal.iirnotch(notch_hz, NOTCH_QUALITY, fs=RATE_HZ))])
    return sections


def stream(modality: Modality, values: Values) -> Stream:
    """Samples (n, channels) at the modality's rate, the first at time 0."""
    times = np.rint(np.arange(len(values)) / modality.rate_hz * 1e9).astype(np.int64)
    return Stream(modality, times, values.astype(np.float32))
