"""The benchmarks as such: what they do where there is no torch, and what a missed goal is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BOARD = (
    "sys.modules['torch'] = None; "
    "sys.argv += ['-p', 'no:timeout', '-p', 'no:xdist', '-p', 'no:asyncio', '--strict-markers']"
)
"""What ``armlet[bench]`` does not bring."""
MEASURED = """
def test_a_figure(benchmark, goal):
    benchmark.pedantic(int)
    goal("a length in m", 3.0, 2.5)
    goal("a time in s", 1.0, 2.0)
    goal("a weight in kg", 9.0, None)
"""


def run_pytest(*arguments: str | Path, before: str = "pass") -> subprocess.CompletedProcess[str]:
    program = f"import sys; {before}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    return subprocess.run([*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_benchmarks_are_collected_on_a_board_without_torch() -> None:
    shown = run_pytest("benchmarks", "--collect-only", "-q", "-rs", before=BOARD)
    assert shown.returncode == 0, shown.stdout[-3000:]
    assert "benchmarks/board/test_decision.py::test_decision[litert]" in shown.stdout
    skipped = [line for line in shown.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(skipped) == 1 and skipped[0].startswith("SKIPPED [3]") and "armlet[train]" in skipped[0], skipped


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--goals",), 1)])
def test_a_missed_goal_fails_only_if_goals_are_asked_for(options: tuple[str, ...], code: int, tmp_path: Path) -> None:
    (tmp_path / "test_measured.py").write_text(MEASURED)
    shown = run_pytest("-p", "benchmarks.conftest", *options, "--rootdir", tmp_path, tmp_path)
    assert shown.returncode == code, shown.stdout
    assert "goal 2.500  MISSED" in shown.stdout and "goal 2.000  met" in shown.stdout
    assert ("a length in m: 3.000, and the goal is at most 2.500" in shown.stdout) == bool(code)
    assert "a weight in kg: 9" not in shown.stdout
