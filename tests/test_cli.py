"""The command line as a whole: every command explains itself, and mistakes are one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from armlet_runtime.cli import ORDER, main


def armlet(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "armlet_runtime", *arguments], capture_output=True, text=True, cwd=cwd, timeout=60
    )


def test_help_lists_every_command() -> None:
    shown = armlet("--help")
    assert shown.returncode == 0
    for name in ORDER:
        assert re.search(rf"^    {name}\b", shown.stdout, re.MULTILINE), name


@pytest.mark.parametrize("name", ORDER)
def test_every_command_shows_an_example(name: str) -> None:
    shown = armlet(name, "--help")
    assert shown.returncode == 0
    assert f"\n  armlet {name}" in shown.stdout


def test_help_is_quick_and_pulls_no_torch() -> None:
    code = "import sys; from armlet_runtime.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    asked = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert asked.stdout.strip().endswith("False")


def test_unknown_command_is_refused_with_the_known_ones() -> None:
    refused = armlet("flash")
    assert refused.returncode == 2
    assert "deploy" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_result_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    refused = armlet("bench", "missing.armlet", "--json", "nowhere/result.json", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "armlet: --json nowhere/result.json: there is no folder nowhere\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "missing.armlet"),
        ("verify", "missing.armlet"),
        ("deploy", "missing.armlet", "file:slot"),
        ("replay", "missing.mcap", "missing.armlet"),
        ("evaluate", "missing"),
        ("export", "missing", "--out", "x.armlet"),
        ("finetune", "hapt", "--from", "missing", "--out", "x"),
        ("pretrain", "no-such-recipe", "--out", "x"),
    ],
)
def test_missing_input_is_one_sentence(arguments: tuple[str, ...], tmp_path: Path) -> None:
    refused = armlet(*arguments, cwd=tmp_path)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert refused.stderr.startswith("armlet: ")
    assert "Traceback" not in refused.stderr
    assert "missing" in refused.stderr or "no-such-recipe" in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("duration", ["nan", "inf", "-1", "soon"])
@pytest.mark.parametrize("command", ["run", "record"])
def test_a_duration_is_a_number_of_seconds(command: str, duration: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([command, "x", "--duration", duration])
    assert f"'{duration}' is not a number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "file:taken/slot"),
        ("deploy", "taken", "file:taken"),
        ("evaluate", "taken"),
        ("export", "taken", "--out", "x.armlet"),
        ("finetune", "hapt-tiny", "--from", "taken", "--out", "x"),
        ("demo", "--out", "taken"),
    ],
)
def test_a_file_where_a_folder_should_be_is_one_sentence(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"neither a bundle nor a folder")
    refused = armlet(*arguments, cwd=tmp_path)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr
    assert "taken" in refused.stderr.splitlines()[-1]


def test_an_installation_that_is_older_than_its_files_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = EntryPoint("run", "armlet_runtime.commands.moved_away", "armlet.commands")
    monkeypatch.setattr("armlet_runtime.cli.entry_points", lambda group: [moved])
    assert main(["run"]) == 2
    assert "registered as armlet_runtime.commands.moved_away, which does not exist" in capsys.readouterr().err
