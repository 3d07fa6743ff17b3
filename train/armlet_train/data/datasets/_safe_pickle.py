"""Pickles of arrays, read without trusting them: only names on a short list are loaded, and those only build arrays."""

from __future__ import annotations

import _codecs
import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from armlet_runtime.errors import DataError


def load_arrays(file: BinaryIO, what: str, more: Mapping[tuple[str, str], Any] | None = None) -> Any:
    """Unpickle dictionaries, lists and NumPy arrays that Python 2 or 3 wrote.

    Args:
        file: The pickle.
        what: Whose it is, for messages.
        more: Further names that may be loaded: (module, name), by Python 2's names, to their replacements.

    Raises:
        DataError: It is no such pickle, or names something that is not on the list.
    """
    try:
        return _Unpickler(file, what, more or {}).load()
    except DataError:
        raise
    except Exception as error:  # a pickle can fail in any way; each means the same here
        raise DataError(f"{what} cannot be read ({type(error).__name__}: {error})") from None


class _Unpickler(pickle._Unpickler):
    """Python's own, not the one in C: a damaged file can make that one reserve memory for billions of memo entries.

    The files have few objects and large arrays, so it is as fast.
    """

    def __init__(self, file: BinaryIO, what: str, more: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(file, encoding="latin1")
        self._what = what
        self._allowed: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct_array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _codecs.encode,
            **more,
        }

    def find_class(self, module: str, name: str) -> Any:
        """The harmless replacement for a name of the pickle."""
        # Protocol 2 writes Python 2's names, protocol 3 and later Python 3's; NumPy 2 has moved its own.
        moved = {"copyreg": "copy_reg", "builtins": "__builtin__", "numpy._core.multiarray": "numpy.core.multiarray"}
        known = moved.get(module, module)
        if (known, name) not in self._allowed:
            raise DataError(f"{self._what} names {module}.{name}, which is not on the list of what may be loaded")
        return self._allowed[(known, name)]


def _reconstruct_array(kind: type[Any], shape: tuple[int, ...], code: bytes | str) -> Any:
    if kind is not np.ndarray:
        raise DataError("the pickle builds an array of a strange kind")
    # What numpy.core.multiarray._reconstruct does; the array's own __setstate__ fills it.
    return np.ndarray.__new__(np.ndarray, shape, np.dtype(code if isinstance(code, str) else code.decode()))
