"""ONNX Runtime (``onnxruntime``): desktops, and Jetson. ``.onnx`` programs on the processor."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..errors import EngineError
from .base import Float32, Program, Shapes, match_tensors, ordered_inputs

# Builds for other providers carry another name but the same module.
_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_PROVIDER = "CPUExecutionProvider"


def _version() -> str | None:
    for package in _PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def why_not() -> str | None:
    """Why this engine cannot be used here, or None."""
    return None if _version() else "onnxruntime is not installed; pip install 'armlet[onnx]'"


class OnnxEngine:
    """See :class:`~armlet_runtime.engines.base.Engine`."""

    name = "onnx"
    detail = f"{_PROVIDER}, 1 thread"

    def __init__(self) -> None:
        import onnxruntime

        self.version = str(_version())
        self._onnxruntime = onnxruntime

    def load(self, program: bytes, inputs: Shapes, outputs: Shapes) -> Program:
        """See :meth:`armlet_runtime.engines.base.Engine.load`."""
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        try:
            session = self._onnxruntime.InferenceSession(program, options, providers=[_PROVIDER])
        except Exception as error:  # its exceptions share no base but Exception
            raise EngineError(f"the .onnx program does not load: {' '.join(str(error).split())}") from error
        return OnnxProgram(session, inputs, outputs)


def open_engine() -> OnnxEngine:
    """Open the engine; :func:`why_not` must have said that it can be."""
    return OnnxEngine()


class OnnxProgram:
    """An ``.onnx`` program in a session."""

    def __init__(self, session: Any, inputs: Shapes, outputs: Shapes) -> None:
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        self._session = session
        self._input_names = self._match("input", inputs, session.get_inputs())
        self._output_names = self._match("output", outputs, session.get_outputs())

    @staticmethod
    def _match(kind: str, promised: Shapes, tensors: list[Any]) -> list[str]:
        # A dynamic dimension is a string or None here, and then no shape that a manifest could promise.
        actual = [
            (tensor.name, tuple(tensor.shape), "float32" if tensor.type == "tensor(float)" else tensor.type)
            for tensor in tensors
        ]
        return [tensors[position].name for position in match_tensors(kind, promised, actual)]

    def __call__(self, inputs: Mapping[str, Float32]) -> dict[str, Float32]:
        """See :meth:`armlet_runtime.engines.base.Program.__call__`."""
        if self._session is None:
            raise EngineError("the program was closed")
        arrays = ordered_inputs(self.inputs, inputs)
        try:
            results = self._session.run(self._output_names, dict(zip(self._input_names, arrays, strict=True)))
        except Exception as error:  # its exceptions share no base but Exception
            raise EngineError(f"the .onnx program failed: {' '.join(str(error).split())}") from error
        return dict(zip(self.outputs, results, strict=True))

    def close(self) -> None:
        """See :meth:`armlet_runtime.engines.base.Program.close`."""
        self._session = None
