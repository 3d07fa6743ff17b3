"""The systemd unit: its text as systemd reads it, the notify protocol over a real socket, and a real systemd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from armlet_runtime.bluetooth import Link
from armlet_runtime.cli import main
from armlet_runtime.decisions import Decision
from armlet_runtime.install.systemd_unit import quoted, unit_text
from armlet_runtime.live.sd_notify import Notifier
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Recording, Stream
from armlet_runtime.signals.recording_writer import write_recording
from armlet_runtime.views.journal import JournalView
from tests.support.small_bundle import SmallBundle

from .test_live_commands import wearables


@pytest.mark.parametrize("abstract", [False, True])
def test_notifications_reach_a_socket(abstract: bool, tmp_path: Path) -> None:
    name = f"armlet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else str(tmp_path / "notify"))
        manager.setblocking(False)
        environment = {"NOTIFY_SOCKET": f"@{name}" if abstract else str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with closing(Notifier(environment)) as notifier:
            notifier.ready()
            notifier.alive()
            notifier.alive()  # half of its time has not passed
            notifier.status("decides on acc\ngyro")
            notifier.status("decides on acc gyro")  # said already
            time.sleep(0.11)
            notifier.alive()
        notifier.ready()  # over: nothing is sent
        said = []
        while True:
            try:
                said.append(manager.recv(1000).decode())
            except BlockingIOError:
                break
    assert said == ["READY=1", "WATCHDOG=1", "STATUS=decides on acc gyro", "WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, []),
        ({"WATCHDOG_USEC": "1000"}, ["READY=1"]),
        ({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, ["READY=1"]),
        ({"WATCHDOG_USEC": "soon"}, ["READY=1"]),
    ],
)
def test_without_a_watchdog_of_ours_nothing_is_fed(
    environment: Mapping[str, str], says: list[str], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        there = {"NOTIFY_SOCKET": str(tmp_path / "notify")} if environment else {}
        with closing(Notifier({**there, **environment})) as notifier:
            notifier.ready()
            if environment.get("WATCHDOG_USEC") != "1000" or "WATCHDOG_PID" in environment:
                notifier.alive()
            for expected in says:
                assert manager.recv(1000).decode() == expected
            with pytest.raises(BlockingIOError):
                manager.recv(1000)


def test_a_manager_that_is_gone_does_not_stop_the_run(tmp_path: Path) -> None:
    with closing(Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1"})) as notifier:
        notifier.ready()
        notifier.alive()


def test_a_service_waits_for_the_first_bundle_of_its_slot(small_bundle: SmallBundle, tmp_path: Path) -> None:
    slot, key = f"file:{tmp_path / 'slot'}", ("--key", str(small_bundle.public_key_path))
    nobody = ("--wearables", "Armlet-Acc", "--bluetooth", f"bumble:unix-client:{tmp_path / 'no-host'}")
    command = [sys.executable, "-m", "armlet_runtime", "run", slot, *key, *nobody]
    by_hand = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert by_hand.returncode == 2 and "armlet deploy BUNDLE" in by_hand.stderr
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        environment.pop("WATCHDOG_PID", None)
        service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            messages = [manager.recv(1000).decode() for _ in range(5)]
            assert messages == ["READY=1", f"STATUS=waits for a bundle in {slot}: deploy one", *["WATCHDOG=1"] * 3]
            assert service.poll() is None
            assert main(["deploy", str(small_bundle.path), slot, *key]) == 0
            assert "cannot open the Bluetooth transport" in service.communicate(timeout=60)[1]
        finally:
            service.kill()
            service.wait()


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs the Debian package systemd")
    words = [sys.executable, "-m", "armlet_runtime", "run", "a file", "--wearables", 'Polar "H10" $1', "%h/d"]
    text = unit_text(words, {"ARMLET_HOME": "%h/arm let"}, "%h")
    assert "@COMMAND@" not in text and "@ENVIRONMENT@" not in text
    (tmp_path / "armlet.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(tmp_path / "armlet.service")],
        capture_output=True, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0 and "armlet.service" not in done.stderr, done.stderr


def test_words_of_a_unit_are_quoted() -> None:
    assert quoted("file:/srv/slot") == "file:/srv/slot" and quoted("%h/a") == "%h/a"
    assert quoted('a "b" $c\\') == '"a \\"b\\" $$c\\\\"' and quoted("") == '""'


def test_the_journal_gets_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    journal = JournalView()
    link = Link("Armlet-Gyro", "missing", "not heard yet")
    journal.links({link.name: link})
    for state, problem in (
        ("missing", "not heard yet"),
        ("found", ""),
        ("waiting", "no answer in time"),
        ("waiting", "no answer in time"),
        ("streaming", ""),
        ("missing", "the link\x1b[31m was lost"),
    ):
        link.state, link.problem = state, problem
        journal.tick(0)
    for subset, reason in ((("acc",), None), (("acc",), None), ((), "no sensor")):
        decided = Decision(0, 1, 1, subset, "walking", (), (), {}, {}, "litert", reason)
        journal.decision(decided)
    assert capsys.readouterr().out.splitlines() == [
        "<5>Looking for 'Armlet-Gyro'.",
        "<4>'Armlet-Gyro' could not be connected: no answer in time. Trying again.",
        "<5>'Armlet-Gyro' is sending.",
        "<4>The link to 'Armlet-Gyro' was lost: the link [31m was lost.",
        "<5>Deciding on acc.",
        "<4>No decision on none: no sensor.",
    ]


def test_the_journal_is_known_by_its_device_and_inode() -> None:
    read, write = os.pipe()
    status = os.fstat(write)
    code = "from armlet_runtime.views import make_view; print(type(make_view(None, (), {})).__name__)"
    for stream, expected in ((f"{status.st_dev}:{status.st_ino}", "JournalView"), ("1:2", "LineView")):
        subprocess.run(
            [sys.executable, "-c", code], stdout=write, env={**os.environ, "JOURNAL_STREAM": stream}, check=True
        )
        assert os.read(read, 100).decode().strip() == expected
    os.close(read)
    os.close(write)


def test_without_systemd_it_is_said(small_bundle: SmallBundle, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    model = [str(small_bundle.path), "--key", str(small_bundle.public_key_path)]
    assert main(["service", "install", *model]) == 2
    assert "name the wearables that the service is to connect" in capsys.readouterr().err
    model += ["--wearables", "Armlet-Acc"]
    assert main(["service", "install", *model]) == 2
    assert "no systemd runs for this user here" in capsys.readouterr().err
    assert main(["service", "status"]) == 1 and main(["service", "remove"]) == 0
    assert capsys.readouterr().out == "no unit is installed here\nno unit is installed here\n"
    with pytest.raises(SystemExit):
        main(["service", "install", *model, "--no-such-option"])
    assert not list(tmp_path.iterdir())


def test_a_service_gets_no_file_that_a_restart_would_spoil_and_no_password(
    small_bundle: SmallBundle, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    model = [str(small_bundle.path), "--key", str(small_bundle.public_key_path), "--wearables", "Acc"]
    for options, says in (
        (("--record", "walk.mcap"), "give a folder, with a slash at its end: --record walk/"),
        (("--decisions", "d.jsonl"), "give a folder, with a slash at its end: --decisions d/"),
        (("--mqtt", "mqtt://ann:s3cret@host/topic"), "can be read by every user of this machine"),
        (("--decisions", "new/", "--record", "there", "--mqtt", "mqtt://host/topic"), "no systemd runs for this user"),
    ):
        assert main(["service", "install", *model, *options]) == 2
        error = capsys.readouterr().err
        assert says in error and "s3cret" not in error, error


# Run as PID 1 of namespaces of its own: a systemd for one user, with nothing of the machine's.
SCRIPT = """
set -u
mount -t tmpfs none /run
mkdir -p /run/systemd/system /run/xdg && chmod 700 /run/xdg
export XDG_RUNTIME_DIR=/run/xdg
/usr/lib/systemd/systemd --user >/dev/null 2>&1 &
for _ in $(seq 100); do
  case "$(systemctl --user is-system-running 2>/dev/null)" in running|degraded) break;; esac
  sleep 0.1
