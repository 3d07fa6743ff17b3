"""What an engine is: the small Protocol behind which every program of a bundle runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


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
    """An engine that is installed on this machine.

    Attributes:
        name: ``litert``, ``executorch``, ``onnx`` or ``tflite``.
        version: Version of the library behind it.
        detail: What else decides its results and speed: kernel set, delegate, provider, threads.
    """

    name: str
    version: str
    detail: str

    def load(
        self, program: bytes, inputs: Mapping[str, tuple[int, ...]], outputs: Mapping[str, tuple[int, ...]]
    ) -> Program:
        """Load a program from its bytes. ``inputs`` and ``outputs``: the names and shapes that the manifest promises.

        Raises:
            EngineError: The program does not load, or is not what the manifest promises.
        """
