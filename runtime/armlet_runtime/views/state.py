"""The state of a live run or a replay as a value, taken whenever a screen is drawn."""

from __future__ import annotations

import msgspec

from ..bundle import CertificateRow


class ClockState(msgspec.Struct, frozen=True):
    """Drift and error bound of a wearable's worst clock. ``bound_ms`` None: not valid yet."""

    drift_ppm: float
    bound_ms: float | None


class WearableState(msgspec.Struct, frozen=True):
    """A wearable. ``rate_hz``: samples a second of all modalities; ``clock`` None: samples are placed by arrival."""

    name: str
    state: str
    problem: str
    rate_hz: float
    lost: int
    malformed: int
    clock: ClockState | None = None
    rssi: int | None = None
    battery: int | None = None


class SignalState(msgspec.Struct, frozen=True):
    """A modality of the model. ``source``: the wearable that it comes from; empty before any wearable brought it."""

    modality: str
    unit: str
    channels: tuple[str, ...]
    rate_hz: float
    source: str
    present: bool
    age_s: float | None
    coverage: float


class Point(msgspec.Struct, frozen=True):
    """A decision on the timeline. ``end_s``: end of its window after the end of the first window."""

    index: int
    end_s: float
    subset: tuple[str, ...]
    label: str | None
    reason: str | None
    score: float | None


class State(msgspec.Struct, frozen=True):
    """The state of a run. ``live`` false: a replay. Times in seconds."""

    bundle: str
    engine: str
    live: bool
    decisions: int
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    newest: Point | None
    latency_s: float | None
    compute_s: float | None
    certified: CertificateRow | None
    certified_on: str
    signals: tuple[SignalState, ...]
    wearables: tuple[WearableState, ...]
    problems: dict[str, str]
