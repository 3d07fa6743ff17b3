"""Engines: what runs one program on the board, behind one small Protocol.

Imports the root only; the library of an engine is loaded when the engine is opened.
"""

from .base import Engine, Program, Shapes
from .executorch import ShimProgram
from .litert import TfliteProgram
from .registry import NAMES, available, get_engine

__all__ = ["NAMES", "Engine", "Program", "Shapes", "ShimProgram", "TfliteProgram", "available", "get_engine"]
