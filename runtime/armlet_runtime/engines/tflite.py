"""TFLite runtime (``tflite-runtime`` 2.14): a legacy engine for boards that cannot change. LiteRT replaces it.

It has no release after 2.14.0, which was built for NumPy 1 and Python up to 3.11, and is several times slower than
LiteRT on the same file.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .base import Program, Shapes
from .litert import TfliteProgram

_PACKAGE = "tflite-runtime"


def why_not() -> str | None:
    """Why this engine cannot be used here, or None."""
    instead = "use the engine 'litert' instead (pip install armlet), which runs the same programs"
    if sys.version_info >= (3, 12):
        return f"{_PACKAGE} 2.14.0 exists for Python 3.11 and older only; {instead}"
    if int(version("numpy").split(".")[0]) >= 2:
        return f"{_PACKAGE} 2.14.0 does not work with NumPy {version('numpy')}; pip install 'numpy<2', or {instead}"
    try:
        version(_PACKAGE)
    except PackageNotFoundError:
        return f"{_PACKAGE} is not installed; pip install 'armlet[tflite]', or {instead}"
    return None


class TfliteEngine:
    """See :class:`~armlet_runtime.engines.base.Engine`."""

    name = "tflite"
    detail = "XNNPACK, 1 thread, legacy"

    def __init__(self) -> None:
        from tflite_runtime.interpreter import Interpreter

        self.version = version(_PACKAGE)
        self._interpreter = Interpreter

    def load(self, program: bytes | Path, inputs: Shapes, outputs: Shapes) -> Program:
        """See :meth:`armlet_runtime.engines.base.Engine.load`."""
        return TfliteProgram(self._interpreter, program, inputs, outputs)


def open_engine() -> TfliteEngine:
    """Open the engine; :func:`why_not` must have given None."""
    return TfliteEngine()
