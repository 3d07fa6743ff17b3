"""Logs: where they go, from which level on, and that a link that failed can be diagnosed from its log alone."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from bleak.exc import BleakError

from armlet_bridge.radio.bumble_backend import open_bluetooth as open_bumble
from armlet_bridge.virtual.air import AirController, AirLink
from armlet_bridge.virtual.wearable import put_on
from armlet_runtime.bluetooth import Session
from armlet_runtime.cli import main
from armlet_runtime.errors import UsageError
from armlet_runtime.log import LEVELS, logging_to
from armlet_runtime.printable import printable

from .test_ble import ACC, Run, counting
from .test_ble_links import failing, ran

log = logging.getLogger("armlet_runtime.bluetooth.link")


@pytest.fixture(autouse=True)
def no_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARMLET_LOG", raising=False)


def test_a_file_has_what_happened_and_the_terminal_only_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "armlet.log"
    with logging_to(path, None):
        log.debug("a detail")
        log.info("an event")
        log.warning("a problem")
        logging.getLogger("bleak").info("a library's event")
    log.warning("afterwards")
    lines = path.read_text().splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(rf"{stamp} INFO    armlet_runtime\.bluetooth\.link: an event", lines[0])
    assert re.fullmatch(rf"{stamp} WARNING armlet_runtime\.bluetooth\.link: a problem", lines[1])
    assert len(lines) == 2
    shown = capsys.readouterr().err
    assert "a problem" in shown and "an event" not in shown


@pytest.mark.parametrize("level", LEVELS)
def test_the_environment_chooses_the_level_and_the_command_line_has_the_last_word(
    level: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARMLET_LOG", level)
    with logging_to(None, None):
        for name, number in LEVELS.items():
            log.log(number, "of %s", name)
    expected = [name for name in LEVELS if LEVELS[name] >= LEVELS[level]]
    assert re.findall(r": of (\w+)", capsys.readouterr().err) == expected
    with logging_to(None, "error"):
        log.warning("quiet")
    assert capsys.readouterr().err == ""


def test_a_level_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARMLET_LOG", "loud")
    with pytest.raises(UsageError, match="ARMLET_LOG=loud: choose debug, info, warning, error"), logging_to(None, None):
        pass


def test_the_journal_gets_priorities_and_no_times(tmp_path: Path) -> None:
    code = (
        "import logging, os\n"
        "from armlet_runtime.log import logging_to\n"
        "status = os.fstat(2)\n"
        "os.environ['JOURNAL_STREAM'] = f'{status.st_dev}:{status.st_ino}'\n"
        "with logging_to(None, None):\n"
        "    logging.getLogger('armlet_runtime.x').info('up')\n"
        "    logging.getLogger('armlet_runtime.x').error('two\\nlines')\n"
    )
    with (tmp_path / "journal").open("w") as stream:
        subprocess.run([sys.executable, "-c", code], stderr=stream, check=True)
    lines = (tmp_path / "journal").read_text().splitlines()
    assert lines == ["<6>armlet_runtime.x: up", "<3>armlet_runtime.x: two", "<3>lines"]


def test_every_command_and_action_has_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["run"], ["wearables", "scan"], ["board", "list"], ["recordings", "import"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        shown = capsys.readouterr().out
        assert "--log-level" in shown and "--log FILE" in shown, command
    assert main(["inspect", str(tmp_path / "none.armlet"), "--log", str(tmp_path / "armlet.log")]) == 2
    assert "INFO    armlet_runtime.log: ended by " in (tmp_path / "armlet.log").read_text()
    assert main(["inspect", "none.armlet", "--log", str(tmp_path / "no" / "armlet.log")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_a_full_disk_costs_the_log_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(Path("/dev/full"), "info"):
        log.info("one")
        log.info("two")
    shown = capsys.readouterr().err
    assert shown.count("cannot write /dev/full") == 1 and "Traceback" not in shown


def test_a_broken_command_leaves_its_traceback_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "armlet.log"
    with pytest.raises(ZeroDivisionError), logging_to(path, None):
        _ = 1 / 0
    assert "ended by ZeroDivisionError" in path.read_text() and "Traceback" in path.read_text()


async def test_the_story_of_a_link_is_in_its_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "armlet_runtime")
    air = AirLink()
    async with put_on(counting(3.0), air, [ACC]) as play, open_bumble(AirController("host", air)) as opened:
        bluetooth, _ = failing(opened, BleakError("[org.bluez.Error.Failed] le-connection-abort-by-local"))
        async with ran(Session(bluetooth, ("Acc",))) as run:
            await _lost_once(run, play.wearables["Acc"].controller, play.run())
    messages = [one.getMessage() for one in caplog.records if one.levelno >= logging.INFO and "'Acc'" in one.message]
    story = [
        r"heard, (..:){5}.., -50 dBm",
        r"attempt 1, to (..:){5}.. at -50 dBm, for 10 s at the most",
        r"failed \(busy, 1 in a row\): .*le-connection-abort-by-local; next attempt when it is heard, in 0\.\d s at",
        r"attempt 2, ",
        r"connected; \d+ characteristics",
        r"started imu; MTU 517 bytes, connection interval 15 ms",
        r"first data, \d+ bytes",
        r"the link has ended",
        r"the link was lost, \d\.\d s after the newest data",
        r"heard, ",
        r"attempt 3, ",
    ]
    assert len(messages) < 30, messages
    for pattern in story:
        while messages and not re.search(pattern, messages[0]):
            messages.pop(0)
        assert messages, pattern
    # Steps of the start are at debug, packets at no level.
    debug = [one.getMessage() for one in caplog.records if one.levelno == logging.DEBUG]
    assert any("Read(" in message for message in debug) and any("Subscribe(" in message for message in debug)
    assert len(debug) < 60


async def _lost_once(run: Run, controller: AirController, playing: Coroutine[Any, Any, None]) -> None:
    play = asyncio.ensure_future(playing)
    await run.until(lambda: len(run.of("Acc")) > 10, 10)
    controller.out_of_range()
    await run.until(lambda: not run.streaming("Acc"), 5)
    controller.in_range()
    await run.until(lambda: run.streaming("Acc"), 10)
    play.cancel()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Polar H10 1234", "Polar H10 1234"),
        ("Zoë's Uhr ⌚", "Zoë's Uhr ⌚"),
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("evil\u202egpj", r"evil\u202egpj"),
        ("zero\u200bwidth \ud800", r"zero\u200bwidth \ud800"),
        ("\x9b31m", r"\x9b31m"),
    ],
)
def test_foreign_text_is_made_printable(text: str, shown: str) -> None:
    assert printable(text) == shown and printable(shown) == shown and shown.isprintable()
