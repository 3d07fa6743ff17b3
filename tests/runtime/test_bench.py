"""``armlet bench`` and the benchmark suites: that they measure what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from armlet_runtime.checks.bench import BenchReport, cases, fresh_start, measure_engines
from armlet_runtime.errors import EngineError, UsageError
from armlet_runtime.install import check_command
from armlet_runtime.machine import describe, peak_resident_bytes, resident_bytes
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.golden_run import golden_windows, physical_windows

ENGINES = ["litert", "executorch", "onnx"]
PARTS = ["encoder acc", "encoder gyro", "aggregator", "decision"]


@pytest.fixture(scope="module")
def report(small_bundle: Any) -> BenchReport:
    """By this thread's processor time, so that the times of parts compare however busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter_ns", time.thread_time_ns)
        return measure_engines(small_bundle.path, [small_bundle.public_key_path], seconds=1.0)


def test_every_engine_and_part_is_measured(report: BenchReport) -> None:
    assert [figures.engine for figures in report.engines] == ENGINES
    assert report.skipped == {}
    for figures in report.engines:
        assert list(figures.timings) == PARTS
        for timing in figures.timings.values():
            assert timing.calls >= 20
            assert 0.5 < timing.p50_us <= timing.p90_us <= timing.p99_us < 1e6
    assert len({timing.calls for figures in report.engines for timing in figures.timings.values()}) == 1


def test_a_decision_takes_longer_than_its_parts_one_by_one(report: BenchReport) -> None:
    for figures in report.engines:
        p50 = {part: timing.p50_us for part, timing in figures.timings.items()}
        assert p50["decision"] > max(p50[part] for part in PARTS[:-1])


def test_ratios_are_to_the_first_engine(report: BenchReport) -> None:
    first, *others = report.engines
    assert set(first.ratios.values()) == {1.0}
    for figures in others:
        for part in PARTS:
            expected = figures.timings[part].p50_us / first.timings[part].p50_us
            assert figures.ratios[part] == pytest.approx(expected, abs=1e-3)


def test_fresh_processes_tell_memory_and_cold_start(report: BenchReport) -> None:
    for figures in report.engines:
        fresh = figures.fresh
        assert 0.02 < fresh.cold_start_s < 60
        assert 10e6 < fresh.before_engine_bytes < fresh.resident_bytes <= fresh.peak_bytes * 1.02 < 400e6


def test_the_report_names_machine_versions_and_model(report: BenchReport, small_bundle: Any) -> None:
    assert report.machine == describe()
    assert report.machine.cores >= 1 and report.machine.cpu
    assert report.versions["numpy"] == np.__version__
    assert report.model == "small 1"
    assert report.digest == small_bundle.open().digest


def test_what_is_measured_is_the_real_decision(small_bundle: Any) -> None:
    bundle = small_bundle.open()
    model = BundleModel.from_bundle(bundle, "litert")
    parts = cases(bundle, model)
    windows = physical_windows(bundle.manifest, bundle.read)
    decided = parts["decision"](2)
    assert isinstance(decided, tuple)
    logits, _ = decided
    np.testing.assert_array_equal(logits, model.predict({name: array[2] for name, array in windows.items()})[0])
    golden = golden_windows(bundle.manifest, bundle.read)
    for name, array in windows.items():
        again = bundle.manifest.normalisation[name].apply(array)
        np.testing.assert_allclose(again, golden[name], atol=1e-5)


def test_engines_can_be_chosen_and_errors_are_sentences(small_bundle: Any) -> None:
    key = [small_bundle.public_key_path]
    chosen = measure_engines(small_bundle.path, key, ["onnx", "onnx"], seconds=0.1)
    assert [figures.engine for figures in chosen.engines] == ["onnx"]
    with pytest.raises(EngineError, match="no engine 'tensorrt'"):
        measure_engines(small_bundle.path, key, ["tensorrt"])
    with pytest.raises(UsageError, match="must be positive"):
        measure_engines(small_bundle.path, key, seconds=0)
    with pytest.raises(UsageError, match="finite"):
        measure_engines(small_bundle.path, key, seconds=float("inf"))
    with pytest.raises(EngineError, match=r"a fresh process with litert failed: .*cannot read the bundle"):
        fresh_start(Path("nothing.armlet"), key, "litert")


def test_resident_memory_follows_what_is_held() -> None:
    before = resident_bytes()
    held = np.ones(64 << 20, np.uint8)
    assert 60e6 < resident_bytes() - before < 80e6
    assert peak_resident_bytes() >= resident_bytes()
    del held
    assert resident_bytes() - before < 20e6
    assert peak_resident_bytes() > before + 50e6


def test_the_command_prints_and_writes(small_bundle: Any, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "armlet_runtime", "bench", str(small_bundle.path), "--key",
         str(small_bundle.public_key_path), "--seconds", "0.5", "--engine", "litert", "--json", str(out)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("p50 us", "p99 us", "cold start s", "resident MiB", describe().cpu.split()[0]):
        assert word in done.stdout
    written = msgspec.json.decode(out.read_bytes(), type=BenchReport)
    assert [figures.engine for figures in written.engines] == ["litert"]


def test_the_benchmark_suites_run(small_bundle: Any, tmp_path: Path) -> None:
    """Those of a bundle, on one engine, with the percentiles in the JSON."""
    root = Path(__file__).parents[2]
    out = tmp_path / "benchmarks.json"
    # pytest-benchmark disables itself where these variables name a worker of xdist; the child is not a worker.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", "-q", "-k", "onnx and not outside",
         "--bundle", str(small_bundle.path), "--key", str(small_bundle.public_key_path), "--benchmark-json", str(out),
         "-p", "no:cacheprovider"],
        capture_output=True, text=True, timeout=180, cwd=root, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    found = {b["name"]: b["extra_info"] for b in json.loads(out.read_text())["benchmarks"]}
    assert set(found) == {
        f"test_{name}[onnx]" for name in ("call", "load", "encoders", "aggregator", "decision", "fresh_process")
    }
    for name in ("call", "encoders", "aggregator", "decision"):
        info = found[f"test_{name}[onnx]"]
        assert 0 < info["p50_us"] <= info["p90_us"] <= info["p99_us"]
    assert found["test_fresh_process[onnx]"]["cold_start_s"] > 0


def test_a_check_that_there_is_not_is_an_error_in_one_sentence() -> None:
    done = subprocess.run(check_command("warm_start"), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "armlet: 'warm_start' is not a check; the checks are cold_start, deploy_check, export_proof, trial_run\n"
    )


def test_the_cold_start_imports_no_other_check_and_no_wing_above_the_model(small_bundle: Any) -> None:
    arguments = [str(small_bundle.path), "onnx", "0", str(small_bundle.public_key_path)]
    code = (
        "import runpy, sys\n"
        "try: runpy.run_module('armlet_runtime.checks', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(*sorted(name for name in sys.modules if name.startswith('armlet_runtime.')))\n"
        "print('argparse' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "cold_start", *arguments], capture_output=True, text=True)
    _, modules, argparse = done.stdout.splitlines()
    wings = {name.split(".")[1] for name in modules.split()}
    assert not wings & {"install", "live", "views", "commands", "bluetooth", "formats", "cli"}
    assert {name for name in modules.split() if name.startswith("armlet_runtime.checks.")} == {
        "armlet_runtime.checks.cold_start"
    }
    assert argparse == "False"
