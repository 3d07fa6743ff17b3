"""Model, masks, losses, augmentation and exact resumption."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from armlet_runtime.modalities import Modality
from armlet_runtime.recording import Recording
from armlet_runtime.windows import Normalisation, fill_gaps
from armlet_train import augment, finetune
from armlet_train.models import ArmletModel, build, fold_batchnorm
from armlet_train.recipes import find_recipe, load_recipe

RECIPE = load_recipe(find_recipe("hapt"))
ACC = Modality("acc", ("x", "y", "z"), "g", 50.0)
GYRO = Modality("gyro", ("x", "y", "z"), "rad/s", 50.0)


@pytest.fixture
def model() -> ArmletModel:
    torch.manual_seed(0)
    return build(RECIPE.model, (ACC, GYRO), {"acc": 128, "gyro": 128}, 6).eval()


def random_windows(count: int) -> dict[str, torch.Tensor]:
    return {name: torch.randn(count, 3, 128) for name in ("acc", "gyro")}


def test_absent_modality_has_no_influence(model: ArmletModel) -> None:
    windows = random_windows(4)
    present = torch.tensor([[True, False]]).expand(4, 2)
    logits, _ = model(windows, present)
    other, _ = model({**windows, "gyro": torch.full((4, 3, 128), 1e6)}, present)
    torch.testing.assert_close(logits, other, rtol=0, atol=0)
    both, _ = model(windows, torch.ones(4, 2, dtype=torch.bool))
    assert not torch.equal(logits, both)


def test_subset_logits_are_those_of_each_subset_alone(model: ArmletModel) -> None:
    windows = random_windows(5)
    rows = finetune.subset_logits(model, windows)
    for row, present in zip(rows, ([True, True], [True, False], [False, True]), strict=True):
        alone, _ = model(windows, torch.tensor([present]).expand(5, 2))
        torch.testing.assert_close(row, alone)


def test_folding_batchnorm_keeps_the_function(model: ArmletModel) -> None:
    model.train()
    for _ in range(3):  # statistics that are not those of the start
        model(random_windows(16), torch.ones(16, 2, dtype=torch.bool))
    model.eval()
    folded = fold_batchnorm(model)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded.modules())
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules())
    windows, present = random_windows(8), torch.ones(8, 2, dtype=torch.bool)
    torch.testing.assert_close(folded(windows, present)[0], model(windows, present)[0], rtol=1e-5, atol=1e-5)


def test_rotations_are_rotations() -> None:
    torch.manual_seed(2)
    turns = augment.random_rotations(50, 30.0, torch.device("cpu"))
    eye = torch.eye(3).expand(50, 3, 3)
    torch.testing.assert_close(turns @ turns.transpose(1, 2), eye, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(50))


@pytest.mark.parametrize("knee", [None, 0.05])
def test_training_normalises_as_the_board_does(knee: float | None) -> None:
    numbers = Normalisation((0.1, -0.2, 0.9), (0.3, 0.2, 0.4), knee)
    windows = torch.randn(20, 3, 128)
    ours = augment.Normalise(numbers)(windows).numpy()
    np.testing.assert_allclose(ours, numbers.apply(windows.numpy()), rtol=1e-5, atol=1e-6)


def test_gaps_are_filled_as_the_board_fills_them() -> None:
    generator = np.random.default_rng(3)
    windows = torch.randn(200, 3, 128)
    start = torch.from_numpy(generator.integers(0, 100, 200))
    size = torch.minimum(torch.from_numpy(generator.integers(0, 60, 200)), 128 - start)
    held = augment.hold_gap(windows, start, size)
    for window, first, count, mine in zip(windows, start.tolist(), size.tolist(), held, strict=True):
        covered = np.ones(128, bool)
        covered[first : first + count] = False
        np.testing.assert_array_equal(mine.numpy().T, fill_gaps(window.numpy().T.copy(), covered))


def armlet(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "armlet_runtime", *map(str, arguments)]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_killed_training_ends_with_the_same_weights(stage: str, recordings: list[Recording], tmp_path: Path) -> None:
    assert recordings  # HAPT is in the cache
    text = find_recipe("hapt-tiny").read_text().replace("epochs = 1\nbatch = 256", "epochs = 3\nbatch = 2048")
    text = text.replace("epochs = 2\nbatch = 64", "epochs = 3\nbatch = 512")
    recipe = tmp_path / "short.toml"
    recipe.write_text(text)
    pretrained = tmp_path / "pretrained"
    source: list[str | Path] = []
    if stage == "finetune":
        subprocess.run(armlet("pretrain", recipe, "--out", pretrained), check=True, capture_output=True)
        source = ["--from", pretrained]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(armlet(stage, recipe, *source, "--out", whole), check=True, capture_output=True)

    process = subprocess.Popen(armlet(stage, recipe, *source, "--out", killed), stdout=subprocess.DEVNULL)
    metrics = killed / "metrics.jsonl"
    for _ in range(1200):
        if metrics.exists() and process.poll() is None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "run.json").exists(), "it ended before it could be killed"
    subprocess.run(armlet(stage, recipe, *source, "--out", killed), check=True, capture_output=True)

    ours, theirs = (torch.load(folder / "model.pt", weights_only=True) for folder in (killed, whole))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert (killed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()

    # A folder with a run that has ended is not trained over.
    again = subprocess.run(armlet(stage, recipe, *source, "--out", whole), capture_output=True, text=True)
    assert again.returncode == 2
    assert "has ended" in again.stderr


def test_evaluate_writes_every_subset_and_person(demo_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = armlet("evaluate", demo_dir / "finetune", "--split", "validation", "--json", out)
    subprocess.run(command, check=True, capture_output=True)
    figures = json.loads(out.read_text())
    assert [score["subset"] for score in figures["subsets"]] == ["acc+gyro", "acc", "gyro"]
    for score in figures["subsets"]:
        assert set(score["people"]) == {"7", "15", "22", "28"}
        assert np.sum(score["confusion"]) == figures["windows"] == 1296
        assert 0.3 < score["macro_f1"] < 1  # far from chance (0.17) even after seconds of training


def test_run_that_lost_its_weights_is_one_sentence(demo_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_dir / "finetune", tmp_path / "run")
    (tmp_path / "run" / "model.pt").write_bytes(b"nothing")
    refused = subprocess.run(armlet("evaluate", tmp_path / "run"), capture_output=True, text=True)
    assert refused.returncode == 2
    assert "model.pt cannot be read" in refused.stderr
