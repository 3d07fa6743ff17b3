"""Mistakes in a user's folder, by file, row and column."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

# Rows that are named of one kind of mistake in one column of a file; further rows are counted.
ROWS_NAMED = 3


class Mistake(msgspec.Struct, frozen=True):
    """One thing that is wrong.

    Attributes:
        file: Relative to the folder.
        row: Line of a text file (the header is line 1), or row of a Parquet file (from 1); None for all of it.
        column: By name; for ``dataset.toml`` the key; None for all of them.
        problem: The mistake, and its remedy.
    """

    file: str
    row: int | None
    column: str | None
    problem: str

    def __str__(self) -> str:
        """``file, row 7, column x: problem``."""
        place = [self.file]
        place += [f"row {self.row}"] if self.row is not None else []
        place += [f"column {self.column}"] if self.column is not None else []
        return f"{', '.join(place)}: {self.problem}"


class CheckReport(msgspec.Struct, frozen=True):
    """What ``armlet data check --json`` writes; ``more``: how many mistakes were found beyond those listed."""

    folder: str
    recordings: int
    people: int
    mistakes: list[Mistake]
    more: int


@dataclass
class Mistakes:
    """Collects mistakes about one file at a time."""

    limit: float = math.inf
    listed: list[Mistake] = field(default_factory=list)
    more: int = 0

    def add(self, file: str, problem: str, row: int | None = None, column: str | None = None) -> None:
        """Note a mistake, or count it where there are too many."""
        if len(self.listed) < self.limit:
            self.listed.append(Mistake(file, row, column, problem))
        else:
            self.more += 1

    def rows(self, file: str, column: str | None, rows: NDArray[np.int64], problem: Callable[[int], str]) -> None:
        """The same mistake in some rows; ``problem`` of an index into them."""
        for index in range(min(len(rows), ROWS_NAMED)):
            self.add(file, problem(index), int(rows[index]), column)
        if len(rows) > ROWS_NAMED:
            self.add(file, f"the same in {len(rows) - ROWS_NAMED} more rows", None, column)
