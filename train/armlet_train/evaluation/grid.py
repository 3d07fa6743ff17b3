"""The grid of a suite: its cells, each a training with its figures, one after the other, and resumed after a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import msgspec

from armlet_runtime.files import write_atomic

FiguresT = TypeVar("FiguresT")

Advance = Callable[[int, int], None]
"""Is called with the steps that are done and all steps."""

PARTS = 100
"""Steps that a cell counts for in the progress of its grid."""


@dataclass(frozen=True)
class Cell(Generic[FiguresT]):
    """One training of a suite, and its figures.

    Attributes:
        file: Name of the file that keeps the figures, relative to the suite's folder. It holds a digest of everything
            that the figures depend on: figures of an earlier recipe are not taken for those of this one.
        train_and_score: Makes the figures; reports its progress to the function that it is given.
    """

    file: str
    train_and_score: Callable[[Advance], FiguresT]


def run_grid(
    cells: Sequence[Cell[FiguresT]], kind: type[FiguresT], folder: Path, advance: Advance = lambda done, total: None
) -> list[FiguresT]:
    """The figures of all cells, in their order; those that a file keeps are not made again.

    Args:
        cells: The trainings.
        kind: Type of their figures, which msgspec can write as JSON.
        folder: Of the suite.
        advance: Called with parts done and parts in all, :data:`PARTS` for each cell.
    """
    figures = []
    for number, cell in enumerate(cells):
        path = folder / cell.file
        if not path.exists():
            made = cell.train_and_score(partial(_report, advance, number, len(cells)))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, msgspec.json.encode(made))
        # What was just made is read as well, so that both ways give the same figures.
        figures.append(msgspec.json.decode(path.read_bytes(), type=kind))
        advance((number + 1) * PARTS, len(cells) * PARTS)
    return figures


def _report(advance: Advance, cells_before: int, cells: int, done: int, total: int) -> None:
    advance(cells_before * PARTS + PARTS * done // total, cells * PARTS)


class Table(NamedTuple):
    """A title, the names of the columns, and the cells."""

    title: str
    columns: list[str]
    rows: list[list[str]]
