"""What an engine is: the small Protocol behind which every program of a bundle runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError

Float32 = NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]


class Program(Protocol):
    """A loaded program. Not safe for calls from several threads at once: one thread at a time owns it.

    Attributes:
        inputs: Input names with their shapes, in the program's own order.
        outputs: Output names with their shapes, in the program's own order.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]

    def __call__(self, inputs: Mapping[str, Float32]) -> dict[str, Float32]:
        """Run once. Inputs go by name and may be non-contiguous; the returned arrays belong to the caller.

        Raises:
            EngineError: An input is missing, unknown, of another shape or dtype, or the engine failed.
        """

    def close(self) -> None:
        """Free the engine's memory; a later call raises EngineError."""


class Engine(Protocol):
    """An engine that is installed on this machine. It runs on one thread; one that cannot says so in ``detail``.

    Attributes:
        name: ``litert``, ``executorch``, ``onnx`` or ``tflite``.
        version: Version of the library behind it.
        detail: What else decides its results and speed: kernel set, delegate, provider, threads.
    """

    name: str
    version: str
    detail: str

    def load(self, program: bytes, inputs: Shapes, outputs: Shapes) -> Program:
        """Load a program from its bytes. ``inputs`` and ``outputs``: the names and shapes that the manifest promises.

        A program's own tensors are float32 at its borders, also in an int8 program (it converts inside, where that is
        cheapest). They are matched with the promised ones by name if the program has exactly the promised names, else
        by position; so a manifest lists inputs and outputs in the program's own order.

        Raises:
            EngineError: The program does not load, or is not what the manifest promises.
        """


def ordered_inputs(promised: Shapes, given: Mapping[str, Float32]) -> list[Float32]:
    """The given arrays in the promised order, contiguous (engines read raw memory and ignore strides).

    Raises:
        EngineError: An array is missing, unknown, of another shape or dtype.
    """
    if given.keys() != promised.keys():
        raise EngineError(f"the program takes the inputs {', '.join(promised)}, and was given {', '.join(given)}")
    arrays = []
    for name, shape in promised.items():
        array = given[name]
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float32:
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise EngineError(f"the input '{name}' must be float32 {shape}, and was given {got}")
        arrays.append(np.ascontiguousarray(array))
    return arrays


def match_tensors(kind: str, promised: Shapes, actual: Sequence[tuple[str, tuple[int, ...], str]]) -> list[int]:
    """Which of the program's tensors each promised one is.

    Args:
        kind: ``input`` or ``output``, for messages.
        promised: Names and shapes from the manifest.
        actual: Name, shape and dtype name of the program's tensors, in its own order.

    Returns:
        Position in ``actual`` for each promised tensor: by name if the names are the same ones, else by position.

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
