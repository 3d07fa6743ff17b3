"""The bundle on the boards' architecture: Cortex-A72 (Raspberry Pi 4) and A76 (Raspberry Pi 5), emulated.

A Debian arm64 tree (its packages are only unpacked, never run as a system) holds Python; the engines' aarch64 wheels
are put beside it, armlet's part for ExecuTorch is cross-compiled, and QEMU's user mode runs the whole. The engines take
the kernels that they would take on a board: the A72 has no dot-product instructions, the A76 has.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.emulated.cores import CORES, Board, make_board

pytestmark = [
    pytest.mark.full("on what the demo made, which trains for minutes, and on downloads"),
    pytest.mark.long(limit_s=600, reason="every instruction is emulated"),
]

SCRIPT = Path(__file__).parent / "support" / "emulated" / "on_board.py"
DECISIONS = 20


@pytest.fixture(scope="session")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return make_board(tmp_path_factory.mktemp("plugin"))


@pytest.mark.parametrize("engine", ["litert", "executorch"])
def test_int8_outputs_are_the_same_bits_on_aarch64(
    engine: str, board: Board, demo_dir: Path, demo_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, (key,) = demo_dir / "model.armlet", (demo_home / "trusted").glob("*.pub")
    here = subprocess.run(
        [sys.executable, SCRIPT, bundle, key, engine, tmp_path / "here.npz", "0"], capture_output=True, text=True
    )
    assert here.returncode == 0, here.stderr
    counts: dict[str, int] = {}
    for core in CORES:
        done = board.run(core, SCRIPT, bundle, key, engine, tmp_path / f"{core}.npz", str(DECISIONS))
        assert done.returncode == 0, f"{core}: {done.stderr[-2000:]}"
        with np.load(tmp_path / "here.npz") as wanted, np.load(tmp_path / f"{core}.npz") as got:
            assert set(got.files) == set(wanted.files)
            for name in set(wanted.files) - {"detail"}:
                np.testing.assert_array_equal(got[name], wanted[name], err_msg=f"{name} on {core}")
            assert len(np.unique(wanted["logits"])) > 1
            assert str(got["detail"]) == str(wanted["detail"])
        if board.plugin:
            first, last = map(int, re.findall(r"instructions (\d+)", done.stderr))
            counts[core] = round((last - first) / DECISIONS)
    told = json.dumps(counts) if counts else f"not available: {board.no_plugin}"
    with capsys.disabled():
        print(f"\ninstructions a decision, {engine}: {told}")
    if counts:
        # With dot-product instructions an int8 layer takes a fraction of them, so both sets of kernels were run.
        assert 100_000 < counts["cortex-a76"] < counts["cortex-a72"]
