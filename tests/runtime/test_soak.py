"""Short runs of the soak and of the link losses of ``benchmarks/endurance``; a person runs the long ones by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_bundle import SmallBundle

pytestmark = [
    pytest.mark.full("minutes of a live run"),
    pytest.mark.long(limit_s=300, reason="minutes of a live run"),
]

ROOT = Path(__file__).parents[2]


def figures(module: str, small_bundle: SmallBundle, out: Path, *arguments: str) -> dict[str, Any]:
    bundle = ("--bundle", small_bundle.path, "--key", small_bundle.public_key_path, "--json", out)
    done = subprocess.run([sys.executable, "-m", module, *bundle, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_four_wearables_and_every_kind_of_fault(small_bundle: SmallBundle, tmp_path: Path) -> None:
    got = figures("benchmarks.endurance.soak", small_bundle, tmp_path / "s.json", "--minutes", "3", "--faults", "10000")
    assert got["all_counted"] and got["windows_wrong"] == 0 and got["windows_checked"] > 1000
    assert set(got["by_kind"]) >= {"lost", "doubled", "reordered", "truncated", "oversized", "restarted", "unplugged"}
    assert got["faults"] > 3000 and got["missed"] == got["dropped_packets"] == 0
    assert got["longest_silence_hops"] <= 2


@pytest.mark.alone("its clock is twice as fast, and two processes must keep up with it")
def test_the_runtime_in_its_own_process_loses_nothing(small_bundle: SmallBundle, tmp_path: Path) -> None:
    arguments = ("--apart", "--minutes", "1", "--speed", "2", "--faults", "500")
    got = figures("benchmarks.endurance.soak", small_bundle, tmp_path / "s.json", *arguments)
    assert got["windows_wrong"] == 0 and got["windows_checked"] > 300 and got["faults"] > 100


def test_lost_links_are_recovered_in_time(small_bundle: SmallBundle, tmp_path: Path) -> None:
    got = figures("benchmarks.endurance.link_losses", small_bundle, tmp_path / "l.json", "--losses", "10")
    assert got["recovered"] == got["links"] == 10 and got["missed"] == 0
    # Idle time is skipped and only this process's own time counts, so these do not hang on how busy the machine is.
    assert 0 < got["masked_after_limit_s"]["max"] <= got["hop_s"] + 0.05
    assert 0 < got["whole_after_link_s"]["max"] <= 2.0
