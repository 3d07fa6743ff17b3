"""Probation: bundles that pass every check and fail in use are taken back, whoever is there to see it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armlet_runtime.bundle import keys
from armlet_runtime.bundle.container import open_bundle
from armlet_runtime.bundle.trust import trusted_keys
from armlet_runtime.errors import DeployError
from armlet_runtime.install import probation
from armlet_runtime.install.agent import Agent
from armlet_runtime.install.agent_protocol import UpdateResult, UpdateState
from armlet_runtime.install.probation import ProbationError, settle
from armlet_runtime.install.slot_deploy import HealthError, deploy_to_slot, roll_back
from armlet_runtime.install.slots import current_bundle, current_place, read_state
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Recording, Stream
from armlet_runtime.signals.recording_writer import write_recording

from .conftest import Fault
from .power_cuts import offer

MakeBundle = Callable[..., Path]
ARMLET = [sys.executable, "-m", "armlet_runtime"]


@pytest.fixture
def slot(tmp_path: Path, signing_key: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A slot; the signing key is trusted."""
    monkeypatch.setenv("ARMLET_HOME", str(tmp_path / "home"))
    keys.trust(keys.load_public(signing_key.with_name(signing_key.name + ".pub")))
    return tmp_path / "slot"


def digest(slot: Path) -> str:
    return open_bundle(current_bundle(slot), trusted_keys()).digest


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("crash", r"toy 0\.2 was in use and taken back: it crashed its process \(SIGFPE\) when it decided live"),
        ("nan", "taken back: its scores on a golden signal are no numbers"),
        ("slow", r"taken back: (a decision took \d+ ms, and 700 ms are allowed|it made no decisions within 25 s)"),
    ],
)
def test_a_bundle_that_fails_in_use_is_taken_back(kind: str, words: str, make_bundle: MakeBundle, slot: Path) -> None:
    """Its golden run is right; only a window that is none of the golden ones brings the fault out."""
    old = deploy_to_slot(make_bundle(1, release=1), slot)
    assert "3 decisions on golden windows" in old.live
    before = read_state(slot)
    began = time.monotonic()
    with pytest.raises(ProbationError, match=words):
        deploy_to_slot(make_bundle(2, release=2, fault=Fault(kind, "live")), slot)
    assert time.monotonic() - began < 30
    assert digest(slot) == old.digest and read_state(slot) == before, "not even its release may be remembered"
    assert not (slot / "b" / "model.armlet").exists()
    assert deploy_to_slot(make_bundle(3, release=1), slot).place == "b"


def test_a_first_bundle_that_fails_in_use_leaves_an_empty_slot(make_bundle: MakeBundle, slot: Path) -> None:
    with pytest.raises(ProbationError):
        deploy_to_slot(make_bundle(1, fault=Fault("nan", "live")), slot)
    assert current_place(slot) is None and read_state(slot).places == {}


def test_a_program_that_crashes_its_engine_is_never_in_use(make_bundle: MakeBundle, slot: Path) -> None:
    old = deploy_to_slot(make_bundle(1), slot)
    with pytest.raises(HealthError, match=r"crashed its process \(SIGFPE\): the engine crashed on it"):
        deploy_to_slot(make_bundle(2, fault=Fault("crash", "golden")), slot)
    assert digest(slot) == old.digest


@pytest.mark.parametrize(
    ("fault", "golden_error", "words"),
    [
        (None, 0.5, "golden run on onnx differs by 0.5"),
        (Fault("crash", "golden"), 0.0, "crashed its process (SIGFPE)"),
        (Fault("crash", "live"), 0.0, "was in use and taken back: it crashed its process (SIGFPE)"),
    ],
)
def test_a_board_reports_why_it_has_its_old_bundle(
    fault: Fault | None, golden_error: float, words: str, make_bundle: MakeBundle, signing_key: Path, slot: Path
) -> None:
    """As a workstation hears it from the agent, also when it asks later."""
    agent = Agent(slot.parent)
    offer(agent.prefix, make_bundle(1))
    agent.run_installer(None)
    old = agent.record.read()
    assert old.result is UpdateResult.SUCCESS and "3 decisions on golden windows" in old.message
    offer(agent.prefix, make_bundle(2, golden_error=golden_error, fault=fault))
    agent.run_installer(None)
    told = agent.hello()["update"]
    assert (told.state, told.result) == (UpdateState.IDLE, UpdateResult.UPDATE_FAILED) and words in told.message
    assert digest(slot) == old.digest


