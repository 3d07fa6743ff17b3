"""LiteRT (``ai-edge-litert``): the default engine of a board. ``.tflite`` programs through XNNPACK."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Float32
from ..errors import EngineError
from .base import LockedProgram, Program, Shapes, check_file, match_tensors, results_into

_PACKAGE = "ai-edge-litert"

_NOTE = b"INFO: "
_first_load = threading.Lock()
_noted: set[Any] = set()  # interpreter classes whose library has written its note


def why_not() -> str | None:
    """Why this engine cannot be used here, or None."""
    try:
        version(_PACKAGE)
    except PackageNotFoundError:
        return f"install {_PACKAGE}: pip install armlet"
    return None


class LiteRTEngine:
    """See :class:`~armlet_runtime.engines.base.Engine`."""

    name = "litert"
    detail = "XNNPACK, 1 thread"

    def __init__(self) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.version = version(_PACKAGE)
        self._interpreter = Interpreter

    def load(self, program: bytes | Path, inputs: Shapes, outputs: Shapes) -> Program:
        """See :meth:`armlet_runtime.engines.base.Engine.load`."""
        return TfliteProgram(self._interpreter, program, inputs, outputs)


def open_engine() -> LiteRTEngine:
    """Open the engine; :func:`why_not` must have given None."""
    return LiteRTEngine()


class TfliteProgram(LockedProgram):
    """A ``.tflite`` program in an interpreter of LiteRT or of the TFLite runtime (the same Python interface).

    The interpreter copies inputs into memory of its own. Outputs are copied too, as the arrays behind ``tensor()`` are
    that memory, which is reused between tensors and calls.
    """

    def __init__(self, interpreter: Any, program: bytes | Path, inputs: Shapes, outputs: Shapes) -> None:
        super().__init__(inputs, outputs)
        if isinstance(program, Path):
            check_file(program)
        source = {"model_path": str(program)} if isinstance(program, Path) else {"model_content": program}
        try:
            with _without_note(interpreter):
                self._interpreter = interpreter(**source, num_threads=1)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"the .tflite program does not load: {_one_line(error)}") from error
        # Without a delegate the interpreter is several times slower, and has been seen to overwrite buffers in use.
        # The delegate is left out in silence on a machine whose processor it cannot identify.
        if not any(op["op_name"] == "DELEGATE" for op in self._interpreter._get_ops_details()):
            raise EngineError("XNNPACK took no part of the .tflite program; without it results cannot be relied on")
        self._input_indices = self._match("input", inputs, self._interpreter.get_input_details())
        self._output_indices = self._match("output", outputs, self._interpreter.get_output_details())

    def _match(self, kind: str, promised: Shapes, details: list[dict[str, Any]]) -> list[int]:
        # litert-torch names tensors after its graph and numbers the names of its signature (args_0, output_0) in the
        # order of the function; a signature with the promised names decides, else the order of the tensors.
        signatures = self._interpreter.get_signature_list()
        names: dict[int, str] = {}
        if len(signatures) == 1:
            runner = self._interpreter.get_signature_runner(next(iter(signatures)))
            bound = runner.get_input_details() if kind == "input" else runner.get_output_details()
            names = {detail["index"]: name for name, detail in bound.items()}
        actual = [
            (
                names.get(detail["index"], detail["name"]),
                tuple(int(size) for size in detail["shape"]),
                np.dtype(detail["dtype"]).name,
            )
            for detail in details
        ]
        return [int(details[position]["index"]) for position in match_tensors(kind, promised, actual)]

    def _run(self, arrays: list[Float32], out: dict[str, Float32] | None) -> dict[str, Float32]:
        interpreter = self._interpreter
        try:
            for index, array in zip(self._input_indices, arrays, strict=True):
                interpreter.set_tensor(index, array)
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"the .tflite program failed: {_one_line(error)}") from error
        return results_into(self.outputs, map(interpreter.get_tensor, self._output_indices), out)

    def _free(self) -> None:
        self._interpreter = None


@contextmanager
def _without_note(interpreter: Any) -> Iterator[None]:
    """Keep the note about the delegate off the terminal, which a library writes to stderr once a process.

    It has no setting for that. Stderr belongs to the whole process, so it is redirected only for the first program, by
    one thread; every other line that is written meanwhile is passed on.
    """
    with _first_load:
        if interpreter not in _noted:
            with _stderr_without(_NOTE):
                yield
            _noted.add(interpreter)
            return
    yield


@contextmanager
def _stderr_without(beginning: bytes) -> Iterator[None]:
    """Hold back what is written to stderr, and write it without the lines that begin so."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not line.startswith(beginning):
                    os.write(2, line)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
