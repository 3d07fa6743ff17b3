"""Every example program does what its docstring says, and uses the public Python API alone."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from armlet_bridge.virtual import default_wearables
from armlet_runtime.formats import export_recording
from armlet_runtime.signals import read_recording
from tests.support.made_training import LABELS, made_recording
from tests.support.small_bundle import SmallBundle, write_noise, write_small_bundle

ROOT = Path(__file__).parent.parent
EXAMPLES = {path.stem: path for path in sorted(ROOT.glob("*/examples/*.py"))}
ROOT_MODULES = {"arrays", "decisions", "errors", "machine", "metrics", "modalities"}
"""Modules of the runtime that are on no wing: the words that all packages share."""

RECIPE = """
[data]
name = "{folder}"
modalities = ["acc", "pulse"]
labels = ["still", "slow", "fast"]
window_s = 1.28
stride_s = 0.5
hop_s = 0.32

[model]
kind = "conv"
channels = [8, 12]
kernels = [5, 3]
strides = [2, 2]
token_dim = 16
hidden_dim = 24
embedding_dim = 16
dropout = 0.1

[pretrain]
method = "crossl"
epochs = 1
batch = 32
learning_rate = 2e-3
weight_decay = 1e-4
similarity = 25.0
variance = 25.0
covariance = 1.0
projection_dim = 32
neighbour_s = 0.32
seed = 0

[pretrain.augment]
rotation_deg = 5.0
scale = 0.05
jitter = 0.02
gap = 0.1

[finetune]
epochs = 15
batch = 32
learning_rate = 5e-3
weight_decay = 0.0
label_smoothing = 0.0
average = 0.9
seed = 0

[finetune.augment]
rotation_deg = 5.0
scale = 0.02
jitter = 0.02
gap = 0.1

[qat]
epochs = 1
learning_rate = 5e-4
distillation = 0.9
frozen_epochs = 0
max_f1_loss = 0.2
min_agreement = 0.8
"""
DATA_SET = """
name = "waves"

[modalities.acc]
channels = ["x", "y", "z"]
unit = "g"
rate_hz = 50.0

[modalities.pulse]
channels = ["green"]
unit = ""
rate_hz = 32.0

[splits]
train = ["1", "2", "3"]
validation = ["4"]
test = ["5"]
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SmallBundle:
    return write_small_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "noise.mcap"
    write_noise(path, seconds=20.0)
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for a folder of five people, each label of whom is a frequency in both modalities."""
    folder = tmp_path_factory.mktemp("training")
    study = folder / "study"
    (study / "samples").mkdir(parents=True)
    (study / "dataset.toml").write_text(DATA_SET)
    rows = ["recording,person,start_s,end_s,label"]
    for person in "12345":
        samples = study / "samples" / f"made-{person}"
        made = made_recording(person, int(person))
        export_recording(made, samples, "csv")
        (samples / "labels.csv").unlink()
        rows += [f"made-{person},{person},{14 * code},{14 * (code + 1)},{name}" for code, name in enumerate(LABELS)]
    (study / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "waves.toml").write_text(RECIPE.format(folder=study))
    return folder / "waves.toml"


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the example of a training leaves."""
    out = tmp_path_factory.mktemp("runs")
    assert re.search(r"^\d+ parameters for still, slow, fast$", run_example("train", recipe, out), re.MULTILINE)
    return out