KILLED = """
import os, sys
from pathlib import Path
from armlet_runtime.install import slot_deploy

slot_deploy.watch = lambda *_: os.kill(os.getpid(), 9)
slot_deploy.deploy_to_slot(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_deploy_that_is_killed_on_probation_is_taken_back_by_whoever_comes_next(
    make_bundle: MakeBundle, slot: Path
) -> None:
    old = deploy_to_slot(make_bundle(1), slot)

    def leave_on_probation() -> None:
        ran = subprocess.run([sys.executable, "-c", KILLED, make_bundle(2), slot], check=False)
        assert ran.returncode == -signal.SIGKILL and read_state(slot).probation is not None
        assert digest(slot) != old.digest

    leave_on_probation()
    with probation.locked(slot):
        assert not settle(slot), "a deploy is at work"
    assert settle(slot) and not settle(slot)
    assert digest(slot) == old.digest and set(read_state(slot).places) == {"a"}
    leave_on_probation()
    with pytest.raises(DeployError, match="holds no bundle besides the present one"):
        roll_back(slot, None)
    assert digest(slot) == old.digest
    leave_on_probation()
    said = subprocess.run([*ARMLET, "verify", f"file:{slot}"], capture_output=True, text=True, check=True).stdout
    assert old.digest in said and digest(slot) == old.digest, "as a board that starts up"
    leave_on_probation()
    again = deploy_to_slot(make_bundle(3), slot)
    assert again.place == "b" and again.previous == old.digest


# --- with the runtime at work ---------------------------------------------------------------------------------------


@pytest.fixture
def played(tmp_path: Path) -> Path:
    """Two minutes at 8 Hz, of 4 g: what a fault of the kind ``strong`` waits for."""
    times = (np.arange(8 * 120) * 125_000_000).astype(np.int64)
    values = np.full((len(times), 3), 4.0, np.float32)
    values[:, 1:] = np.random.default_rng(3).normal(size=(len(times), 2))
    units = {"acc": "g", "gyro": "rad/s"}
    streams = {name: Stream(Modality(name, ("x", "y", "z"), unit, 8.0), times, values) for name, unit in units.items()}
    path = tmp_path / "played.mcap"
    write_recording(path, Recording("played", "nobody", streams=streams))
    return path


class Runtime:
    """``armlet run`` on a slot, with virtual wearables in reach."""

    def __init__(self, slot: Path, folder: Path, bluetooth: str) -> None:
        self.decisions = folder / "decisions.jsonl"
        self.said = folder / "said.txt"
        command = [
            "run",
            f"file:{slot}",
            "--bluetooth",
            bluetooth,
            "--wearables",
            "any",
            "--decisions",
            str(self.decisions),
        ]
        with self.said.open("wb") as said:
            self.process = subprocess.Popen([*ARMLET, *command], stdout=said, stderr=subprocess.STDOUT)

    def made(self) -> list[dict[str, Any]]:
        whole = self.decisions.read_text().rpartition("\n")[0] if self.decisions.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for(self, count: int) -> None:
        for _ in range(400):
            if len(self.made()) >= count:
                return
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.1)
        pytest.fail(f"no {count} decisions: {self.said.read_text()}")


@contextmanager
def running(slot: Path, played: Path, folder: Path, *options: str) -> Iterator[Runtime]:
    """``options``: of the virtual wearables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["wearables", "simulate", str(played), "--listen", f"tcp-server:127.0.0.1:{port}", *options]
    air = subprocess.Popen([*ARMLET, *command], stdout=subprocess.PIPE, text=True)
    runtime = None
    try:
        assert air.stdout is not None and "on the air" in air.stdout.readline()
        runtime = Runtime(slot, folder, f"bumble:tcp-client:127.0.0.1:{port}")
        yield runtime
    finally:
        for process in (runtime.process if runtime else None, air):
            if process is not None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        if air.stdout is not None:
            air.stdout.close()


