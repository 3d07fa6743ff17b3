"""MADE data: five modalities of 40 people who do not exist, for what no free data set has: 31 subsets of modalities.

ECG, PPG, respiration and skin conductance come from neurokit2 (Makowski et al., Behavior Research Methods, 2021), the
accelerometer from a sum of sines over gravity. All are driven by one hidden state at a time. No modality tells all six
states apart: the accelerometer cannot see stress or breathing, skin conductance sees little else than stress, and a
heart rate that is one person's rest is another's walk. Tables and plots of this data must say that it is made.

Everything follows from (seed, person): the same on every machine with the same versions of NumPy and neurokit2. A
person takes some seconds, and is kept in the cache.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.arrays import Float64
from armlet_runtime.errors import DataError, MissingExtraError
from armlet_runtime.files import write_atomic
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label, Recording, Stream

from .base import DataSet, Entry
from .hapt import cache_folder

SEED = 0
ECG = Modality("ecg", ("lead",), "mV", 100.0)
PPG = Modality("ppg", ("green",), "au", 50.0)
RSP = Modality("rsp", ("chest",), "au", 12.5)
EDA = Modality("eda", ("hand",), "uS", 4.0)
ACC = Modality("acc", ("x", "y", "z"), "g", 50.0)
MODALITIES = (ECG, PPG, RSP, EDA, ACC)


@dataclass(frozen=True)
class State:
    """The effect of a hidden state on a body, on average over people.

    Attributes:
        heart_bpm: Above the person's own rest.
        breath_rpm: Breaths a minute.
        responses: Skin conductance responses a minute.
        sweat_us: Tonic skin conductance above the person's own, uS.
        step_hz: Steps a second; 0 for none.
        step_g: Amplitude of a step, g.
        motion: Size of what motion does to the electrodes and the light, relative to their signals.
    """

    heart_bpm: float
    breath_rpm: float
    responses: float
    sweat_us: float
    step_hz: float
    step_g: float
    motion: float


STATES = {
    "rest": State(0, 14, 2, 0.0, 0.0, 0.0, 0.02),
    "slow breathing": State(1, 7, 2, 0.0, 0.0, 0.0, 0.02),
    "stress": State(16, 18, 12, 1.6, 0.0, 0.0, 0.04),
    "walk": State(26, 20, 3, 0.6, 1.8, 0.22, 0.20),
    "walk under stress": State(40, 23, 13, 2.4, 1.85, 0.24, 0.22),
    "run": State(75, 33, 6, 1.4, 2.7, 0.9, 0.45),
}

# Of people 1 to 40. The last two of the training people lack a modality.
TEST = tuple(str(person) for person in range(1, 11))
VALIDATION = tuple(str(person) for person in range(11, 17))
TRAIN = tuple(str(person) for person in range(17, 41))
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
LACKS = {"39": "eda", "40": "rsp"}

SECONDS = 44.0
"""Mean time that a state lasts; each comes twice, in a random order."""


def entries(_: Path) -> list[Entry]:
    """All people, one recording each."""
    return _entries(SPLITS, SECONDS)


def quick_entries(_: Path) -> list[Entry]:
    """Eight people for tests: four to train on, two for each of the other splits."""
    few = {"train": TRAIN[:4], "validation": VALIDATION[:2], "test": TEST[:2]}
    return _entries(few, 12.0)


def _entries(splits: dict[str, tuple[str, ...]], seconds: float) -> list[Entry]:
    return [
        Entry(f"made-p{int(person):02d}", person, split, partial(person_recording, person, SEED, seconds))
        for split, people in splits.items()
        for person in people
    ]


def person_recording(person: str, seed: int, seconds: float) -> Recording:
    """One made person's recording, from the cache if it was made before.

    Args:
        person: ``1`` to ``40``.
        seed: Of everything random.
        seconds: Mean time that a state lasts.

    Raises:
        MissingExtraError: neurokit2 is not installed.
    """
    source = Path(__file__).read_bytes() + repr((person, seed, seconds, _versions())).encode()
    path = cache_folder() / "made" / f"{person}-{hashlib.sha256(source).hexdigest()[:16]}.npz"
    arrays = _load(path)
    if arrays is None:
        arrays = _make(int(person), seed, seconds)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())
    return _recording(person, arrays)


def _versions() -> dict[str, str]:
    try:
        return {package: version(package) for package in ("numpy", "neurokit2")}
    except PackageNotFoundError:
        raise MissingExtraError(
            "the made data need neurokit2, which is not installed: pip install 'armlet[made]'"
        ) from None


def _load(path: Path) -> dict[str, NDArray[np.float64]] | None:
    """The arrays of a cache file; None if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _recording(person: str, arrays: dict[str, NDArray[np.float64]]) -> Recording:
    streams = {}
    for modality in MODALITIES:
        if LACKS.get(person) == modality.name:
            continue
        values = arrays[modality.name].astype(np.float32)
        times = np.rint(np.arange(len(values)) / modality.rate_hz * 1e9).astype(np.int64)
        worn = arrays[f"{modality.name}_there"].astype(bool)
        streams[modality.name] = Stream(modality, times[worn], values[worn])
    names = list(STATES)
    labels = [Label(round(first * 1e9), round(last * 1e9), names[int(code)]) for first, last, code in arrays["labels"]]
    meta = {"source": "MADE by armlet_train.data.datasets.simulated: these are not measurements"}
    return Recording(f"made-p{int(person):02d}", person, meta, streams, labels)


