"""What the torch-free ExecuTorch and armlet's export are worth: ratios to what ExecuTorch's own way gives."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from armlet_runtime.checks import fresh_start
from armlet_runtime.engines import Program, ShimProgram, TfliteProgram, available, get_engine
from benchmarks.rivals.programs import KINDS, MODALITIES, TOKEN, TOKENS, WINDOW, load_parts, load_plain, manifest
from benchmarks.turns import Call, median, medians_us, ratio

Goal = Callable[..., None]
FRESH_PROCESSES = 5
TAIL_CALLS = 100_000
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def usable() -> None:
    reason = available()["executorch"]
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what ``make_programs.py`` makes: $ARMLET_PROGRAMS if that is set, else made now (a minute)."""
    if "ARMLET_PROGRAMS" in os.environ:
        return Path(os.environ["ARMLET_PROGRAMS"])
    folder = tmp_path_factory.mktemp("programs")
    command = [sys.executable, "-m", "benchmarks.rivals.make_programs", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1])
    assert made.returncode == 0, made.stderr[-2000:]
    return folder


@pytest.fixture
def quiet_core() -> Iterator[None]:
    """Keep this process on the last of its cores, as far as possible from what interrupts the first."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)


def fresh_windows() -> dict[str, Iterator[np.ndarray]]:
    """For each modality windows in turn, since a board never sees the same array twice."""
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((8, *WINDOW)).astype(np.float32) for name in MODALITIES}
    return {name: itertools.cycle(list(windows)) for name, windows in arrays.items()}


def decision(parts: dict[str, Program], windows: dict[str, Iterator[np.ndarray]]) -> Call:
    """Encoders and aggregator as a board runs them: tokens go straight into the aggregator's input."""
    row = np.zeros(TOKENS, np.float32)
    places = {name: {"token": row[:, i * TOKEN : (i + 1) * TOKEN]} for i, name in enumerate(MODALITIES)}

    def decide() -> object:
        for name, arrays in windows.items():
            parts[name]({"window": next(arrays)}, places[name])
        return parts["aggregator"]({"tokens": row})

    return decide


@pytest.mark.benchmark(group="ExecuTorch: memory and cold start")
def test_against_executorchs_own_runtime(
    benchmark: BenchmarkFixture, programs: Path, bundle_file: tuple[Path, list[Path]], tmp_path: Path, goal: Goal
) -> None:
    """Fresh processes in turns, with the same int8 programs; and one that opens and verifies a whole bundle."""
    pytest.importorskip("executorch.runtime", reason="ExecuTorch's own runtime needs torch")
    (tmp_path / "manifest.json").write_text(manifest(programs, "conv"))
    path, key_files = bundle_file
    starts: dict[str, list[dict[str, float]]] = {"armlet": [], "executorch": [], "bundle": []}

    def turn() -> None:
        for whose in ("armlet", "executorch"):
            command = [sys.executable, str(HERE / "bare_process.py"), whose, str(tmp_path / "manifest.json")]
            done = subprocess.run([*command, str(time.monotonic_ns())], capture_output=True, check=True)
            # ExecuTorch may print notes of its own first.
            starts[whose].append(json.loads(done.stdout.splitlines()[-1]))
        starts["bundle"].append(msgspec.structs.asdict(fresh_start(path, key_files, "executorch")))

    benchmark.pedantic(turn, rounds=FRESH_PROCESSES, warmup_rounds=1)  # type: ignore[no-untyped-call]
    for name, what, factor, unit, limit in (
        ("resident_bytes", "resident memory", 1e-6, "MB", 1 / 8),
        ("cold_start_s", "cold start", 1e3, "ms", 1 / 15),
    ):
        figures = {
            whose: statistics.median(start[name] for start in starts[whose][-FRESH_PROCESSES:]) for whose in starts
        }
        mine, other, whole = (figures[whose] * factor for whose in ("armlet", "executorch", "bundle"))
        goal(f"{what}: armlet / executorch.runtime", mine / other, limit, f"{mine:.1f} / {other:.1f} {unit}")
        goal(f"{what}: the same, bundle verified", whole / other, None, f"{whole:.1f} / {other:.1f} {unit}")


@pytest.mark.benchmark(group="ExecuTorch: a decision")
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_plain_way(
    benchmark: BenchmarkFixture, programs: Path, tmp_path: Path, kind: str, goal: Goal
) -> None:
    """Fresh processes in turns: armlet's programs on its engine, and the plain export on ExecuTorch's own runtime."""
    pytest.importorskip("executorch.runtime", reason="ExecuTorch's own runtime needs torch")
    (tmp_path / "manifest.json").write_text(manifest(programs, kind))
    measured: list[dict[str, float]] = []

    def turn() -> None:
        times = {}
        for whose in ("armlet", "plain"):
            command = [sys.executable, str(HERE / "bare_process.py"), whose, str(tmp_path / "manifest.json")]
            done = subprocess.run([*command, str(time.monotonic_ns())], capture_output=True, check=True)
            times[whose] = json.loads(done.stdout.splitlines()[-1])["decision_us"]
        measured.append(times)

    benchmark.pedantic(turn, rounds=FRESH_PROCESSES)  # type: ignore[no-untyped-call]
    figures = f"{median(measured, 'armlet'):.1f} / {median(measured, 'plain'):.1f} us"
    goal(
        f"{kind}, a decision: armlet / plain .pte, executorch.runtime",
        ratio(measured, "armlet", "plain"),
        None,
        figures,
    )


