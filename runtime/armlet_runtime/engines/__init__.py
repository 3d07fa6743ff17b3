"""Engines: what runs one program on the board, behind one small Protocol.

Imports the root only; an engine's module and its library are loaded when the engine is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Engine, Program, Shapes
from .registry import NAMES, available, get_engine

if TYPE_CHECKING:
    from .executorch import ShimProgram
    from .litert import TfliteProgram

__all__ = ["NAMES", "Engine", "Program", "Shapes", "ShimProgram", "TfliteProgram", "available", "get_engine"]


def __getattr__(name: str) -> Any:
    # A process that runs one engine does not pay for the modules of the others.
    if name == "ShimProgram":
        from .executorch import ShimProgram

        return ShimProgram
    if name == "TfliteProgram":
        from .litert import TfliteProgram

        return TfliteProgram
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
