"""Every command of the README and of the pages that continue it, run as it stands there on what the demo made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "export/README.md", "runtime/README.md")
"""In the order in which their commands are run: each continues those before it."""

COMMANDS = [
    line
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for line in block.splitlines()
]

# 'make test' is what runs this, 'make demo' is the fixture in its quick form, and the benchmarks have their own test.
ELSEWHERE = {"make demo", "make test", "make bench"}


def test_readme_has_commands() -> None:
    assert set(COMMANDS) >= ELSEWHERE
    assert sum(command.startswith("armlet ") for command in COMMANDS) > 15


@pytest.mark.full("trains, exports and runs for minutes")
@pytest.mark.long(limit_s=600, reason="every command of the README, one after the other")
def test_every_command_of_the_readme(demo_dir: Path, tmp_path: Path) -> None:
    assert (demo_dir / "report.html").exists()
    # The README trains with the full recipe, which takes too long here: the same commands with a short one.
    commands = [re.sub(r"^armlet (pretrain|finetune) hapt ", r"armlet \1 hapt-tiny ", command) for command in COMMANDS]
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    # `armlet` on the path is the one of this environment.
    (bin_folder / "armlet").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m armlet_runtime "$@"\n')
    (bin_folder / "armlet").chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "ARMLET_HOME": str(tmp_path / "home"), "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    background: list[subprocess.Popen[str]] = []
    for command in commands:
        if command in ELSEWHERE:
            continue
        if command.endswith(" &"):
            started = subprocess.Popen(
                command.removesuffix(" &"), shell=True, cwd=work, env=environment, text=True, stdout=subprocess.PIPE
            )
            assert started.stdout is not None
            assert "on the air" in started.stdout.readline()
            background.append(started)
            continue
        done = subprocess.run(
            command, shell=True, cwd=work, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    for process in background:
        process.terminate()
        process.wait(30)

    decisions = (work / "live.jsonl").read_text().splitlines()
    assert len(decisions) > 40
    assert any('"subset":["acc"]' in line for line in decisions)
    assert len((work / "replay.jsonl").read_text().splitlines()) == len(decisions)
    shutil.rmtree(work)


LINKED = sorted({*PAGES, *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.md")), "train/README.md"})


@pytest.mark.parametrize("page", LINKED)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
