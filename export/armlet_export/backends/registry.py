"""The backends by the names of their engines; a new backend is entered here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import executorch, litert, onnx, tflite_file
from .base import LoweredPart, Part
from .program import Program


@dataclass(frozen=True)
class Backend:
    """The functions that make programs for an engine, and read them.

    Attributes:
        suffix: Of the programs' files.
        lower: Makes the program of a part; raises :class:`ExportError` where the engine has none of that precision, or
            where the file is not what was asked for.
        read: Describes a finished file.
    """

    suffix: str
    lower: Callable[[Part], LoweredPart]
    read: Callable[[bytes], Program]


BACKENDS = {
    "litert": Backend("tflite", litert.lower, tflite_file.read),
    "executorch": Backend("pte", executorch.lower, executorch.read),
    "onnx": Backend("onnx", onnx.lower, onnx.read),
}
"""Engine to its backend, in the order in which a board prefers the engines."""


def lower_part(engine: str, part: Part) -> LoweredPart:
    """The program of a part for an engine of :data:`BACKENDS`.

    Raises:
        ExportError: The engine has no program of that precision, or the file is not what was asked for.
    """
    return BACKENDS[engine].lower(part)


def read_program(engine: str, data: bytes) -> Program:
    """The contents of the file of an engine's program."""
    return BACKENDS[engine].read(data)
