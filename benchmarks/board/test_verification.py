"""Verifying a bundle: time a MiB, beside bare SHA-256 over the same file, and the memory that it takes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from armlet_runtime.bundle import keys, named_members, write_bundle
from armlet_runtime.checks import Draft

MIB = 1 << 20
SIZES = (1, 16, 256)
"""MiB of bundle: what verification needs must not grow with them."""
PROCESSES = 5

# Peaks are of the process's whole life, so that nothing may have been larger before. Time is the processor's: reading
# waits for no disk here, and other processes on the machine do not count.
VERIFY = """
import hashlib, json, re, sys, time
from pathlib import Path
from armlet_runtime.bundle.container import open_bundle
from armlet_runtime.files import chunks
from armlet_runtime.bundle.trust import trusted_keys

path, trust = Path(sys.argv[1]), trusted_keys([Path(sys.argv[2])])
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before, began = peak(), time.process_time()
open_bundle(path, trust)
took, after = time.process_time() - began, peak()
began = time.process_time()
bare = hashlib.sha256()
for chunk in chunks(path):
    bare.update(chunk)
bare_s = time.process_time() - began
print(json.dumps({"verify_s": took, "sha256_s": bare_s, "added_mb": after - before, "peak_mb": after}))
"""


@pytest.fixture(scope="module")
def large(small_draft: Draft, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Path]]:
    """Bundles of so many MiB in one member, with the public key that signed them."""
    folder = tmp_path_factory.mktemp("large")
    key = keys.generate(folder / "signing.key")

    def make(mib: int) -> tuple[Path, Path]:
        path = folder / f"{mib}.armlet"
        members = {name: small_draft.read(name) for name in named_members(small_draft.manifest)}
        members[small_draft.manifest.sbom] = np.random.default_rng(mib).bytes(mib * MIB)
        write_bundle(path, small_draft.manifest, members, [key])
        return path, folder / "signing.key.pub"

    return make


@pytest.mark.benchmark(group="verification")
@pytest.mark.parametrize("mib", SIZES)
def test_verification(
    large: Callable[[int], tuple[Path, Path]], benchmark: BenchmarkFixture, goal: Callable[..., None], mib: int
) -> None:
    path, key = large(mib)
    command = [sys.executable, "-c", VERIFY, str(path), str(key)]

    def once() -> dict[str, float]:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        measured: dict[str, float] = json.loads(done.stdout)
        return measured

    once()  # the file is in the page cache from now on
    measured = [once() for _ in range(PROCESSES)]
    benchmark.pedantic(once, rounds=1)  # type: ignore[no-untyped-call]
    median = {name: statistics.median(turn[name] for turn in measured) for name in measured[0]}
    # A process that verifies its first bundle works out how manifests are read, once; a MiB does not show the slope.
    goal(f"verification of {mib} MiB: ms a MiB", median["verify_s"] * 1e3 / mib, 2.0 if mib > 1 else None)
    goal(f"verification of {mib} MiB: times bare SHA-256", median["verify_s"] / median["sha256_s"], None)
    goal(f"verification of {mib} MiB: MB that it adds", median["added_mb"], 25.0, f"process {median['peak_mb']:.0f} MB")
