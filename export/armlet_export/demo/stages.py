"""The demo: armlet's whole path on real recordings, made of the very commands that a person would type.

Every stage is one or two ``armlet`` commands in a process of their own. A stage that ended leaves a mark, so a second
start goes on where the first stopped; training and export stages resume inside themselves as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
from rich.console import Console

from armlet_runtime.errors import ArmletError
from armlet_runtime.files import write_atomic


class Profile(msgspec.Struct, frozen=True):
    """How large the demo is. The recording and its losses are the same in kind, whatever the size."""

    recipe: str
    person: str
    recording: int
    start_s: float
    """Where in the recording playing starts."""
    play_s: float
    losses_s: tuple[tuple[float, float], ...]
    """When the gyroscope's link is cut and comes back, in seconds since the start of playing."""
    bench_s: float


# Person 9 is one of HAPT's test people (no model of these recipes was trained or selected on them). The played stretch
# holds all six activities; the losses fall on lying and sitting, on walking, and on both stairs.
PROFILES = {
    "demo": Profile("hapt-demo", "9", 1, 30.0, 240.0, ((40.0, 80.0), (120.0, 150.0), (180.0, 210.0)), 3.0),
    # For tests: every stage for real, but so short that the model is good for nothing.
    "quick": Profile("hapt-tiny", "9", 1, 30.0, 24.0, ((10.0, 15.0),), 0.3),
}
ENGINES = ("litert", "executorch", "onnx")
LOST = "gyro"
READY_S = 60.0


class Mark(msgspec.Struct, frozen=True):
    """A stage that ended: under which conditions, and in how many seconds."""

    fingerprint: str
    seconds: float


@dataclass(frozen=True)
class Stage:
    """One line of the demo's list."""

    name: str
    title: str
    run: Callable[[Demo], None]