done
exec "$@"
"""


@pytest.mark.full("boots a systemd")
@pytest.mark.long(limit_s=150, reason="waits for a real watchdog")
def test_a_real_systemd_starts_watches_and_restarts_it(small_bundle: SmallBundle, tmp_path: Path) -> None:
    isolated = ["unshare", "--mount", "--pid", "--fork", "--mount-proc"]
    if not Path("/usr/lib/systemd/systemd").exists():
        pytest.skip("needs the Debian package systemd")
    if subprocess.run([*isolated, "mount", "-t", "tmpfs", "none", "/run"], capture_output=True).returncode:
        pytest.skip("needs the right to make namespaces")
    quick = tmp_path / "config" / "systemd" / "user" / "armlet.service.d" / "quick.conf"
    quick.parent.mkdir(parents=True)
    quick.write_text("[Service]\nWatchdogSec=3\nRestartSec=100ms\nTimeoutAbortSec=1\n")
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    times = (np.arange(50 * 60) * 20_000_000).astype(np.int64)
    streams = {
        name: Stream(Modality(name, ("x", "y", "z"), unit, 50.0), times, np.zeros((len(times), 3), np.float32))
        for name, unit in (("acc", "g"), ("gyro", "rad/s"))
    }
    write_recording(tmp_path / "played.mcap", Recording("played", "nobody", streams=streams))
    with wearables(tmp_path / "played.mcap", tmp_path) as air:
        model = [str(small_bundle.path), str(small_bundle.public_key_path)]
        inside = [sys.executable, str(Path(__file__).with_name("under_systemd.py")), *model, air]
        done = subprocess.run(
            [*isolated, "bash", "-c", SCRIPT, "bash", *inside],
            env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs while you are logged in" in done.stdout or "runs, and starts" in done.stdout
    assert not (tmp_path / "config" / "systemd" / "user" / "armlet.service").exists()
