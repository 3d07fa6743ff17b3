"""Benchmarks of a bundle: ``--bundle FILE`` (signed by a trusted key, or by ``--key``), else a small one made here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from armlet_runtime import engines
from armlet_runtime.bundle import Bundle, keys, named_members, open_bundle, trusted_keys, write_bundle
from armlet_runtime.checks import Draft
from armlet_runtime.errors import EngineError
from armlet_runtime.machine import describe
from armlet_runtime.model import BundleModel, programs_of
from tests.support import artefacts

ROUNDS, WARM_UP = 2000, 200


NEEDS_TORCH = ("training", "rivals/test_cbramod.py")
"""What measures training; a board has none of it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bundle", type=Path, help="bundle to measure (default: $ARMLET_BUNDLE, else a small made one)")
    parser.addoption("--key", type=Path, action="append", default=[], help="public key that the bundle is signed with")
    parser.addoption("--goals", action="store_true", help="a benchmark fails that misses a goal")


def pytest_configure(config: pytest.Config) -> None:
    """A board has no pytest-timeout."""
    config.addinivalue_line("markers", "timeout(seconds): of pytest-timeout, where it is installed")


class _NotHere(pytest.Module):
    """A module of benchmarks that cannot even be imported here."""

    def collect(self) -> NoReturn:
        pytest.skip("it needs the training side: pip install 'armlet[train]'", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """On a board, where there is no torch, what needs it is skipped with a reason."""
    here = Path(__file__).parent
    if find_spec("torch") is None and any(module_path.is_relative_to(here / name) for name in NEEDS_TORCH):
        return _NotHere.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measuring takes longer than a test may."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine = describe()
    machine_info["armlet"] = {name: getattr(machine, name) for name in machine.__struct_fields__}


_GOALS = pytest.StashKey[list[str]]()


@pytest.fixture
def goal(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Iterator[Callable[..., None]]:
    """Record a figure beside its goal, which is an upper limit, or None: in ``extra_info``, and in the summary.

    With ``--goals`` a missed goal fails the benchmark, after all its figures are recorded.
    """
    missed: list[str] = []

    def record(what: str, figure: float, limit: float | None, detail: str = "") -> None:
        met = None if limit is None else bool(figure <= limit)
        benchmark.extra_info.setdefault("goals", []).append(
            {"what": what, "figure": round(figure, 4), "goal": limit, "met": met, "detail": detail}
        )
        verdict = "" if limit is None else f"goal {limit:.3f}  {'met' if met else 'MISSED'}"
        line = f"{what:58s} {figure:8.3f}  {verdict:20s} {detail}".rstrip()
        request.config.stash.setdefault(_GOALS, []).append(line)
        if met is False:
            missed.append(f"{what}: {figure:.3f}, and the goal is at most {limit:.3f}")

    yield record
    if missed and request.config.getoption("--goals"):
        pytest.fail("\n".join(missed), pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(_GOALS, [])
    if lines:
        terminalreporter.section("figures and goals")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def small_draft() -> Draft:
    """The draft of the small model of the tests."""
    return Draft(artefacts.small_draft())


@pytest.fixture(scope="session")
def bundle_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """The bundle's file and the public keys to trust (none: those of the home)."""
    named = request.config.getoption("--bundle") or os.environ.get("ARMLET_BUNDLE")
    if named:
        return Path(named), request.config.getoption("--key")
    folder = tmp_path_factory.mktemp("bench")
    draft: Draft = request.getfixturevalue("small_draft")
    key = keys.generate(folder / "signing.key")
    members = {name: draft.read(name) for name in named_members(draft.manifest)}
    write_bundle(folder / "small.armlet", draft.manifest, members, [key])
    return folder / "small.armlet", [folder / "signing.key.pub"]


@pytest.fixture(scope="session")
def bundle(bundle_file: tuple[Path, list[Path]]) -> Bundle:
    path, key_files = bundle_file
    return open_bundle(path, trusted_keys(key_files))


@pytest.fixture(params=engines.NAMES)
def engine_name(request: pytest.FixtureRequest, bundle: Bundle) -> str:
    name = str(request.param)
    reason = engines.available()[name]
    if reason is not None:
        pytest.skip(reason)
    try:
        programs_of(bundle.manifest, name)
    except EngineError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture
def model(bundle: Bundle, engine_name: str) -> BundleModel:
    return BundleModel.from_bundle(bundle, engine_name)


@pytest.fixture
def measure(benchmark: BenchmarkFixture) -> Callable[[Callable[[], object]], None]:
    """Time single calls; p50, p90 and p99 in microseconds go to ``extra_info``."""

    def run(call: Callable[[], object]) -> None:
        # One call a round: a mean over several calls would hide the tail. (The library gives pedantic no types.)
        benchmark.pedantic(call, rounds=ROUNDS, iterations=1, warmup_rounds=WARM_UP)  # type: ignore[no-untyped-call]
        if benchmark.stats is not None:  # None under --benchmark-disable
            times = np.asarray(benchmark.stats.stats.data) * 1e6
            for name, value in zip(("p50_us", "p90_us", "p99_us"), np.percentile(times, (50, 90, 99)), strict=True):
                benchmark.extra_info[name] = round(float(value), 3)

    return run
