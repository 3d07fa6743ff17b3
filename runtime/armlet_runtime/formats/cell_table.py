"""Tables as text: rows and columns of cells from CSV or Parquet, each mistake with its file, row and column."""

from __future__ import annotations

import csv
import io
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ..arrays import Float32, Float64, Int64
from ..errors import DataError, MissingExtraError

PIECE = 1 << 14
"""Rows that are looked at together: enough that each needs little time, and few enough to need little memory."""

MISSING = ("", "nan", "null", "na")
"""Spellings of an unknown value, in any case."""


def mistake(file: str, problem: str, row: int | None = None, column: str | None = None) -> DataError:
    """One mistake in a file that somebody brought: ``file, row 7, column x: problem``."""
    place = [file]
    place += [f"row {row}"] if row is not None else []
    place += [f"column {column}"] if column is not None else []
    return DataError(printable(f"{', '.join(place)}: {problem}"))


class Cells:
    """The texts of one column, in little more memory than the file needs for them.

    A day of a sensor has millions of cells, and as strings of their own each would take some 60 bytes. So those of
    :data:`PIECE` rows are kept as one string, and parted again when they are looked at.
    """

    def __init__(self, pieces: Iterable[Sequence[str]] = ()) -> None:
        """``pieces``: of :data:`PIECE` rows each, but for the last, which may have fewer."""
        self._pieces: list[str | list[str]] = []
        self._count = 0
        for piece in pieces:
            self.append(piece)

    def append(self, piece: Sequence[str]) -> None:
        """Add the next piece; it has :data:`PIECE` rows, unless it is the last."""
        joined = "\n".join(piece)
        whole = joined.count("\n") == len(piece) - 1  # no cell has a line feed of its own
        self._pieces.append(joined if whole else list(piece))
        self._count += len(piece)

    def pieces(self) -> Iterator[list[str]]:
        """Lists of cells, in order."""
        for piece in self._pieces:
            yield piece.split("\n") if isinstance(piece, str) else piece

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self.pieces())

    def __getitem__(self, index: int) -> str:
        piece = self._pieces[index // PIECE]
        return (piece.split("\n") if isinstance(piece, str) else piece)[index % PIECE]


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        file: Its name, for messages.
        names: Of the columns; empty strings for those without.
        lines: (rows,) line of each row in the file, from 1.
        columns: Texts of each column, in the order of ``names``.
    """

    file: str
    names: tuple[str, ...]
    lines: Int64
    columns: Sequence[Cells]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.lines)

    def column(self, *names: str) -> int | None:
        """The first column with one of these names, in any case; None without one."""
        lower = [name.lower() for name in self.names]
        return next((lower.index(name.lower()) for name in names if name.lower() in lower), None)

    def number(self, index: int, column: int) -> float:
        """One cell as a number; NaN if none is known.

        Raises:
            DataError: It is something else than a finite number.
        """
        return self._number(index, column, self.columns[column][index])

    def numbers(self, column: int) -> Float64:
        """A column as numbers (rows,); NaN where none is known.

        Raises:
            DataError: A cell holds something else than a finite number.
        """
        return np.concatenate([np.zeros(0), *(values for _, values in self._numbers(column))])

    def float32(self, columns: Sequence[int], factor: float = 1.0, skip: int = 0) -> Float32:
        """Columns times a factor, as recordings hold them: (rows - skip, columns), without the first rows.

        Raises:
            DataError: A cell holds no finite number, or a number too large for a float32.
        """
        narrow = np.empty((self.rows, len(columns)), np.float32)
        for place, column in enumerate(columns):
            for start, values in self._numbers(column):
                part = narrow[start : start + len(values), place : place + 1]
                part[:] = self.narrowed([column], values[:, None], range(start, start + len(values)), factor, skip)
        return narrow[skip:]

    def narrowed(
        self, columns: Sequence[int], values: Float64, rows: Sequence[int], factor: float = 1.0, skip: int = 0
    ) -> Float32:
        """Values (n, columns) of some rows and columns times a factor, as float32.

        Raises:
            DataError: One is too large for that, in another row than the first ``skip``.
        """
        with np.errstate(over="ignore"):
            narrow = (values * factor).astype(np.float32)
        if np.isinf(narrow).any():
            for row, column in np.argwhere(np.isinf(narrow)):
                if rows[row] >= skip:
                    raise self.wrong(int(rows[row]), columns[int(column)], "is larger than a float32 can be")
        return narrow

    def _numbers(self, column: int) -> Iterator[tuple[int, Float64]]:
        """A column's numbers piece by piece, each with the index of its first row."""
        start = 0
        for cells in self.columns[column].pieces():
            try:
                values = np.fromiter(map(float, cells), np.float64, len(cells))
                known = bool(np.isfinite(values).all())
            except ValueError:
                known = False
            if not known:
                values = np.array([self._number(start + at, column, text) for at, text in enumerate(cells)])
            yield start, values
            start += len(cells)

    def _number(self, index: int, column: int, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.inf
        if math.isfinite(value):
            return value
        if text.strip().lower() not in MISSING:
            raise self.wrong(index, column, f"'{shown(text)}' is not a number")
        return math.nan

    def wrong(self, index: int, column: int | None, problem: str) -> DataError:
        """A mistake in one row."""
        return mistake(self.file, problem, int(self.lines[index]), None if column is None else self.title(column))

    def title(self, column: int) -> str:
        """The name of a column in messages."""
        return self.names[column] or str(column + 1)


def printable(text: str) -> str:
    """Text on one line, whatever characters a file that somebody brought has put into it."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def shown(text: str) -> str:
    """A cell of a file that somebody brought, short enough for a sentence."""
    clean = printable(text.strip())
    return clean if len(clean) <= 40 else f"{clean[:37]}..."


def check_utf8(data: bytes, file: str) -> None:
    """Refuse a file that is no text.

    Raises:
        DataError: It is not UTF-8 (with or without a mark).
    """
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise mistake(file, "is not text in UTF-8", data[: error.start].count(b"\n") + 1) from error


def read_table(data: bytes, file: str, delimiter: str | None = None, header: bool = True) -> Table:
    """The rows of a text file; empty lines are left out, and so are empty cells at the ends of all rows.

    Args:
        data: The file.
        file: Its name, for messages.
        delimiter: Between cells; None to tell it from the first line (``,``, ``;`` or a tab). Where it is not a comma,
            numbers may have one.
        header: Whether the first line names the columns.

    Raises:
        DataError: It is no text, holds no rows, or a row is longer or shorter than the first.
    """
    check_utf8(data, file)
    first = data[: data.find(b"\n") + 1 or None].decode("utf-8-sig")
    if delimiter is None:
        delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), delimiter=delimiter)
    names: tuple[str, ...] | None = None
    columns: list[Cells] = []
    lines = array("q")
    rows: list[list[str]] = []
    pointed = False

    def keep() -> None:
        for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
            column.append([_pointed(cell) for cell in cells] if pointed else cells)
        rows.clear()

    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                # Some writers end the header, the rows, or both with a delimiter.
                names = tuple(cell.strip() for cell in cells) if header else ("",) * len(cells)
                while header and names and not names[-1]:
                    names = names[:-1]
                columns = [Cells() for _ in names]
                if header:
                    continue
            extra = len(cells) - len(names)
            if extra < 0 or any(cell.strip() for cell in cells[len(names) :]):
                what = "the header" if header else "the first row"
                cut = not data.endswith(b"\n") and reader.line_num == data.count(b"\n") + 1
                hint = ": the file was cut off here, so remove this row" if extra < 0 and cut else ""
                number = f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"
                raise mistake(file, f"has {number}; {what} has {len(names)}{hint}", reader.line_num)
            if not lines:
                pointed = delimiter != "," and any(_COMMA.fullmatch(cell) for cell in cells[: len(names)])
            lines.append(reader.line_num)
            rows.append(cells[: len(names)])
            if len(rows) == PIECE:
                keep()
    except csv.Error as error:
        raise mistake(file, f"cannot be read as a table: {error}", reader.line_num) from error
    if names is None:
        raise mistake(file, "is empty")
    if rows:
        keep()
    return Table(file, names, np.array(lines, np.int64), columns)


# A number of a writer whose language has a comma where others have a point.
_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*", re.ASCII)


def _pointed(cell: str) -> str:
    return cell.replace(",", ".") if _COMMA.fullmatch(cell) else cell


def arrow() -> tuple[Any, Any]:
    """The modules ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        MissingExtraError: They are not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet needs pyarrow, which is not installed: pip install 'armlet[recordings]'"
        ) from error
    return pyarrow, parquet


def read_parquet(data: bytes, file: str) -> Table:
    """A Parquet file as the text that it would be in a CSV file, so that both are understood alike."""
    pa, parquet = arrow()
    try:
        table = parquet.read_table(pa.BufferReader(data))
        columns = []
        for column in table.columns:
            if pa.types.is_timestamp(column.type):
                column = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64())
            parts = (column.slice(start, PIECE).to_pylist() for start in range(0, table.num_rows, PIECE))
            columns.append(Cells(["" if cell is None else str(cell) for cell in part] for part in parts))
        names = [
            f"{name} [ns]" if pa.types.is_timestamp(kind) else name
            for name, kind in zip(table.column_names, table.schema.types, strict=True)
        ]
    except Exception as error:  # Arrow raises several kinds on bytes that it cannot read
        raise mistake(file, f"is a damaged Parquet file: {error}") from error
    return Table(file, tuple(names), np.arange(1, table.num_rows + 1), columns)
