"""Data sets: one file a published set, all with the same description, :class:`DataSet`.

Imports the runtime only; a set is loaded when it is opened.
"""

from . import base
from .base import KNOWN, SPLITS, DataSet, Entry, known_data_set, open_data_set

__all__ = ["KNOWN", "SPLITS", "DataSet", "Entry", "base", "known_data_set", "open_data_set"]
