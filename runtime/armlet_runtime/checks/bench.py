"""The benchmark of a bundle's model on this machine: latency, memory and cold start of each engine.

Latencies of all engines are measured in turns in the same process, so that other load on the machine affects them
equally and their ratios hold. Memory and cold start are measured in fresh processes
(:mod:`armlet_runtime.checks.cold_start`), several for each engine.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np

from .. import engines
from ..bundle import AGGREGATOR, Bundle, open_bundle, step_of, trusted_keys
from ..errors import EngineError, UsageError
from ..install import check_command, reason_of
from ..machine import Machine, describe
from ..model import BundleModel, choose_engine, golden_windows, physical_windows
from .cold_start import FreshStart

BLOCK = 20
"""Calls in a turn: few enough that turns are shorter than disturbances, many enough that programs stay in the caches
as within a decision."""
WARM_UP = 200
"""Calls before the measurement."""
FRESH_STARTS = 5
"""Fresh processes for each engine; the median is reported."""
DECISION = "decision"


class Timing(msgspec.Struct, frozen=True):
    """Times of single calls, in microseconds."""

    calls: int
    p50_us: float
    p90_us: float
    p99_us: float


class EngineFigures(msgspec.Struct, frozen=True):
    """One engine on this machine.

    Attributes:
        engine: Engine name, with its ``version`` and ``detail``.
        timings: ``encoder MODALITY`` (normalisation and encoder), ``step MODALITY`` (the same a hop later, where the
            encoder is incremental), ``aggregator``, and ``decision`` (all encoders and the aggregator) to their times.
        ratios: The same to the p50 divided by that of the first engine of the report.
        fresh: Medians over fresh processes.
    """

    engine: str
    version: str
    detail: str
    timings: dict[str, Timing]
    ratios: dict[str, float]
    fresh: FreshStart


class BenchReport(msgspec.Struct, frozen=True):
    """All figures, with what they depend on."""

    machine: Machine
    load_average: tuple[float, float, float]
    """Load of the machine at the begin of the measurement (1, 5, 15 minutes)."""
    versions: dict[str, str]
    model: str
    digest: str
    seconds: float
    engines: list[EngineFigures]
    skipped: dict[str, str]
    """Engines of the bundle that cannot be used here, and why."""


def engines_to_measure(bundle: Bundle, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The engines to measure, and those left out with the reason; all engines of the bundle if ``names`` is empty.

    Raises:
        EngineError: None of the bundle's engines can be used here.
    """
    if names:
        return list(dict.fromkeys(names)), {}
    choose_engine(bundle.manifest)
    reasons = engines.available()
    skipped = {name: reason for name in bundle.manifest.engines if (reason := reasons.get(name, "unknown here"))}
    return [name for name in bundle.manifest.engines if name not in skipped], skipped


def measure_engines(
    path: Path,
    key_files: Sequence[Path] = (),
    engine_names: Sequence[str] = (),
    seconds: float = 10.0,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Measure a bundle on this machine.

    Args:
        path: The bundle's file.
        key_files: Trusted keys; empty for those of the home.
        engine_names: Engines to measure; empty for all engines of the bundle that can be used here.
        seconds: Time for the latencies of all engines together; fresh processes take additional time.
        progress: Called with a few words at each step.

    Raises:
        ArmletError: The bundle or a named engine cannot be used, or a fresh process failed.
    """
    if not 0 < seconds < math.inf:
        raise UsageError(f"the time to measure must be positive and finite, not {seconds:g} s")
    bundle = open_bundle(path, trusted_keys(key_files))
    names, skipped = engines_to_measure(bundle, engine_names)
    load = os.getloadavg()
    models = {name: BundleModel.from_bundle(bundle, name) for name in names}
    progress(f"latency of {', '.join(names)}, {seconds:g} s")
    timings = _latencies(bundle, models, seconds)
    figures = []
    for name, model in models.items():
        progress(f"{FRESH_STARTS} fresh processes with {name}")
        starts = [fresh_start(path, key_files, name) for _ in range(FRESH_STARTS)]
        figures.append(
            EngineFigures(
                engine=name,
                version=model.engine.version,
                detail=model.engine.detail,
                timings=timings[name],
                ratios={
                    case: round(timing.p50_us / timings[names[0]][case].p50_us, 3)
                    for case, timing in timings[name].items()
                },
                fresh=FreshStart(*map(statistics.median_low, zip(*map(msgspec.structs.astuple, starts), strict=True))),
            )
        )
    return BenchReport(
        machine=describe(),
        load_average=load,
        versions={"armlet": version("armlet"), "numpy": np.__version__},
        model=f"{bundle.manifest.name} {bundle.manifest.version}",
        digest=bundle.digest,
        seconds=seconds,
        engines=figures,
        skipped=skipped,
    )


def cases(bundle: Bundle, model: BundleModel) -> dict[str, Callable[[int], object]]:
    """The measured calls by name, which take the index of a golden window; see :class:`EngineFigures`."""
    windows = physical_windows(bundle.manifest, bundle.read)
    tokens = {name: [model.encode(name, window) for window in windows[name]] for name in windows}

    def encoder(name: str) -> Callable[[int], object]:
        return lambda i: model.encode(name, windows[name][i])

    def step(name: str) -> Callable[[int], object]:
        hop, signal = model.steps[name].hop, np.concatenate(list(windows[name]), axis=1)
        starts = np.arange(len(windows[name])) * windows[name].shape[2] + hop
        within = np.arange(windows[name].shape[2])
        later = [signal.take(start + within, axis=1, mode="wrap") for start in starts]
        carried = [model.encode_next(name, window, None)[1] for window in windows[name]]
        return lambda i: model.encode_next(name, later[i], carried[i])

    return {
        **{f"encoder {name}": encoder(name) for name in windows},
        **{step_of(name): step(name) for name in model.steps},
        AGGREGATOR: lambda i: model.aggregate({name: tokens[name][i] for name in windows}),
        DECISION: lambda i: model.predict({name: windows[name][i] for name in windows}),
    }


def _latencies(bundle: Bundle, models: dict[str, BundleModel], seconds: float) -> dict[str, dict[str, Timing]]:
    turns = [(name, case, call) for name, model in models.items() for case, call in cases(bundle, model).items()]
    durations_ns: dict[tuple[str, str], list[int]] = {(name, case): [] for name, case, _ in turns}
    count = len(next(iter(golden_windows(bundle.manifest, bundle.read).values())))
    for _, _, call in turns:
        for i in range(WARM_UP):
            call(i % count)
    clock = time.perf_counter_ns
    end = clock() + int(seconds * 1e9)
    while True:
        for name, case, call in turns:
            times = durations_ns[name, case]
            for i in range(BLOCK):
                start = clock()
                call(i % count)
                times.append(clock() - start)
        if clock() >= end:
            break
    result: dict[str, dict[str, Timing]] = {name: {} for name in models}
    for (name, case), times in durations_ns.items():
        p50, p90, p99 = (round(float(value) / 1000, 3) for value in np.percentile(times, (50, 90, 99)))
        result[name][case] = Timing(len(times), p50, p90, p99)
    return result


def fresh_start(path: Path, key_files: Sequence[Path], engine: str) -> FreshStart:
    """Start a process that decides; its figures.

    Raises:
        EngineError: The process failed; the message ends with its own error.
    """
    # All processes share the monotonic clock, so that the new process can measure the time since its start.
    command = check_command("cold_start", path, engine, str(time.monotonic_ns()), *key_files)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineError(f"a fresh process with {engine} failed: {reason_of(done)}")
    return msgspec.json.decode(done.stdout, type=FreshStart)
