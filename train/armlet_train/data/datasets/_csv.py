"""Tables of numbers in text files, read by Arrow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.errors import DataError, MissingExtraError


def read_numbers(path: Path, delimiter: str, columns: int) -> NDArray[np.float64]:
    """(rows, columns) of a file without a header; what is not there, or NaN, is NaN.

    Raises:
        DataError: The file cannot be read, has another number of columns, or holds something else than numbers.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import csv
    except ImportError as error:
        raise MissingExtraError("reading tables needs pyarrow: pip install 'armlet[train]'") from error

    names = [str(column) for column in range(columns)]
    try:
        table = csv.read_csv(
            path,
            csv.ReadOptions(column_names=names),
            csv.ParseOptions(delimiter=delimiter),
            csv.ConvertOptions(column_types=dict.fromkeys(names, pa.float64())),
        )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a table of {columns} columns of numbers: {error}") from error
    return np.stack([column.to_numpy() for column in table.columns], axis=1)
