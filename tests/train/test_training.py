"""Model, masks, losses, augmentation and exact resumption."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Recording
from armlet_runtime.windows import Normalisation, fill_gaps
from armlet_train.data import augment
from armlet_train.engine import finetune
from armlet_train.engine.run_log import RunLog
from armlet_train.methods import build_pretraining
from armlet_train.models.base import ArmletModel, fold_batchnorm
from armlet_train.models.build import build_model
from armlet_train.recipes import PretrainRecipe, find_recipe, load_recipe

RECIPE = load_recipe(find_recipe("hapt"))
ACC = Modality("acc", ("x", "y", "z"), "g", 50.0)
GYRO = Modality("gyro", ("x", "y", "z"), "rad/s", 50.0)


@pytest.fixture
def model() -> ArmletModel:
    torch.manual_seed(0)
    return build_model(RECIPE.model, (ACC, GYRO), {"acc": 128, "gyro": 128}, 6).eval()


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


def test_time_runs_unevenly_but_from_end_to_end() -> None:
    torch.manual_seed(4)
    ramp = torch.arange(128.0).expand(50, 2, 128)
    warped = augment.warp_time(ramp, augment.random_speeds(50, 0.3, torch.device("cpu")))
    torch.testing.assert_close(warped[:, :, [0, -1]], ramp[:, :, [0, -1]])
    steps = warped.diff(dim=2)
    assert (steps > 0).all() and steps.max() > 1.2 and steps.min() < 0.8
    torch.testing.assert_close(warped[:, 0], warped[:, 1])  # one clock for all channels
    # Even speed, however fast, changes nothing.
    even = augment.warp_time(ramp, torch.full((50, augment.WARP_KNOTS), 1.7))
    torch.testing.assert_close(even, ramp, rtol=0, atol=1e-3)


def test_modalities_of_different_rates_are_warped_alike() -> None:
    torch.manual_seed(5)
    speeds = augment.random_speeds(20, 0.3, torch.device("cpu"))
    fast = torch.linspace(0, 1, 257).expand(20, 1, 257)
    slow = torch.linspace(0, 1, 65).expand(20, 1, 65)
    torch.testing.assert_close(
        augment.warp_time(fast, speeds)[:, :, ::4], augment.warp_time(slow, speeds), rtol=0, atol=5e-3
    )


def test_a_lacking_modality_is_a_mask_token_in_fine_tuning(model: ArmletModel) -> None:
    windows, labels = random_windows(6), torch.arange(6)
    present = torch.tensor([[True, True], [True, False], [False, True]]).repeat(2, 1)
    objective = finetune.Finetuning(model, RECIPE.finetune).eval()
    loss = objective(windows, present, labels)["loss"]
    noise = {name: torch.where(present[:, place, None, None], window, 1e3 * torch.randn_like(window))
             for place, (name, window) in enumerate(windows.items())}  # fmt: skip
    torch.testing.assert_close(objective(noise, present, labels)["loss"], loss)
    # Each window in each of the subsets of what it has, and in no other.
    wanted = torch.zeros(())
    for row, window in enumerate(present.tolist()):
        for subset in ([True, True], [True, False], [False, True]):
            if all(has or not asked for has, asked in zip(window, subset, strict=True)):
                alone = {name: values[row : row + 1] for name, values in windows.items()}
                logits, _ = model(alone, torch.tensor([subset]))
                smoothing = RECIPE.finetune.label_smoothing
                wanted = wanted + F.cross_entropy(logits, labels[row : row + 1], label_smoothing=smoothing) / 6
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_step_is_one_graph(stage: str, model: ArmletModel) -> None:
    """Nothing in a step needs the host: it can be captured whole, which is what makes it fast on a GPU."""
    windows, present = random_windows(8), torch.ones(8, 2, dtype=torch.bool)
    if stage == "pretrain":
        assert isinstance(RECIPE.pretrain, PretrainRecipe)
        method = build_pretraining(model, RECIPE.pretrain).train()
        views = (windows, random_windows(8))[: method.views]
        whole = torch.compile(method, backend="aot_eager", fullgraph=True)
        terms = whole(views, present)
    else:
        whole = torch.compile(finetune.Finetuning(model, RECIPE.finetune), backend="aot_eager", fullgraph=True)
        terms = whole(windows, present, torch.zeros(8, dtype=torch.long))
    terms["loss"].backward()
    assert model.mask_tokens.grad is not None


def test_curves_of_many_subsets_are_their_mean_and_extremes(tmp_path: Path) -> None:
    with RunLog(tmp_path, "finetune") as log:
        for epoch in range(3):
            scores = {f"subset{number}": 0.5 + 0.01 * number + 0.1 * epoch for number in range(31)}
            log(finetune.EpochReport(epoch, 3.0 - epoch, scores))
        log(finetune.EpochReport(1, 9.0, scores))  # a resumed training says an epoch again
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1] and lines[1]["loss"] == 9.0
    assert (tmp_path / "training.png").stat().st_size > 5000


NO_PRETRAINING = '[pretrain]\nmethod = "none"\nseed = 0\n\n[finetune]'


def armlet(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "armlet_runtime", *map(str, arguments)]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.full("starts and kills whole trainings")
@pytest.mark.long(limit_s=300, reason="starts and kills whole trainings")
def test_killed_training_ends_with_the_same_weights(stage: str, recordings: list[Recording], tmp_path: Path) -> None:
    assert recordings  # HAPT is in the cache
    text = find_recipe("hapt-tiny").read_text().replace("epochs = 2\nbatch = 64", "epochs = 2\nbatch = 256")
    recipe = tmp_path / "short.toml"
    recipe.write_text(text + "\n[checkpoints]\nevery_s = 0.0\nlast = 3\n")
    pretrained = tmp_path / "pretrained"
    source: list[str | Path] = []
    if stage == "finetune":
        nothing = tmp_path / "nothing.toml"
        nothing.write_text(re.sub(r"\[pretrain\].*\[finetune\]", NO_PRETRAINING, text, flags=re.DOTALL))
        subprocess.run(armlet("pretrain", nothing, "--out", pretrained), check=True, capture_output=True)
        source = ["--from", pretrained]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(armlet(stage, recipe, *source, "--out", whole), check=True, capture_output=True)

    process = subprocess.Popen(armlet(stage, recipe, *source, "--out", killed), stdout=subprocess.DEVNULL)
    kept = killed / "checkpoints"
    while not list(kept.glob("*-00000000[5-9].pt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "run.json").exists(), "it ended before it could be killed"
    steps = sorted(int(path.stem[-9:]) for path in kept.glob("*-0*.pt"))
    assert 1 <= len(steps) <= 4 and steps[-1] < 39  # in the midst of an epoch; the last few, and one being removed
    subprocess.run(armlet(stage, recipe, *source, "--out", killed), check=True, capture_output=True)
    assert len(list(kept.glob("*.pt"))) == 3

    ours, theirs = (torch.load(folder / "model.pt", weights_only=True) for folder in (killed, whole))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert (killed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()

    # What a run tells of itself.
    info = json.loads((whole / "run.json").read_bytes())
    assert set(info["made_with"]) == {"armlet", "torch", "numpy", "python"} and info["processes"] == 1
    assert (whole / "recipe.toml").read_text() == recipe.read_text()
    assert (whole / "training.png").read_bytes().startswith(b"\x89PNG")
    assert importlib.util.find_spec("tensorboard") is None or list((whole / "tensorboard").glob("events*"))

    # A folder with a run that has ended is not trained over.
    again = subprocess.run(armlet(stage, recipe, *source, "--out", whole), capture_output=True, text=True)
    assert again.returncode == 2
    assert "has ended" in again.stderr


@pytest.mark.full("on what the demo made, which trains for minutes")
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


@pytest.mark.full("on what the demo made, which trains for minutes")
def test_run_that_lost_its_weights_is_one_sentence(demo_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_dir / "finetune", tmp_path / "run")
    (tmp_path / "run" / "model.pt").write_bytes(b"nothing")
    refused = subprocess.run(armlet("evaluate", tmp_path / "run"), capture_output=True, text=True)
    assert refused.returncode == 2
    assert "model.pt cannot be read" in refused.stderr
