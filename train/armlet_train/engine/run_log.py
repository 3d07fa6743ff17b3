"""The log of a training: a line of JSON an epoch, curves as a picture, TensorBoard and Weights & Biases.

``metrics.jsonl`` and ``training.png`` are always written. TensorBoard's files are written if the package is installed.
Weights & Biases gets the same numbers if it is installed and asked for by its own environment (``WANDB_PROJECT``).
"""

from __future__ import annotations

import importlib.util
import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from armlet_runtime.files import write_atomic

from .. import distributed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CURVES = 8
"""Curves in one plot; of more (the 31 subsets of five modalities, say) mean and extremes are drawn."""


class RunLog:
    """The log of one run; of many processes the first writes, the others do nothing.

    It is called with an epoch's report: a struct with ``epoch``, numbers, and groups of numbers by name.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        """Go on in a run's folder.

        Args:
            folder: The run's.
            stage: ``pretrain`` or ``finetune``.
        """
        self._folder = folder
        self._stage = stage
        self._board: Any = None
        self._wandb: Any = None

    def __enter__(self) -> RunLog:
        """Open what is installed and asked for."""
        if distributed.is_first():
            if importlib.util.find_spec("tensorboard"):
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self._folder / "tensorboard"))
            if "WANDB_PROJECT" in os.environ and importlib.util.find_spec("wandb"):
                import wandb

                # A run that is begun again goes on there as well, by the identifier kept in its folder.
                kept = self._folder / "wandb-id"
                if not kept.exists():
                    write_atomic(kept, uuid.uuid4().hex.encode())
                name = f"{self._folder.resolve().name} ({self._stage})"
                self._wandb = wandb.init(dir=self._folder, name=name, id=kept.read_text(), resume="allow")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, and draw the curves."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)
        if error is None and distributed.is_first():
            plot(self._folder)

    def __call__(self, report: msgspec.Struct) -> None:
        """Log an epoch; an epoch that a resumed training repeats replaces its earlier line."""
        if not distributed.is_first():
            return
        numbers: dict[str, Any] = msgspec.to_builtins(report)
        epoch = numbers["epoch"]
        path = self._folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        write_atomic(path, b"\n".join([*lines[:epoch], msgspec.json.encode(report)]) + b"\n")
        scalars = flatten({f"{self._stage}/{name}": value for name, value in numbers.items() if name != "epoch"})
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, epoch)
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log(scalars, step=epoch)


def flatten(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Numbers, and groups of them by name, as one level: ``group/name``."""
    flat: dict[str, float] = {}
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            flat |= flatten({f"{name}/{inner}": number for inner, number in value.items()})
        else:
            flat[name] = float(value)
    return flat


def plot(folder: Path) -> None:
    """Draw ``training.png`` from a run's ``metrics.jsonl``: a plot for single numbers, and one for each group.

    A run without epochs gets none.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    singles = {name: [each[name] for each in epochs] for name in epochs[0] if isinstance(epochs[0][name], float)}
    groups = {
        name: {inner: [each[name][inner] for each in epochs] for inner in value}
        for name, value in epochs[0].items()
        if isinstance(value, dict)
    }
    plots = ({"loss": singles} if singles else {}) | groups
    figure = Figure(figsize=(6 * len(plots), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(plots), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, plots.items(), strict=True):
        _draw(axis, title, [each["epoch"] + 1 for each in epochs], curves)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(folder / "training.png", picture.getvalue())


def _draw(axis: Axes, title: str, epochs: list[int], curves: dict[str, list[float]]) -> None:
    if len(curves) > MOST_CURVES:
        each_epoch = list(zip(*curves.values(), strict=True))
        curves = {
            "highest": [max(values) for values in each_epoch],
            "mean": [sum(values) / len(values) for values in each_epoch],
            "lowest": [min(values) for values in each_epoch],
        }
    for name, values in curves.items():
        axis.plot(epochs, values, label=name, marker="o" if len(epochs) == 1 else None)
    # Terms of a loss lie decades apart; scores between 0 and 1 do not.
    numbers = [value for values in curves.values() for value in values]
    if min(numbers) > 0 and max(numbers) > 30 * min(numbers):
        axis.set_yscale("log")
    axis.set_title(title)
    axis.set_xlabel("epoch")
    axis.grid(alpha=0.3)
    axis.legend()
