"""Runs: the folder that a training leaves, with all that later steps need.

``recipe.toml`` as used, ``run.json`` (what the model is, and with which versions, on what and at which commit it was
made), ``model.pt`` (weights only), ``metrics.jsonl`` (one line an epoch), ``training.png`` (its curves),
``tensorboard/`` if that is installed, and ``checkpoints/``.
"""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch

from armlet_runtime.errors import RunError, UsageError
from armlet_runtime.files import write_atomic
from armlet_runtime.modalities import Modality
from armlet_runtime.windows import Normalisation, WindowSpec

from .. import distributed
from ..data import Corpus, window_spec
from ..models import ArmletModel, build
from ..recipes import Recipe, load_recipe
from . import checkpoints


class RunInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``run.json``. ``stage``: ``pretrain`` or ``finetune``; ``git``: the working folder's commit, if it has one;
    ``machine``: system and what trained; ``processes``: how many did."""

    stage: str
    recipe: str
    modalities: tuple[Modality, ...]
    labels: tuple[str, ...]
    window: WindowSpec
    normalisation: dict[str, Normalisation]
    parameters: int
    seconds: float
    made_with: dict[str, str]
    git: str | None
    machine: str = ""
    processes: int = 1


@dataclass(frozen=True)
class TrainedRun:
    """A run as read back: its model in evaluation mode on the CPU, and what belongs to it."""

    folder: Path
    info: RunInfo
    recipe: Recipe
    model: ArmletModel

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """In the model's order."""
        return self.info.modalities

    @property
    def normalisation(self) -> dict[str, Normalisation]:
        """By modality name."""
        return self.info.normalisation

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.info.labels

    @property
    def window(self) -> WindowSpec:
        """Windows of the live loop."""
        return self.info.window


def build_model(recipe: Recipe, modalities: tuple[Modality, ...]) -> ArmletModel:
    """A fresh model, its weights drawn from the recipe's pretraining seed."""
    window = window_spec(recipe.data)
    lengths = {modality.name: window.samples(modality) for modality in modalities}
    torch.manual_seed(recipe.pretrain.seed)
    return build.build_model(recipe.model, modalities, lengths, len(recipe.data.labels))


def start_run(folder: Path, recipe_path: Path, stage: str) -> None:
    """Make a run's folder, or continue a run that was begun with the same recipe and has not ended.

    Of many processes the first does so, and the others wait.

    Raises:
        UsageError: The folder holds something else, or a run that has ended.
    """
    if distributed.is_first():
        _start_run(folder, recipe_path, stage)
    distributed.wait()


def _start_run(folder: Path, recipe_path: Path, stage: str) -> None:
    if folder.exists() and not (folder / "recipe.toml").exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and is not a run; give another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "recipe.toml"
    if kept.exists() and kept.read_bytes() != recipe_path.read_bytes():
        raise UsageError(f"{folder} was begun with another recipe; give another folder with --out, or delete it")
    if (folder / "run.json").exists():
        raise UsageError(f"{folder} holds a {stage} run that has ended; give another folder with --out, or delete it")
    write_atomic(kept, recipe_path.read_bytes())


def end_run(
    folder: Path,
    stage: str,
    recipe: Recipe,
    name: str,
    corpus: Corpus,
    model: ArmletModel,
    seconds: float,
    device: torch.device,
) -> None:
    """Write the model and ``run.json``, the latter last: a run that has it has ended. The first process does so."""
    if not distributed.is_first():
        return
    checkpoints.save(folder / "model.pt", model.state_dict())
    info = RunInfo(
        stage=stage,
        recipe=name,
        modalities=corpus.modalities,
        labels=corpus.labels,
        window=window_spec(recipe.data),
        normalisation=corpus.normalisation(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=seconds,
        made_with={package: version(package) for package in ("armlet", "torch", "numpy")}
        | {"python": platform.python_version()},
        git=_git_commit(),
        machine=f"{platform.platform()}, {_device_name(device)}",
        processes=distributed.world(),
    )
    write_atomic(folder / "run.json", msgspec.json.format(msgspec.json.encode(info), indent=2))
    print(f"{'pretrained' if stage == 'pretrain' else 'fine-tuned'} run: {folder}")


def load_run(folder: Path, stage: str | None = None) -> TrainedRun:
    """Read a run that has ended.

    Args:
        folder: The run's folder.
        stage: The stage that it must be of, ``pretrain`` or ``finetune``; either if not given.

    Raises:
        RunError: There is no run, it has not ended, is of another stage, or does not fit its own recipe.
    """
    try:
        info = msgspec.json.decode((folder / "run.json").read_bytes(), type=RunInfo)
    except FileNotFoundError:
        begun = (folder / "recipe.toml").exists()
        why = "has not ended: start the same command again" if begun else "is not a run of armlet (it has no run.json)"
        raise RunError(f"{folder} {why}") from None
    except msgspec.DecodeError as error:
        raise RunError(f"{folder / 'run.json'} cannot be read: {error}") from None
    if stage is not None and info.stage != stage:
        raise RunError(f"{folder} is a {info.stage} run, and a {stage} run is needed here")
    recipe = load_recipe(folder / "recipe.toml")
    model = build_model(recipe, info.modalities)
    try:
        model.load_state_dict(checkpoints.load(folder / "model.pt"))
    except RuntimeError as error:
        raise RunError(f"{folder / 'model.pt'} does not fit its recipe: {str(error).splitlines()[0]}") from None
    return TrainedRun(folder, info, recipe, model.eval())


def pick_device(name: str) -> torch.device:
    """``auto`` (a GPU if PyTorch sees one), ``cpu`` or ``cuda``.

    On a CPU PyTorch is set to one thread unless ``OMP_NUM_THREADS`` says otherwise: a step of these small models takes
    milliseconds, and waiting for a second thread on a busy core was seen to make it 14 times slower.

    Raises:
        UsageError: ``cuda`` was asked for, and PyTorch sees no GPU.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no CUDA GPU on this machine; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # torchrun numbers the processes of a machine; each has a GPU of its own.
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU with {torch.get_num_threads()} threads"
    )


def _git_commit() -> str | None:
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