def test_the_runtime_takes_a_bundle_up_and_none_of_its_decisions_is_missing(
    make_bundle: MakeBundle, slot: Path, played: Path, tmp_path: Path
) -> None:
    deploy_to_slot(make_bundle(1), slot)
    with running(slot, played, tmp_path) as runtime:
        runtime.wait_for(2)
        second = deploy_to_slot(make_bundle(2), slot)
        assert "live decisions, the slowest after" in second.live
        runtime.wait_for(len(runtime.made()) + 1)
        made = runtime.made()
        assert [decision["index"] for decision in made] == list(range(len(made)))
        assert "toy 0.2 is in use from now on" in runtime.said.read_text()
        began = time.monotonic()
        with pytest.raises(ProbationError, match="the runtime ended when it took the bundle up"):
            deploy_to_slot(make_bundle(3, fault=Fault("crash", "strong")), slot)
        assert time.monotonic() - began < 30 and digest(slot) == second.digest
        assert runtime.process.wait(10) == -signal.SIGFPE


def test_a_runtime_that_hangs_or_loses_its_deploy(
    make_bundle: MakeBundle, slot: Path, played: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probation, "PATIENCE_S", 3.0)
    old = deploy_to_slot(make_bundle(1), slot)
    with running(slot, played, tmp_path) as runtime:
        runtime.wait_for(2)
        runtime.process.send_signal(signal.SIGSTOP)
        with pytest.raises(ProbationError, match="it made 0 of 3 decisions within 3 s"):
            deploy_to_slot(make_bundle(2), slot)
        assert digest(slot) == old.digest
        ran = subprocess.run([sys.executable, "-c", KILLED, make_bundle(2), slot], check=False)
        assert ran.returncode == -signal.SIGKILL and digest(slot) != old.digest
        runtime.process.send_signal(signal.SIGCONT)  # nobody but the runtime is left
        for _ in range(100):
            if digest(slot) == old.digest and read_state(slot).probation is None:
                break
            time.sleep(0.1)
        assert digest(slot) == old.digest and read_state(slot).probation is None
        runtime.wait_for(len(runtime.made()) + 2)
        with pytest.raises(ProbationError, match=r"it made 0 of 3 decisions"):
            deploy_to_slot(make_bundle(3, fault=Fault("nan", "strong")), slot)
        assert digest(slot) == old.digest


def test_decisions_without_a_sensor_confirm_no_bundle(
    make_bundle: MakeBundle, slot: Path, played: Path, tmp_path: Path
) -> None:
    """The runtime goes on deciding when all wearables are gone; a bundle shows nothing by that."""
    old = deploy_to_slot(make_bundle(1), slot)
    losses = ["--link-loss", "acc:6:300", "--link-loss", "gyro:6:300"]
    with running(slot, played, tmp_path, *losses) as runtime:
        runtime.wait_for(1)
        while runtime.made()[-1]["reason"] != "no sensor":
            time.sleep(0.1)
        with pytest.raises(ProbationError, match="its scores on a golden signal are no numbers"):
            deploy_to_slot(make_bundle(2, fault=Fault("nan", "live")), slot)
        assert digest(slot) == old.digest
        assert "3 decisions on golden windows" in deploy_to_slot(make_bundle(3), slot).live
        assert runtime.process.poll() is None


def test_a_runtime_that_never_decides_says_nothing_about_a_bundle(
    make_bundle: MakeBundle, slot: Path, tmp_path: Path
) -> None:
    """As on a board whose unit is started again and again, for want of Bluetooth."""
    deploy_to_slot(make_bundle(1), slot)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runtime = Runtime(slot, tmp_path, f"bumble:tcp-client:127.0.0.1:{port}")
    assert runtime.process.wait(60) != 0
    assert "3 decisions on golden windows" in deploy_to_slot(make_bundle(2), slot).live
