"""Lowering to each engine's format and reading it back: what is private to other libraries lives here.

Imports the quantise wing.
"""

from . import lower
from .lower import NEXT_STATE, PRECISIONS, Lowered, Part, Signature, lower_part
from .programs import check_precision, look

__all__ = ["NEXT_STATE", "PRECISIONS", "Lowered", "Part", "Signature", "check_precision", "look", "lower", "lower_part"]