def _make(person: int, seed: int, seconds: float) -> dict[str, NDArray[np.float64]]:
    """Signals on each modality's own grid, which samples are there, and the labels (first s, last s, state)."""
    rng = np.random.default_rng([seed, person])
    body = _Body.draw(rng)
    order = np.concatenate([rng.permutation(len(STATES)), rng.permutation(len(STATES))])
    parts: dict[str, list[Float64]] = {modality.name: [] for modality in MODALITIES}
    labels, now = [], 0.0
    for code in order:
        # Multiples of 2 s, so that every modality has a whole number of samples.
        lasts = 2 * round(seconds * rng.uniform(0.8, 1.2) / 2)
        for name, values in body.live(list(STATES.values())[code], lasts, rng).items():
            parts[name].append(values)
        # The body takes a moment to follow.
        labels.append([now + 1.0, now + lasts, float(code)])
        now += lasts
    arrays: dict[str, NDArray[np.float64]] = {"labels": np.array(labels)}
    for modality in MODALITIES:
        signal = np.concatenate(parts[modality.name])
        arrays[modality.name] = signal
        arrays[f"{modality.name}_there"] = _there(len(signal), modality.rate_hz, rng)
    return arrays


def _there(count: int, rate_hz: float, rng: np.random.Generator) -> Float64:
    """1 where a sample arrives; each radio link is lost now and then, for some seconds."""
    worn = np.ones(count)
    for _ in range(rng.poisson(count / rate_hz / 120)):
        first = int(rng.uniform(0, count))
        worn[first : first + int(rng.uniform(1, 6) * rate_hz)] = 0
    return worn


