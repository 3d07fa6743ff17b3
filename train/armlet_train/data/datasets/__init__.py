"""Data sets: one file a published set, all with the same description, :class:`DataSet`.

Imports the runtime only; a set is loaded when it is opened.
"""

from . import base
from .base import SPLITS, DataSet, Entry

__all__ = ["SPLITS", "DataSet", "Entry", "base"]
