"""The runtime on real BlueZ: ``guest.py`` in a user-mode Linux with Bluetooth and ``bluetoothd``."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Recording, Stream
from armlet_runtime.signals.recording_writer import write_recording
from tests.support.small_bundle import SmallBundle

from . import kernel

pytestmark = [
    pytest.mark.full("builds and boots a kernel"),
    pytest.mark.long(limit_s=2400, reason="runs many tests in a machine of its own"),
    pytest.mark.skipif(
        bool(kernel.missing()), reason=f"needs the Debian packages {', '.join(kernel.missing())}: apt-get install them"
    ),
]

GUEST = Path(__file__).with_name("guest.py")


@pytest.fixture(scope="module")
def linux() -> Path:
    try:
        built = kernel.build()
    except subprocess.CalledProcessError as error:
        raise AssertionError(f"{error.cmd[0]}: {error.stderr[-2000:]}") from error
    if refusal := kernel.refusal(built):
        pytest.skip(f"this machine lets no user-mode Linux run ({refusal})")
    return built


def test_on_real_bluez(linux: Path, small_bundle: SmallBundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    times = (np.arange(50 * 60) * 20_000_000).astype(np.int64)
    streams = {
        name: Stream(
            Modality(name, ("x", "y", "z"), unit, 50.0), times, rng.normal(size=(len(times), 3)).astype(np.float32)
        )
        for name, unit in (("acc", "g"), ("gyro", "rad/s"))
    }
    beats = times[::50]
    streams["hr"] = Stream(Modality("hr", ("bpm",), "bpm", 1.0), beats, np.full((len(beats), 1), 72, np.float32))
    write_recording(tmp_path / "played.mcap", Recording("played", "nobody", streams=streams))
    status, said = kernel.boot(
        linux,
        GUEST,
        900,
        os.environ.get("CLOCK", "virtual"),
        ARMLET_BUNDLE=str(small_bundle.path),
        ARMLET_PLAYED=str(tmp_path / "played.mcap"),
    )
    print(said)
    assert status == 0, said[-6000:]
    passed = sum(map(int, re.findall(r"(\d+) passed", said)))
    tests = re.findall(r"^(?:async )?def test_", GUEST.read_text(), re.MULTILINE)
    assert passed == len(tests)
