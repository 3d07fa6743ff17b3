"""The Protocol of an engine, behind which every program of a bundle runs."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..arrays import Float32
from ..errors import EngineError

Shapes = Mapping[str, tuple[int, ...]]

_FLOAT32 = np.dtype(np.float32)
_ARRAY = np.ndarray


class Program(Protocol):
    """A loaded program.

    It may be called and closed from several threads; they take turns, as the engines' own interpreters serve one at a
    time. For programs that run at once, load it once a thread.

    Attributes:
        inputs: Input names with their shapes, in the program's own order.
        outputs: Output names with their shapes, in the program's own order.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]

    def __call__(self, inputs: Mapping[str, Float32], out: dict[str, Float32] | None = None) -> dict[str, Float32]:
        """Run once.

        Args:
            inputs: By name. An array that is not contiguous is copied first; a contiguous one is read in place, as far
                as the engine can.
            out: For every output, by name, the contiguous array to write it into. None: new arrays, which belong to the
                caller.

        Returns:
            The outputs by name, in the program's own order; ``out`` itself if it was given.

        Raises:
            EngineError: An array is missing, unknown, of another shape or dtype, the program was closed, or the engine
                failed.
        """

    def close(self) -> None:
        """Free the engine's memory, after a call that is running; a later call raises EngineError."""


class Engine(Protocol):
    """An engine that is installed on this machine. It runs on one thread, unless ``detail`` says otherwise.

    Attributes:
        name: ``litert``, ``executorch``, ``onnx`` or ``tflite``; after a colon what else was asked for.
        version: Version of the library behind it.
        detail: What else decides its results and speed: kernel set, delegate, provider, threads.
    """

    name: str
    version: str
    detail: str

    def load(self, program: bytes | Path, inputs: Shapes, outputs: Shapes) -> Program:
        """Load a program from its bytes or file. ``inputs`` and ``outputs``: the names and shapes that are promised.

        A program's own tensors are float32 at its borders, also in an int8 program (it converts inside, where that is
        cheapest). They are matched with the promised tensors by name if the program has exactly the promised
        names, else by position; so a manifest lists inputs and outputs in the program's own order.

        Raises:
            EngineError: The program does not load, or is not what the manifest promises.
        """


class LockedProgram(ABC):
    """The common part of all engines' programs: checks of the arrays, one thread at a time, one end."""

    def __init__(self, inputs: Shapes, outputs: Shapes) -> None:
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        self._lock = threading.Lock()
        self._closed = False

    def __call__(self, inputs: Mapping[str, Float32], out: dict[str, Float32] | None = None) -> dict[str, Float32]:
        """See :meth:`Program.__call__`."""
        arrays = ordered_inputs(self.inputs, inputs)
        if out is not None:
            check_outputs(self.outputs, out)
        with self._lock:
            if self._closed:
                raise EngineError("the program was closed")
            return self._run(arrays, out)

    def close(self) -> None:
        """See :meth:`Program.close`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._free()

    @abstractmethod
    def _run(self, arrays: list[Float32], out: dict[str, Float32] | None) -> dict[str, Float32]:
        """Run once, with contiguous inputs in the promised order; outputs by name; in ``out`` if given."""

    @abstractmethod
    def _free(self) -> None:
        """Let go of the engine's memory."""


def ordered_inputs(promised: Shapes, given: Mapping[str, Float32]) -> list[Float32]:
    """The given arrays in the promised order, contiguous and aligned (engines read raw memory and ignore strides).

    Raises:
        EngineError: An array is missing, unknown, of another shape or dtype.
    """
    arrays = []
    try:
        for name, shape in promised.items():
            array = given[name]
            # In this form because it runs in every call: the message is looked for only if there is one.
            if type(array) is not _ARRAY or array.dtype is not _FLOAT32 or array.shape != shape:
                _check("input", name, shape, array)
            flags = array.flags
            arrays.append(array if flags.c_contiguous and flags.aligned else np.array(array, order="C"))
    except KeyError:
        pass
    if not len(arrays) == len(given) == len(promised):
        raise EngineError(f"the program takes the inputs {', '.join(promised)}, and was given {', '.join(given)}")
    return arrays


def check_outputs(promised: Shapes, given: Mapping[str, Float32]) -> None:
    """Make sure that every output has an array to be written into.

    Raises:
        EngineError: One is missing, unknown, of another shape or dtype, or cannot be written to as it lies.
    """
    try:
        for name, shape in promised.items():
            array = given[name]
            if type(array) is not _ARRAY or array.dtype is not _FLOAT32 or array.shape != shape:
                _check("output", name, shape, array)
            if not array.flags.carray:
                raise EngineError(f"the array for the output '{name}' must be contiguous, aligned and writeable")
        complete = len(given) == len(promised)
    except KeyError:
        complete = False
    if not complete:
        raise EngineError(f"the program gives the outputs {', '.join(promised)}, and was given {', '.join(given)}")


def results_into(names: Iterable[str], values: Iterable[Float32], out: dict[str, Float32] | None) -> dict[str, Float32]:
    """Outputs that the engine made arrays for, by name; copied into ``out`` if that is given."""
    if out is None:
        return dict(zip(names, values, strict=True))
    for name, value in zip(names, values, strict=True):
        out[name][...] = value
    return out


def _check(kind: str, name: str, shape: tuple[int, ...], array: object) -> None:
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != _FLOAT32:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise EngineError(f"the {kind} '{name}' must be float32 {shape}, and was given {got}")


def check_file(path: Path) -> None:
    """See that a program's file can be read.

    Raises:
        EngineError: It cannot.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise EngineError(f"cannot read the program {path}: {error.strerror}") from error


def match_tensors(kind: str, promised: Shapes, actual: Sequence[tuple[str, tuple[int, ...], str]]) -> list[int]:
    """The program's tensor for each promised tensor.

    Args:
        kind: ``input`` or ``output``, for messages.
        promised: Names and shapes from the manifest.
        actual: Name, shape and dtype name of the program's tensors, in its own order.

    Returns:
        Position in ``actual`` for each promised tensor: by name if the names are equal, else by position.

    Raises:
        EngineError: Number, shape or dtype differ.
    """
    if len(promised) != len(actual):
        raise EngineError(f"the program has {len(actual)} {kind}s, and the manifest promises {len(promised)}")
    names = [name for name, _, _ in actual]
    by_name = set(names) == set(promised)
    positions = [names.index(name) for name in promised] if by_name else list(range(len(names)))
    for (name, shape), position in zip(promised.items(), positions, strict=True):
        _, actual_shape, dtype = actual[position]
        if actual_shape != shape or dtype != "float32":
            raise EngineError(
                f"the program's {kind} '{name}' is {dtype} {actual_shape}, and the manifest promises float32 {shape}"
            )
    return positions
