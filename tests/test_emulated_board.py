"""From an empty board to decisions, and through power cuts in the middle of deploys.

``make test`` does it with an sshd on loopback as the board. ``make test-board`` takes Debian arm64 systems under QEMU,
with their own kernel, sshd and disk, cuts the power of the first at KILLS random moments (20 if nothing is said), and
tells how long each step took.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from armlet_bridge.boards.ssh import PREFIX
from armlet_runtime.bundle import keys
from armlet_runtime.bundle.bundle_writer import write_bundle
from armlet_runtime.bundle.container import MANIFEST, open_bundle
from armlet_runtime.engines.executorch_shim import cache_folder
from armlet_runtime.install.agent_protocol import UpdateResult
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.golden_run import golden_windows, run_subsets
from tests.support import sshd
from tests.support.emulated import board as emulated
from tests.support.emulated.loopback import Loopback

pytestmark = [
    pytest.mark.full("on what the demo made, which trains for minutes"),
    pytest.mark.long(
        limit_s=5400,
        reason="emulation is slow, on a busy machine slower still, and `make test-board` cuts the power many times",
    ),
]

MACHINES = os.environ.get("MACHINES", "loopback").split(",")
KILLS = int(os.environ.get("KILLS", "2"))
SEED = 20261129
BOARD = "ssh://board"


@dataclass
class Desk:
    """A workstation's home with keys and bundles, and the board that it reaches as ``ssh://board``."""

    folder: Path
    machine: emulated.Machine | Loopback
    demo: Path
    steps: list[tuple[str, float, str]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def key(self) -> Path:
        """The owner's, where armlet looks for the key of this home."""
        return self.home / "armlet" / keys.SIGNING

    @property
    def public_key(self) -> Path:
        return self.key.with_name(f"{self.key.name}.pub")

    @property
    def environment(self) -> dict[str, str]:
        mine = {"HOME": str(self.home), "ARMLET_HOME": str(self.home / "armlet"), "COLUMNS": "300"}
        return {"UV_CACHE_DIR": str(Path.home() / ".cache" / "uv"), **os.environ, **mine}

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        notes: list[str] = []
        began = time.monotonic()
        yield notes
        self.steps.append((name, time.monotonic() - began, ", ".join(notes)))

    def armlet(self, *arguments: object) -> Any:
        """Run armlet here; what it wrote as JSON."""
        out = self.folder / "out.json"
        command = [sys.executable, "-m", "armlet_runtime", *map(str, arguments), "--json", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}\n{self.machine.last_words()}"
        return json.loads(out.read_text())

    def ssh(self, *arguments: str | Path, program: str = "ssh") -> str:
        command = [program, "-F", str(self.home / ".ssh" / "config"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def bundle(self, seed: int) -> Path:
        """The demo's bundle (seed 0), or one with other mask tokens: other decisions when a sensor is lost."""
        path = self.folder / f"{seed}.armlet"
        if not path.exists():
            source = open_bundle(self.demo / "model.armlet", None)
            members = {name: source.read(name) for name in source.sizes if name != MANIFEST}
            manifest = msgspec.structs.replace(source.manifest, name="board-test", version=str(seed), release=seed)
            if seed:
                masks = np.load(io.BytesIO(source.read(manifest.mask_tokens)))
                members[manifest.mask_tokens] = npy(masks + np.random.default_rng(seed).normal(size=masks.shape))
                windows = golden_windows(manifest, source.read)
                for engine, member in manifest.golden.logits.items():
                    logits, _ = run_subsets(BundleModel(manifest, members.__getitem__, engine), windows)
                    members[member] = npy(logits)
            write_bundle(path, manifest, members, [keys.load_private(self.key)])
        return path

    def members(self, seed: int) -> dict[str, int]:
        """Size of each member besides the manifest, by its SHA-256: those of equal contents are one."""
        bundle = open_bundle(self.bundle(seed), None)
        return {bundle.sha256(name): size for name, size in bundle.sizes.items() if name != MANIFEST}

    def digest(self, seed: int) -> str:
        return open_bundle(self.bundle(seed), None).digest

    def started(self) -> Any:
        """What the board verified by itself when it was switched on."""
        line = self.machine.wait_for(emulated.STARTED)
        assert line.split()[1] == "0", line
        return json.loads(line[line.index("{") :])

    def replay(self, seed: int) -> bool:
        """Whether the board's decisions on the demo's recording are those that this machine makes of a bundle."""
        here, there = self.folder / "here.jsonl", self.folder / "there.jsonl"
        self.armlet(
            "replay", self.demo / "live.mcap", self.bundle(seed), "--key", self.public_key,
            "--engine", "litert", "--decisions", here,
        )  # fmt: skip
        self.ssh(self.demo / "live.mcap", "board:live.mcap", program="scp")
        command = f"ARMLET_HOME={PREFIX}/home {PREFIX}/venv/bin/python -m armlet_runtime replay"
        self.ssh("board", f"{command} live.mcap file:{PREFIX}/slot --decisions decisions.jsonl")
        self.ssh("board:decisions.jsonl", there, program="scp")
        assert len(here.read_text().splitlines()) > 10
        return here.read_bytes() == there.read_bytes()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array.astype(np.float32))
    return buffer.getvalue()


def _machine(name: str, folder: Path) -> emulated.Machine | Loopback:
    if name == Loopback.machine:
        if (why := sshd.missing()) is not None:
            pytest.skip(why)
        return Loopback(folder)
    if missing := emulated.missing_packages():
        pytest.skip(f"needs the system packages {', '.join(missing)}: apt install {' '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("unpacking a Debian tree with its files' owners needs root")
    try:
        return emulated.Machine(name, emulated.system(cache_folder()), folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the board's system cannot be made here: {(error.stderr.strip().splitlines() or ['?'])[-1]}")


@pytest.fixture(scope="module", params=MACHINES)
def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A board that was empty, has been set up, and runs the demo's bundle."""
    began = time.monotonic()
    folder = tmp_path_factory.mktemp(request.param)
    machine = _machine(request.param, folder / "machine")
    making_s = time.monotonic() - began
    demo = Path(os.environ["DEMO"]) if "DEMO" in os.environ else request.getfixturevalue("demo_dir")
    desk = Desk(folder, machine, demo)
    desk.steps.append(("make the board's disk", making_s, "the first time; then from the cache"))
    keys.generate(desk.key)
    desk.machine.write_ssh_config(desk.home)
    try:
        with desk.step("boot, empty"):
            desk.machine.switch_on()
        with desk.step("board setup") as notes:
            host_key = ("--host-key", desk.machine.fingerprint)
            setup = desk.armlet("board", "setup", BOARD, *host_key, "--key", desk.public_key, "--class", "emulated")
            assert setup["unit"].startswith("none: this board runs no systemd")
            probe = setup["probe"]
            notes += [probe["model"] or probe["architecture"], f"{setup['bytes_sent'] / 1e6:.1f} MB sent"]
        desk.ssh("board", "true")  # ssh finds in known_hosts what armlet wrote there
        with desk.step("first deploy") as notes:
            notes.append(deploy(desk, 0))
        yield desk
    finally:
        desk.machine.pull_the_plug()
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\n{request.param}:")
            for name, seconds, note in desk.steps:
                print(f"  {seconds:7.1f} s  {name}{f' ({note})' if note else ''}")


def deploy(desk: Desk, seed: int) -> str:
    done = desk.armlet("deploy", desk.bundle(seed), BOARD, "--key", desk.public_key)
    assert done["result"] == UpdateResult.SUCCESS and done["digest"] == desk.digest(seed)
    return f"{done['bytes_sent']} of {done['bytes_bundle']} bytes sent"


def test_a_board_decides_as_the_workstation_does(desk: Desk) -> None:
    with desk.step("golden run") as notes:
        ran = f"{PREFIX}/venv/bin/python -m armlet_runtime verify file:{PREFIX}/slot --golden"
        desk.ssh("board", f"ARMLET_HOME={PREFIX}/home {ran} --json golden.json")
        (golden,) = json.loads(desk.ssh("board", "cat golden.json"))["golden"]
        assert golden["precision"] == "int8" and golden["max_difference"] == 0 == golden["tolerance"]
        notes.append(f"{golden['windows']} windows in every subset, the same bits as at export")
    with desk.step("replay of a recording") as notes:
        assert desk.replay(0)
        count = len((desk.folder / "there.jsonl").read_text().splitlines())
        notes.append(f"{count} decisions, the same bytes as here")
    with desk.step("second deploy") as notes:
        notes.append(deploy(desk, 1))
        held, brought = (desk.members(seed) for seed in (0, 1))
        assert notes[0].startswith(f"{sum(size for sha256, size in brought.items() if sha256 not in held)} of ")
    with desk.step("power off and on"):
        desk.machine.pull_the_plug()
        desk.machine.switch_on()
        verified = desk.started()
        assert verified["digest"] == desk.digest(1) and verified["passed"]
    with desk.step("replay of a recording"):
        assert desk.replay(1)
    with desk.step("rollback"):
        desk.armlet("board", "rollback", BOARD)
        status = desk.armlet("board", "status", BOARD)
        assert status["bundle"]["digest"] == desk.digest(0) and status["before"]["digest"] == desk.digest(1)
    with desk.step("power off and on"):
        desk.machine.pull_the_plug()
        desk.machine.switch_on()
        assert desk.started()["digest"] == desk.digest(0)


@pytest.mark.parametrize("desk", MACHINES[:1], indirect=True)
def test_no_power_cut_leaves_a_board_without_a_bundle(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    with desk.step("a deploy before the power cuts"):
        began = time.monotonic()
        deploy(desk, 10)
        whole_s = time.monotonic() - began
    moments = random.Random(SEED)
    held, ended = desk.digest(10), {"old": 0, "new": 0}
    for number in range(11, 11 + KILLS):
        with desk.step("deploy, cut, boot, verify") as notes:
            bundle, key = desk.bundle(number), desk.public_key
            workstation = subprocess.Popen(
                [sys.executable, "-m", "armlet_runtime", "deploy", bundle, BOARD, "--key", key],
                env=desk.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            moment = moments.uniform(0, 1.2 * whole_s)
            time.sleep(moment)
            desk.machine.pull_the_plug()
            workstation.kill()
            workstation.wait()
            desk.machine.switch_on()
            verified = desk.started()
            assert verified["passed"] and verified["digest"] in (held, desk.digest(number))
            which = "old" if verified["digest"] == held else "new"
            ended[which] += 1
            held = verified["digest"]
            notes.append(f"cut after {moment:.1f} of {whole_s:.1f} s: the {which} bundle")
    with desk.step("a deploy after the power cuts") as notes:
        notes.append(deploy(desk, 11 + KILLS))
    with capsys.disabled():
        print(f"\n{KILLS} power cuts: {ended['old']} boards started the old bundle, {ended['new']} the new one")