@dataclass(frozen=True)
class _Body:
    """One person. Rates at rest, gains of the sensors, how the accelerometer sits, and how strongly states act."""

    heart_bpm: float
    reactivity: float
    breath: float
    sweat_us: float
    response_us: float
    sweating: float
    step: float
    gait: float
    down: Float64
    forward: Float64
    ecg_mv: float
    ppg_au: float
    rsp_au: float
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Body:
        """A random person."""
        down = np.array([0.0, 0.0, 1.0]) + 0.35 * rng.standard_normal(3)
        down /= np.linalg.norm(down)
        forward = np.cross(down, rng.standard_normal(3))
        return cls(
            heart_bpm=rng.normal(66, 9),
            reactivity=rng.lognormal(0, 0.25),
            breath=rng.lognormal(0, 0.12),
            sweat_us=rng.lognormal(1.0, 0.25),
            response_us=rng.lognormal(-0.5, 0.35),
            sweating=rng.lognormal(0, 0.4),
            step=rng.normal(1, 0.06),
            gait=rng.lognormal(0, 0.25),
            down=down,
            forward=forward / np.linalg.norm(forward),
            ecg_mv=rng.lognormal(0, 0.3),
            ppg_au=rng.lognormal(0, 0.4),
            rsp_au=rng.lognormal(0, 0.4),
            noise=rng.lognormal(0, 0.4),
        )

    def live(self, state: State, seconds: float, rng: np.random.Generator) -> dict[str, Float64]:
        """Signals of one state: modality to (samples, channels)."""
        heart = max(40.0, self.heart_bpm + self.reactivity * state.heart_bpm + rng.normal(0, 4))
        breath = max(4.0, self.breath * state.breath_rpm + rng.normal(0, 1))
        motion = state.motion * self.noise * rng.lognormal(0, 0.3)
        signals = {
            "ecg": self._ecg(heart, motion, seconds, rng),
            "ppg": self._ppg(heart, motion, seconds, rng),
            "rsp": self._rsp(breath, motion, seconds, rng),
            "eda": self._eda(state, motion, seconds, rng),
        }
        return {**{name: signal[:, None] for name, signal in signals.items()}, "acc": self._acc(state, seconds, rng)}

    def _ecg(self, heart: float, motion: float, seconds: float, rng: np.random.Generator) -> Float64:
        import neurokit2

        count = round(seconds * ECG.rate_hz)
        # Its wavelet method: the other one (ecgsyn) was seen to run for ever on some heart rates and seeds. Beats come
        # evenly, so time is bent, as breath and blood pressure bend it.
        even = neurokit2.ecg_simulate(
            duration=int(1.5 * seconds) + 5, sampling_rate=int(ECG.rate_hz), heart_rate=heart, noise=0,
            method="daubechies",
        )  # fmt: skip
        pace = 1 + 0.05 * _slow(count, ECG.rate_hz, 0.25, rng)
        bent = rng.uniform(0, 200) + np.cumsum(np.clip(pace, 0.8, 1.2))
        clean = np.interp(bent, np.arange(len(even)), even / even.max())
        wander = _slow(count, ECG.rate_hz, 0.7, rng)
        muscle = rng.standard_normal(count)
        return np.asarray(self.ecg_mv * (clean + (0.1 + 2.0 * motion) * wander + (0.03 + 0.7 * motion) * muscle))

    def _ppg(self, heart: float, motion: float, seconds: float, rng: np.random.Generator) -> Float64:
        import neurokit2

        count = round(seconds * PPG.rate_hz)
        # The heart follows the breath at rest, and no longer when it is fast.
        modulation = 0.1 if heart < 120 else 0.0
        with warnings.catch_warnings():
            # Two of its points may fall on one sample, which it reports and corrects.
            warnings.simplefilter("ignore", neurokit2.misc.NeuroKitWarning)
            clean = neurokit2.ppg_simulate(
                duration=seconds, sampling_rate=int(PPG.rate_hz), heart_rate=heart, frequency_modulation=modulation,
                ibi_randomness=0.05, motion_amplitude=0, powerline_amplitude=0, random_state=_state(rng),
            )  # fmt: skip
        swing = _slow(count, PPG.rate_hz, 2.5, rng)
        fitted = _fit(clean, count)
        return np.asarray(self.ppg_au * (fitted + 2.5 * motion * swing + 0.05 * rng.standard_normal(count)))

    def _rsp(self, breath: float, motion: float, seconds: float, rng: np.random.Generator) -> Float64:
        import neurokit2

        count = round(seconds * RSP.rate_hz)
        # Made at twice the rate, since neurokit2 takes whole rates only; for a minute, since it needs some breaths.
        clean = neurokit2.rsp_simulate(
            duration=60 + int(seconds), sampling_rate=round(2 * RSP.rate_hz), respiratory_rate=breath, noise=0,
            random_state=_state(rng),
        )[int(rng.integers(round(60 * RSP.rate_hz))) :]  # fmt: skip
        shaken = 0.8 * motion * rng.standard_normal(count) + 0.15 * _slow(count, RSP.rate_hz, 0.3, rng)
        return np.asarray(self.rsp_au * (_fit(clean[::2], count) + shaken + 0.03 * rng.standard_normal(count)))

    def _eda(self, state: State, motion: float, seconds: float, rng: np.random.Generator) -> Float64:
        import neurokit2

        count = round(seconds * EDA.rate_hz)
        responses = rng.poisson(self.sweating * state.responses * seconds / 60)
        clean = np.ones(count)
        if responses:
            # neurokit2 spreads responses evenly from the first sample on: roll them, so that their phase is random.
            made = neurokit2.eda_simulate(
                duration=int(seconds), sampling_rate=int(EDA.rate_hz), scr_number=int(responses), noise=0,
                drift=0, random_state=_state(rng),
            )  # fmt: skip
            clean = np.roll(_fit(made, count), int(rng.integers(count)))
        tonic = self.sweat_us + self.sweating * state.sweat_us + rng.normal(0, 0.4)
        drift = 0.2 * _slow(count, EDA.rate_hz, 0.05, rng)
        noise = (0.02 + 0.1 * motion) * rng.standard_normal(count)
        return np.asarray(np.maximum(0.05, tonic + drift + self.response_us * (clean - 1) + noise))

    def _acc(self, state: State, seconds: float, rng: np.random.Generator) -> Float64:
        count = round(seconds * ACC.rate_hz)
        times = np.arange(count) / ACC.rate_hz
        sway = np.stack([_slow(count, ACC.rate_hz, 0.3, rng) for _ in range(3)], axis=1)
        values = self.down + 0.03 * sway + 0.01 * self.noise * rng.standard_normal((count, 3))
        if state.step_hz:
            rate = self.step * state.step_hz * rng.normal(1, 0.03)
            phase = 2 * np.pi * np.cumsum(rate * (1 + 0.03 * _slow(count, ACC.rate_hz, 0.5, rng))) / ACC.rate_hz
            size = self.gait * state.step_g * rng.lognormal(0, 0.1)
            bounce = np.sin(phase) + 0.4 * np.sin(2 * phase + 1) + 0.2 * np.sin(3 * phase + 2)
            push = 0.5 * np.sin(phase + 0.7) + 0.3 * np.sin(phase / 2)
            values = values + size * (bounce[:, None] * self.down + push[:, None] * self.forward)
        else:
            # People at rest fidget.
            for _ in range(rng.poisson(seconds / 20)):
                at = rng.uniform(0, seconds)
                burst = np.exp(-(((times - at) / 0.4) ** 2)) * np.sin(2 * np.pi * rng.uniform(1, 4) * times)
                values = values + 0.15 * burst[:, None] * rng.standard_normal(3)
        return np.asarray(values)


