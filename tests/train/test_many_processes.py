"""Many processes train as one, and end together when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.full("starts and kills whole trainings"),
    pytest.mark.long(limit_s=300, reason="starts whole trainings"),
]

ROOT = Path(__file__).parents[2]
PROGRAM = ("-m", "tests.support.made_training")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    for name, launch in (("one", [sys.executable]), ("two", TORCHRUN)):
        (tmp_path / name).mkdir()
        command = [*launch, *PROGRAM, "compare", str(tmp_path / name / "weights.pt")]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    one, two = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["refusal"] == "" and "25 windows cannot be shared by 2 processes" in two["refusal"]
    assert one["steps"] == two["steps"] >= 18
    for training in ("pretrained", "tuned"):
        for name, value in one[training].items():
            torch.testing.assert_close(two[training][name], value, rtol=0, atol=1e-5, msg=f"{training} {name}")
    # The first process alone wrote: as many checkpoints as one process writes.
    counts = [len(list((tmp_path / name).glob("*/*.pt"))) for name in ("one", "two")]
    assert counts[0] == counts[1] > 0


def test_all_end_when_one_dies(tmp_path: Path) -> None:
    command = [*TORCHRUN, *PROGRAM, "endless", str(tmp_path)]
    training = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        marks = [tmp_path / "rank0", tmp_path / "rank1"]
        give_up = time.monotonic() + 120
        while not all(mark.exists() and mark.read_text() for mark in marks):
            assert training.poll() is None and time.monotonic() < give_up
            time.sleep(0.05)
        first, second = (int(mark.read_text()) for mark in marks)
        os.kill(second, signal.SIGKILL)
        _, said = training.communicate(timeout=120)
    finally:
        training.kill()
    assert training.returncode != 0
    assert "Signal 9 (SIGKILL)" in said
    assert not Path(f"/proc/{first}").exists()