@dataclass
class Demo:
    """One demo in one folder."""

    root: Path
    profile: Profile
    console: Console

    def armlet(self, *arguments: str | Path) -> None:
        """Run a command, its output going to the terminal.

        Raises:
            ArmletError: It failed.
        """
        done = subprocess.run(self._command(*arguments))
        if done.returncode:
            raise ArmletError(
                f"the demo stopped because 'armlet {arguments[0]}' failed (exit code {done.returncode}); "
                "correct the error above and start the demo again: it goes on from there"
            )

    @contextlib.contextmanager
    def running(self, ready: str, *arguments: str | Path) -> Iterator[None]:
        """A command in the background, from the line that reports it ready to its end."""
        process = subprocess.Popen(self._command(*arguments), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None  # for the type checker: stdout is a pipe
        try:
            line = process.stdout.readline()
            if ready not in line:
                raise ArmletError(f"'armlet {arguments[0]}' did not get ready; it printed: {line.strip() or 'nothing'}")
            yield
            process.wait(READY_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(READY_S)

    def _command(self, *arguments: str | Path) -> list[str]:
        words = [str(argument) for argument in arguments]
        self.console.print(f"[dim]$ armlet {' '.join(words)}[/dim]", highlight=False, soft_wrap=True)
        return [sys.executable, "-m", "armlet_runtime", *words]


def _data(demo: Demo) -> None:
    demo.armlet("data", "fetch", "hapt")
    demo.armlet(
        "data", "record", "hapt", "--person", demo.profile.person, "--recording", str(demo.profile.recording),
        demo.root / "recording.mcap",
    )  # fmt: skip


def _pretrain(demo: Demo) -> None:
    demo.armlet("pretrain", demo.profile.recipe, "--out", demo.root / "pretrain")


def _finetune(demo: Demo) -> None:
    pretrained = demo.root / "pretrain"
    demo.armlet("finetune", demo.profile.recipe, "--from", pretrained, "--out", demo.root / "finetune")


def _export(demo: Demo) -> None:
    bundle, result = demo.root / "model.armlet", demo.root / "export.json"
    demo.armlet("export", demo.root / "finetune", "--out", bundle, "--json", result)


def _deploy(demo: Demo) -> None:
    demo.armlet(
        "deploy", demo.root / "model.armlet", f"file:{demo.root / 'board'}", "--json", demo.root / "deploy.json"
    )


def _evaluate(demo: Demo) -> None:
    for engine in ENGINES:
        result = demo.root / f"evaluate-{engine}.json"
        demo.armlet("evaluate", demo.root / "model.armlet", "--engine", engine, "--split", "test", "--json", result)
    demo.armlet("evaluate", demo.root / "finetune", "--split", "test", "--json", demo.root / "evaluate-pytorch.json")
    demo.armlet(
        "evaluate", demo.root / "pretrain", "--few-label", "--split", "test", "--json", demo.root / "few-label.json"
    )


def _live(demo: Demo) -> None:
    profile = demo.profile
    (demo.root / "live.mcap").unlink(
        missing_ok=True
    )  # of a stage that was interrupted; recordings are never overwritten
    port = _free_port()
    losses = [word for start, end in profile.losses_s for word in ("--link-loss", f"{LOST}:{start:g}:{end:g}")]
    simulate: list[str | Path] = [
        "wearables", "simulate", demo.root / "recording.mcap", "--listen", f"tcp-server:127.0.0.1:{port}",
        "--start", f"{profile.start_s:g}", "--duration", f"{profile.play_s:g}", *losses,
        "--events", demo.root / "played.jsonl",
    ]  # fmt: skip
    with demo.running("on the air", *simulate):
        demo.armlet(
            "run", f"file:{demo.root / 'board'}", "--bluetooth", f"bumble:tcp-client:127.0.0.1:{port}",
            "--wearables", "any", "--duration", f"{profile.play_s:g}", "--record", demo.root / "live.mcap",
            "--decisions", demo.root / "live.jsonl", "--json", demo.root / "live.json",
        )  # fmt: skip


def _replay(demo: Demo) -> None:
    for name in ("replay", "replay-again"):
        demo.armlet(
            "replay", demo.root / "live.mcap", f"file:{demo.root / 'board'}",
            "--decisions", demo.root / f"{name}.jsonl", "--json", demo.root / f"{name}.json",
        )  # fmt: skip
    first, second = ((demo.root / f"{name}.jsonl").read_bytes() for name in ("replay", "replay-again"))
    if first != second:
        raise ArmletError(f"two replays of {demo.root / 'live.mcap'} gave different decisions, which must not happen")


def _bench(demo: Demo) -> None:
    seconds = f"{demo.profile.bench_s:g}"
    demo.armlet("bench", demo.root / "model.armlet", "--seconds", seconds, "--json", demo.root / "bench.json")


STAGES = (
    Stage("data", "Fetch the recordings (HAPT, 30 people)", _data),
    Stage("pretrain", "Pretrain without labels (CroSSL)", _pretrain),
    Stage("finetune", "Fine-tune with sensors dropping out", _finetune),
    Stage("export", "Quantise, export, prove every program, sign", _export),
    Stage("deploy", "Deploy into a slot, health check first", _deploy),
    Stage("evaluate", "Score the programs on people never seen", _evaluate),
    Stage("live", "Live over Bluetooth, the gyroscope's link cut", _live),
    Stage("replay", "Replay the recording, twice, byte for byte", _replay),
    Stage("bench", "Measure latency, memory and cold start", _bench),
)


def run(root: Path, profile_name: str, console: Console) -> dict[str, float]:
    """Run the demo's stages that have no mark yet.

    Args:
        root: The demo's folder; made if it is not there.
        profile_name: A name in :data:`PROFILES`.
        console: Where stages and commands are shown.

    Returns:
        Stage name to the seconds it took, now or in an earlier start.

    Raises:
        ArmletError: A stage failed.
    """
    demo = Demo(root, PROFILES[profile_name], console)
    marks = root / "stages"
    marks.mkdir(parents=True, exist_ok=True)
    # A mark counts only under the same armlet, profile and earlier stages.
    fingerprint = f"{version('armlet')} {PROFILES[profile_name]}"
    seconds: dict[str, float] = {}
    for number, stage in enumerate(STAGES, 1):
        fingerprint = hashlib.sha256(f"{fingerprint} {stage.name}".encode()).hexdigest()
        heading = rf"[bold]\[{number}/{len(STAGES)}] {stage.title}[/bold]"
        mark = _read_mark(marks / f"{stage.name}.json")
        if mark is not None and mark.fingerprint == fingerprint:
            console.print(f"{heading} [green]done earlier[/green] ({mark.seconds:.0f} s)", highlight=False)
            seconds[stage.name] = mark.seconds
            continue
        console.print(heading, highlight=False)
        began = time.monotonic()
        stage.run(demo)
        seconds[stage.name] = time.monotonic() - began
        mark = Mark(fingerprint, seconds[stage.name])
        write_atomic(marks / f"{stage.name}.json", msgspec.json.encode(mark))
        console.print(f"[green]done[/green] in {mark.seconds:.0f} s\n", highlight=False)
    return seconds


def _read_mark(path: Path) -> Mark | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Mark)
    except (FileNotFoundError, msgspec.DecodeError):
        # No mark, or a mark of something else: the stage runs again.
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