def _state(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _fit(signal: Float64, count: int) -> Float64:
    """The signal with exactly ``count`` samples; neurokit2 may give one more or less."""
    fitted = np.asarray(signal, np.float64)[:count]
    return np.pad(fitted, (0, count - len(fitted)), mode="edge")


def _slow(count: int, rate_hz: float, cut_hz: float, rng: np.random.Generator) -> Float64:
    """Noise below ``cut_hz``, of unit deviation."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum[np.fft.rfftfreq(count, 1 / rate_hz) > max(cut_hz, 1.5 * rate_hz / count)] = 0
    spectrum[0] = 0
    slow = np.fft.irfft(spectrum, count)
    return np.asarray(slow / (slow.std() + 1e-12))


def fetch() -> Path:
    """Where made people are kept; they are made when they are read.

    Raises:
        MissingExtraError: neurokit2 is not installed.
    """
    _versions()
    folder = cache_folder() / "made"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror}") from error
    return folder


def _data_set(name: str, title: str, entries: Callable[[Path], list[Entry]]) -> DataSet:
    return DataSet(name, title, MODALITIES, tuple(STATES), entries, fetch=fetch)


DATA_SET = _data_set("made", "MADE data: ECG, PPG, respiration, EDA and acc of 40 simulated people", entries)
QUICK = _data_set("made-quick", "MADE data: eight of the simulated people, for tests", quick_entries)
