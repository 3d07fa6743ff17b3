"""Tables as text: rows and columns of cells from CSV or Parquet, each mistake with its file, row and column."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float64, Int64
from ..errors import DataError, MissingExtraError

MISSING = ("", "nan", "null", "na")
"""What stands, in any case, where a value is not known."""


def mistake(file: str, problem: str, row: int | None = None, column: str | None = None) -> DataError:
    """One mistake in a file that somebody brought: ``file, row 7, column x: problem``."""
    place = [file]
    place += [f"row {row}"] if row is not None else []
    place += [f"column {column}"] if column is not None else []
    return DataError(printable(f"{', '.join(place)}: {problem}"))


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        file: Its name, for messages.
        names: Of the columns; empty strings for those without.
        lines: Line of each row in the file, from 1.
        columns: Texts of each column, in the order of ``names``.
    """

    file: str
    names: tuple[str, ...]
    lines: list[int]
    columns: list[list[str]]

    def column(self, *names: str) -> int | None:
        """The first column of one of these names, in any case; None if there is none."""
        lower = [name.lower() for name in self.names]
        return next((lower.index(name.lower()) for name in names if name.lower() in lower), None)

    def numbers(self, column: int) -> Float64:
        """A column as numbers (rows,); NaN where none is known.

        Raises:
            DataError: A cell holds something else than a finite number.
        """
        values = np.empty(len(self.lines))
        for index, text in enumerate(self.columns[column]):
            try:
                value = float(text)
            except ValueError:
                value = math.inf
            if value - value != 0:  # NaN or infinite, or no number
                if text.strip().lower() not in MISSING:
                    raise self.wrong(index, column, f"'{shown(text)}' is not a number")
                value = math.nan
            values[index] = value
        return values

    def float32(
        self, columns: Sequence[int], values: Float64, rows: Sequence[int] | Int64, factor: float = 1.0
    ) -> NDArray[np.float32]:
        """Values (n, columns) of some rows and columns times a factor, as recordings hold them.

        Raises:
            DataError: One is too large for that.
        """
        with np.errstate(over="ignore"):
            narrow = (values * factor).astype(np.float32)
        if np.isinf(narrow).any():
            row, column = np.argwhere(np.isinf(narrow))[0]
            raise self.wrong(int(rows[row]), columns[int(column)], "is larger than a float32 can be")
        return narrow

    def wrong(self, index: int, column: int | None, problem: str) -> DataError:
        """A mistake in one row."""
        return mistake(self.file, problem, self.lines[index], None if column is None else self.title(column))

    def title(self, column: int) -> str:
        """What a column is called in messages."""
        return self.names[column] or str(column + 1)


def printable(text: str) -> str:
    """Text on one line, whatever characters a file that somebody brought has put into it."""
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


def shown(text: str) -> str:
    """A cell of a file that somebody brought, short enough for a sentence."""
    clean = printable(text.strip())
    return clean if len(clean) <= 40 else f"{clean[:37]}..."


def decode(data: bytes, file: str) -> str:
    """The text of a file.

    Raises:
        DataError: It is not UTF-8 (with or without a mark).
    """
    try:
        return data.decode("utf-8-sig")
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
    text = decode(data, file)
    first = text.partition("\n")[0]
    if delimiter is None:
        delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names: tuple[str, ...] | None = None
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                # Some writers end the header, the rows, or both with a delimiter.
                names = tuple(cell.strip() for cell in cells) if header else ("",) * len(cells)
                while header and names and not names[-1]:
                    names = names[:-1]
                if header:
                    continue
            extra = len(cells) - len(names)
            if extra < 0 or any(cell.strip() for cell in cells[len(names) :]):
                what = "the header" if header else "the first row"
                cut = not text.endswith("\n") and reader.line_num == text.count("\n") + 1
                hint = ": the file was cut off here, so remove this row" if extra < 0 and cut else ""
                number = f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"
                raise mistake(file, f"has {number}; {what} has {len(names)}{hint}", reader.line_num)
            lines.append(reader.line_num)
            rows.append(cells[: len(names)])
    except csv.Error as error:
        raise mistake(file, f"cannot be read as a table: {error}", reader.line_num) from error
    if names is None:
        raise mistake(file, "is empty")
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in names]
    if delimiter != "," and rows and any(_COMMA.fullmatch(cell) for cell in rows[0]):
        columns = [[_pointed(cell) for cell in column] for column in columns]
    return Table(file, names, lines, columns)


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
            columns.append(["" if one is None else str(one) for one in column.to_pylist()])
        names = [
            f"{name} [ns]" if pa.types.is_timestamp(kind) else name
            for name, kind in zip(table.column_names, table.schema.types, strict=True)
        ]
    except Exception as error:  # Arrow raises several kinds on bytes that it cannot read
        raise mistake(file, f"is a damaged Parquet file: {error}") from error
    return Table(file, tuple(names), list(range(1, table.num_rows + 1)), columns)
