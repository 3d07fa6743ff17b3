"""What ``armlet pretrain`` and ``armlet finetune`` share: options and progress."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, folder and device."""
    parser.add_argument("recipe", help="a recipe's name (hapt, hapt-demo) or the path of its .toml file")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="RUN", help="folder of the run; begun again, it goes on"
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one"
    )


@contextlib.contextmanager
def progress_bar(title: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal, or on ``console``; it takes steps done and steps in all. One process of many shows it."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from .. import distributed

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not distributed.is_first()) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
