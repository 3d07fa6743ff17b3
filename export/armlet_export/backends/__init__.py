"""Lowering to each engine's format and reading it back: what is private to other libraries lives here.

Imports the quantise wing.
"""

from .base import NEXT_STATE, PRECISIONS, LoweredPart, Part, Signature
from .litert import delegates as litert_delegates
from .program import check_precision
from .registry import BACKENDS, lower_part, read_program

__all__ = [
    "BACKENDS",
    "NEXT_STATE",
    "PRECISIONS",
    "LoweredPart",
    "Part",
    "Signature",
    "check_precision",
    "litert_delegates",
    "lower_part",
    "read_program",
]
