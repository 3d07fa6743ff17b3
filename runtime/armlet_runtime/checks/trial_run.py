"""A trial run of a bundle on probation: the live loop decides on the bundle's golden windows.

``python -m armlet_runtime.checks trial_run file:SLOT`` runs in a process of its own, because a program may crash its
process. A slot's probation starts it where no runtime is at work, or no wearable is in reach.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from ..bundle import open_bundle, trusted_keys
from ..install import DECISIONS, TRIAL_RUN, Report, bound_s
from .bundle_arguments import read_arguments


def decide_on_golden_windows(path: Path, keys: Sequence[Path] = ()) -> Report:
    """Let the live loop decide on a bundle's golden windows, as fast as this machine can.

    The samples have simulated times, to which the time of each decision on this machine is added.

    Raises:
        BundleError: The bundle cannot be trusted or used.
        EngineError: The engine failed.
    """
    from ..live import NOT_A_NUMBER, LiveCore
    from ..model import BundleModel, physical_windows

    bundle = open_bundle(path, trusted_keys(keys))
    manifest = bundle.manifest
    model = BundleModel.from_bundle(bundle)
    windows = physical_windows(manifest, bundle.read)
    signals = {name: np.concatenate(list(parts), axis=1).T for name, parts in windows.items()}
    at_ns, fed_at = 1_000_000_000, time.perf_counter_ns()
    core = LiveCore(model, lambda: at_ns + time.perf_counter_ns() - fed_at)
    report = Report(bundle.digest)
    step_ns = round(manifest.window.hop_s * 1e9 / 4)
    end_ns = at_ns + round((manifest.window.length_s + (DECISIONS + 1) * manifest.window.hop_s) * 1e9)
    sent = dict.fromkeys(signals, 0)
    while report.decisions < DECISIONS and at_ns < end_ns:
        at_ns, fed_at = at_ns + step_ns, time.perf_counter_ns()
        for modality in manifest.modalities:
            first, last = sent[modality.name], int((at_ns - 1_000_000_000) / 1e9 * modality.rate_hz)
            wave = signals[modality.name]
            if last == first or not len(wave):
                continue
            sent[modality.name] = last
            times = 1_000_000_000 + (np.arange(first + 1, last + 1) * 1e9 / modality.rate_hz).astype(np.int64)
            values = wave[np.arange(first, last) % len(wave)]
            for decision in core.samples(at_ns, modality, times, values):
                if decision.reason == NOT_A_NUMBER:
                    return msgspec.structs.replace(report, failed="its scores on a golden signal are no numbers")
                report = msgspec.structs.replace(
                    report,
                    decisions=report.decisions + (decision.label is not None),
                    latency_s=max(report.latency_s, decision.latency_s or 0.0),
                )
    if report.decisions < DECISIONS:
        return msgspec.structs.replace(report, failed=f"it made {report.decisions} of {DECISIONS} decisions")
    if report.latency_s > bound_s(manifest):
        why = f"a decision took {report.latency_s * 1e3:.0f} ms, and {bound_s(manifest) * 1e3:.0f} ms are allowed"
        return msgspec.structs.replace(report, failed=why)
    return report


def main(arguments: Sequence[str]) -> int:
    """Print one sentence about the decisions; 0 if they passed, else 1.

    Raises:
        ArmletError: As :func:`decide_on_golden_windows`.
    """
    report = decide_on_golden_windows(*read_arguments(TRIAL_RUN, arguments))
    if report.failed:
        print(report.failed, file=sys.stderr)
        return 1
    print(f"{report.decisions} decisions on golden windows, the slowest after {report.latency_s * 1e3:.0f} ms")
    return 0