@pytest.mark.benchmark(group="ExecuTorch: int8")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("quiet_core")
def test_int8(benchmark: BenchmarkFixture, programs: Path, kind: str, goal: Goal) -> None:
    windows = fresh_windows()
    row = np.random.default_rng(1).standard_normal(TOKENS).astype(np.float32)
    calls: dict[str, Call] = {}
    for engine, precision in (
        ("executorch", "int8"), ("executorch", "fp32"), ("litert", "int8"), ("litert", "dynamic"),
    ):  # fmt: skip
        parts = load_parts(programs, kind, precision, engine)
        calls[f"{engine} {precision} decision"] = decision(parts, windows)
        for name in MODALITIES:
            calls[f"{engine} {precision} {name}"] = lambda call=parts[name], arrays=windows[name]: call(  # type: ignore[misc]
                {"window": next(arrays)}
            )
        calls[f"{engine} {precision} aggregator"] = lambda call=parts["aggregator"]: call({"tokens": row})  # type: ignore[misc]
    plain = load_plain(programs, kind)
    calls["plain decision"] = lambda: plain({name: next(arrays) for name, arrays in windows.items()})

    measured: list[dict[str, float]] = []
    benchmark.pedantic(lambda: measured.extend(medians_us(calls)), rounds=1)  # type: ignore[no-untyped-call]

    def compare(what: str, one: str, other: str, limit: float | None) -> None:
        figures = f"{median(measured, one):.1f} / {median(measured, other):.1f} us"
        goal(f"{kind}, {what}", ratio(measured, one, other), limit, figures)

    compare("a decision: int8 / fp32 .pte", "executorch int8 decision", "executorch fp32 decision", 0.60)
    for name in MODALITIES:
        compare(f"encoder {name}: int8 / fp32 .pte", f"executorch int8 {name}", f"executorch fp32 {name}", 0.60)
    # Without a goal: half a microsecond of arithmetic in a call of two.
    compare("aggregator: int8 / fp32 .pte", "executorch int8 aggregator", "executorch fp32 aggregator", None)
    compare("a decision: armlet's / plain int8 .pte", "executorch int8 decision", "plain decision", 0.75)
    best = min(("litert int8 decision", "litert dynamic decision"), key=lambda name: median(measured, name))
    compare("a decision: int8 .pte / best int8 .tflite", "executorch int8 decision", best, 1.15)


def bare_execute(program: Any, number: np.ndarray) -> Call:
    """What the engine itself offers to run a program once, past everything of armlet's."""
    if isinstance(program, ShimProgram):
        return lambda: program._call(program._handle, program._inputs.address, program._outputs.address)
    if isinstance(program, TfliteProgram):
        return lambda: program._interpreter.invoke()
    return lambda: program._session.run(program._output_names, {program._input_names[0]: number})


@pytest.mark.benchmark(group="a call of a program")
@pytest.mark.parametrize("engine", ["executorch", "litert", "onnx"])
@pytest.mark.usefixtures("quiet_core")
def test_call_outside_the_engine(benchmark: BenchmarkFixture, programs: Path, engine: str, goal: Goal) -> None:
    """A call less the engine's own execution of it, on a program of one operator on one number."""
    suffix = {"executorch": "pte", "litert": "tflite", "onnx": "onnx"}[engine]
    program = get_engine(engine).load(programs / f"null.{suffix}", {"window": (1, 1)}, {"token": (1, 1)})
    number = np.ones((1, 1), np.float32)
    measured: list[dict[str, float]] = []
    calls: dict[str, Call] = {"call": lambda: program({"window": number}), "execute": bare_execute(program, number)}
    benchmark.pedantic(lambda: measured.extend(medians_us(calls)), rounds=1)  # type: ignore[no-untyped-call]
    outside = statistics.median(window["call"] - window["execute"] for window in measured)
    figures = f"{median(measured, 'call'):.1f} - {median(measured, 'execute'):.1f} us"
    goal(f"{engine}: a call outside the engine's execute, us", outside, 5.0, figures)


@pytest.mark.benchmark(group="tail")
@pytest.mark.usefixtures("quiet_core")
def test_tail(benchmark: BenchmarkFixture, programs: Path, goal: Goal) -> None:
    """p99 / p50 of whole decisions, int8 .pte, one after another."""
    decide = decision(load_parts(programs, "conv", "int8", "executorch"), fresh_windows())
    benchmark.pedantic(decide, rounds=TAIL_CALLS, warmup_rounds=1000)  # type: ignore[no-untyped-call]
    if benchmark.stats is not None:  # None under --benchmark-disable
        p50, p99 = np.percentile(np.asarray(benchmark.stats.stats.data) * 1e6, (50, 99))
        goal(f"p99 / p50 of {TAIL_CALLS} decisions", p99 / p50, 2.0, f"{p99:.1f} / {p50:.1f} us")
