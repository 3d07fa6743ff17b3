"""What the tests themselves stand on: artefacts are made once, made links do not meet."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import artefacts
from tests.support.bad_link import BadLink


def _make_slowly(folder: Path) -> None:
    """In a process of its own; what it makes takes long enough that the others wait for it."""

    def make(target: Path) -> None:
        with (folder / "makers").open("a") as makers:
            makers.write("x")
        for number in range(200):
            (target / str(number)).write_text("whole")

    made = artefacts.made("thing", "0123abcd", make, folder)
    assert len(list(made.iterdir())) == 200


def test_an_artefact_is_made_once_by_processes_that_want_it_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_make_slowly, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "makers").read_text() == "x"


def test_an_artefact_that_failed_is_not_there(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        (target / "half").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        artefacts.made("thing", "0123abcd", fail, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]
    made = artefacts.made("thing", "0123abcd", lambda target: None, tmp_path)
    assert made.is_dir() and not list(made.iterdir())


def test_an_artefact_that_no_run_asks_for_goes_in_the_end(tmp_path: Path) -> None:
    kept = [artefacts.made(name, f"0000000{n}", lambda target: None, tmp_path) for n, name in enumerate("aab")]
    for folder in kept[1:]:
        os.utime(folder, (0, 0))
    new = artefacts.made("a", "00000009", lambda target: None, tmp_path)
    assert sorted(path for path in tmp_path.iterdir() if path.is_dir()) == sorted([kept[0], kept[2], new])


def test_a_digest_is_of_contents() -> None:
    house, support = Path(__file__), artefacts.ROOT / "tests" / "support"
    assert artefacts.digest(house) == artefacts.digest(house)
    assert len({artefacts.digest(house), artefacts.digest(support), artefacts.digest(house, more="x")}) == 3


def test_two_made_links_have_names_and_addresses_of_their_own() -> None:
    one, other = BadLink(), BadLink()
    assert one.namespace != other.namespace and one.address != other.address


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--no-skips",), 1)])
def test_who_asks_for_tests_by_name_hears_what_they_lack(options: tuple[str, ...], code: int, tmp_path: Path) -> None:
    (tmp_path / "test_skipped.py").write_text(
        "import pytest\ndef test_it():\n    pytest.skip('kmod is not installed')\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.conftest"]
    shown = subprocess.run(
        [*command, *options, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=artefacts.ROOT,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == code, shown.stdout + shown.stderr
    assert ("not done here: kmod is not installed" in shown.stdout) == bool(code)