def run_example(name: str, *arguments: str | Path, code: int = 0) -> str:
    """What an example prints, run as a user runs it."""
    done = subprocess.run(
        [sys.executable, EXAMPLES[name], *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def macro_f1(line: str) -> float:
    return float(line.rpartition("macro-F1 ")[2].split(",")[0])


@contextmanager
def simulated(recording: Path) -> Iterator[str]:
    """Virtual wearables that play a recording; the Bluetooth that reaches them."""
    command = ["wearables", "simulate", str(recording), "--listen", "tcp-server:127.0.0.1:0"]
    process = subprocess.Popen([sys.executable, "-m", "armlet_runtime", *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield "bumble:" + process.stdout.readline().split()[-1]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_decide_on_arrays(bundle: SmallBundle) -> None:
    lines = run_example("decide_on_arrays", bundle.path, bundle.public_key_path).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["acc+gyro", "acc", "gyro"]
    labels = "|".join(bundle.open().manifest.labels)
    assert all(re.search(rf": ({labels}) \(0\.\d\d\), embedding of 12 numbers$", line) for line in lines)


def test_a_replay_gives_the_decisions_of_the_command(bundle: SmallBundle, recording: Path, tmp_path: Path) -> None:
    printed = run_example("replay", recording, bundle.path, bundle.public_key_path).splitlines()
    command = [recording, bundle.path, "--key", bundle.public_key_path, "--decisions", tmp_path / "d.jsonl"]
    subprocess.run([sys.executable, "-m", "armlet_runtime", "replay", *map(str, command)], check=True)
    written = (tmp_path / "d.jsonl").read_text().splitlines()
    assert len(printed) > 30 and printed == written[: len(printed)]


def test_custom_output(bundle: SmallBundle, recording: Path) -> None:
    lines = run_example("custom_output", recording, bundle.path, bundle.public_key_path).splitlines()
    labels = [line.split(": ")[1] for line in lines]
    assert lines[0].split() == ["0.00", "s:", labels[0]] and len(labels) > 1
    assert all(before != after for before, after in pairwise(labels))


def test_recording_arrays(recording: Path) -> None:
    assert run_example("recording_arrays", recording).splitlines() == [
        "played, worn by nobody",
        "acc: (1000, 3) in g, 50.0 Hz for 20.0 s",
        "gyro: (1000, 3) in rad/s, 50.0 Hz for 20.0 s",
    ]


def test_import_csv(tmp_path: Path) -> None:
    rows = [f"{i / 50:.2f},0.0,0.0,{1 + i / 1000}" for i in range(500)]
    (tmp_path / "walk.csv").write_text("\n".join(["time,ax,ay,az", *rows]) + "\n")
    out = tmp_path / "walk.mcap"
    assert run_example("import_csv", tmp_path / "walk.csv", out) == f"{out}: acc, 500 samples at 50 Hz\n"
    np.testing.assert_allclose(read_recording(out).streams["acc"].values[-1], [0, 0, 1.499], rtol=1e-6)


def test_certificate(bundle: SmallBundle) -> None:
    lines = run_example("certificate", bundle.path, bundle.public_key_path).splitlines()
    assert lines[0].startswith("small 1, signed by ")
    assert len([line for line in lines if re.match(r"(acc|gyro|acc\+gyro) on \w+: macro-F1 0\.5", line)]) == 9


def test_golden_run(bundle: SmallBundle) -> None:
    lines = run_example("golden_run", bundle.path, bundle.public_key_path).splitlines()
    assert len(lines) == 3 and all(re.search(r": 5 windows, off by \S+ of 0\.\d+ allowed$", line) for line in lines)


def test_enrol(bundle: SmallBundle, recording: Path) -> None:
    printed = run_example("enrol", recording, "5", "wave", bundle.path, bundle.public_key_path)
    assert re.search(r"^learned 'wave' from \d+ windows$", printed, re.MULTILINE)
    assert re.search(r"^wave: [1-9]\d*$", printed, re.MULTILINE)
    assert list(bundle.path.parent.glob("*enrolled*")) == []


def test_custom_wearable() -> None:
    first, second = run_example("custom_wearable").splitlines()
    assert first == "packet 7: acc [0.012000000104308128, -0.5, 0.9810000061988831] g"
    assert second == "counted as a bad packet: a glove's packet has 8 bytes, not 5"


def test_scan_and_live(bundle: SmallBundle, recording: Path) -> None:
    names = [spec.name for spec in default_wearables(read_recording(recording))]
    with simulated(recording) as bluetooth:
        printed = run_example("scan", bluetooth)
        assert all(re.search(rf"^{name} ([0-9A-F]{{2}}:){{5}}\S+ -\d+ dBm: acc, gyro", printed, re.M) for name in names)
    with simulated(recording) as bluetooth, trusted(bundle):
        printed = run_example("live_async", bundle.path, "6", bluetooth, *names)
    counts = dict(re.findall(r"^(\w+): (\d+)$", printed, re.MULTILINE))
    assert sum(map(int, counts.values())) > 3 and set(counts) <= set(bundle.open().manifest.labels) | {"no sensor"}
    assert all(f"{name}: " in printed for name in names)


@contextmanager
def trusted(bundle: SmallBundle) -> Iterator[None]:
    """The home of this test run trusts the bundle's key."""
    folder = Path(os.environ["ARMLET_HOME"]) / "trusted"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "examples.pub"
    link.write_bytes(bundle.public_key_path.read_bytes())
    yield
    link.unlink()


def test_live(bundle: SmallBundle, recording: Path) -> None:
    names = [spec.name for spec in default_wearables(read_recording(recording))]
    with simulated(recording) as bluetooth, trusted(bundle):
        command: list[str | Path] = [sys.executable, EXAMPLES["live"], bundle.path, bluetooth, *names]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        decisions = [process.stdout.readline().split() for _ in range(4)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert all(decision[2] == "acc+gyro" and decision[1] in bundle.open().manifest.labels for decision in decisions[1:])


def test_virtual_wearables(bundle: SmallBundle, recording: Path) -> None:
    lines = run_example("virtual_wearables", recording, bundle.path, "8", bundle.public_key_path).splitlines()
    subsets = {line.partition(" on ")[2] for line in lines}
    assert {"acc+gyro", "gyro"} <= subsets and len(lines) > 10


def test_deploy(bundle: SmallBundle, tmp_path: Path) -> None:
    lines = run_example("deploy", bundle.path, tmp_path / "slot", bundle.public_key_path).splitlines()
    assert lines[0] == "small 1 is in use in place a"
    assert Path(lines[1].removeprefix("its file: ")).read_bytes() == bundle.path.read_bytes()


def test_latency(bundle: SmallBundle) -> None:
    lines = run_example("latency", bundle.path, "0.3", bundle.public_key_path).splitlines()
    figures = [re.fullmatch(r"(\w+): a decision takes (\d+) us \(p99 (\d+)\), (\d+) MiB, .+ start", x) for x in lines]
    assert len(figures) == 3 and all(match and int(match[2]) > 0 and int(match[4]) > 10 for match in figures)


def test_windows(recipe: Path) -> None:
    printed = run_example("windows", recipe)
    assert re.match(r"\d+ windows to learn from, \d+ held out: macro-F1 0\.\d+\n", printed) and macro_f1(printed) > 0.4


def test_own_encoder(recipe: Path, tmp_path: Path) -> None:
    lines = run_example("own_encoder", recipe, tmp_path).splitlines()
    assert len(lines) == 15
    scores = ast.literal_eval(lines[-1].partition(" ")[2])
    assert set(scores) == {"acc+pulse", "acc", "pulse"} and scores["acc+pulse"] > 0.5


def test_train_and_export(runs: Path, tmp_path: Path) -> None:
    lines = run_example("export", runs / "finetune", tmp_path / "waves.armlet", "litert").splitlines()
    assert f"{tmp_path / 'waves.armlet'}: {(tmp_path / 'waves.armlet').stat().st_size} bytes" in lines
    rows = [line for line in lines if " on litert: macro-F1 " in line]
    assert len(rows) == 3 and all(macro_f1(row) > 0.5 for row in rows)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_one_page_of_the_public_interface(name: str) -> None:
    text = EXAMPLES[name].read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 66
    assert re.search(rf"``python {name}\.py", ast.get_docstring(tree) or ""), "the docstring says how to run it"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("armlet_"):
            package, *inside = (node.module or "").split(".")
            assert len(inside) <= 1, node.module
            if inside and not (package == "armlet_runtime" and inside[0] in ROOT_MODULES) and inside != ["recipes"]:
                face = __import__(f"{package}.{inside[0]}", fromlist=["__all__"])
                assert {alias.name for alias in node.names} <= set(face.__all__), node.module


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    assert len(EXAMPLES) >= 15
    assert [
        name for name in EXAMPLES if f'run_example("{name}"' not in text and f'EXAMPLES["{name}"]' not in text
    ] == []
