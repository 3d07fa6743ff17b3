"""ONNX Runtime (``onnxruntime``): desktops, and Jetson. ``.onnx`` programs on the processor, or on the GPU by name.

``onnx`` and ``onnx:cpu`` run on the processor, ``onnx:cuda`` and ``onnx:tensorrt`` through NVIDIA's libraries. ONNX
Runtime itself falls back to the processor without a word when those do not load; here that is an error.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..arrays import Float32
from ..errors import EngineError
from .base import LockedProgram, Program, Shapes, check_file, match_tensors, results_into

# Builds for other providers carry another name but the same module.
_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_CPU = "CPUExecutionProvider"
# Nodes that a provider cannot run go to the providers after it, as ONNX Runtime's documentation advises.
_PROVIDERS = {
    "cpu": (_CPU,),
    "cuda": ("CUDAExecutionProvider", _CPU),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", _CPU),
}
DEFAULT = "cpu"


def _version() -> str | None:
    for package in _PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def why_not(provider: str = DEFAULT) -> str | None:
    """Why this engine cannot be used here with that provider, or None."""
    if provider not in _PROVIDERS:
        return f"there is no provider '{provider}'; there are {', '.join(_PROVIDERS)}"
    if _version() is None:
        return "onnxruntime is not installed; pip install 'armlet[onnx]'"
    if provider == DEFAULT:
        return None
    import onnxruntime

    built = onnxruntime.get_available_providers()
    if _PROVIDERS[provider][0] in built:
        return None
    usable = ", ".join(name for name, chain in _PROVIDERS.items() if chain[0] in built)
    return (
        f"the installed onnxruntime {_version()} has no {_PROVIDERS[provider][0]}, only {usable}; "
        "install a build with it (pip install onnxruntime-gpu; on a Jetson NVIDIA's own wheel)"
    )


class OnnxEngine:
    """See :class:`~armlet_runtime.engines.base.Engine`."""

    def __init__(self, provider: str) -> None:
        import onnxruntime

        self.name = "onnx" if provider == DEFAULT else f"onnx:{provider}"
        self.version = str(_version())
        self.detail = f"{_PROVIDERS[provider][0]}, 1 thread"
        self._providers = _PROVIDERS[provider]
        self._onnxruntime = onnxruntime

    def load(self, program: bytes | Path, inputs: Shapes, outputs: Shapes) -> Program:
        """See :meth:`armlet_runtime.engines.base.Engine.load`."""
        if isinstance(program, Path):
            check_file(program)
        source = str(program) if isinstance(program, Path) else program
        try:
            session = self._session(source, exact=True)
        except Exception as error:  # its exceptions share no base but Exception
            if self._loads_inexactly(source):
                raise EngineError(
                    "the int8 .onnx program was exported by an earlier armlet, and ONNX Runtime cannot run it exactly "
                    "on this processor, an x86 without VNNI: export the bundle again, or choose another engine"
                ) from error
            raise EngineError(f"the .onnx program does not load: {' '.join(str(error).split())}") from error
        if self._providers[0] not in session.get_providers():
            raise EngineError(
                f"{self._providers[0]} does not load on this machine, only {', '.join(session.get_providers())} would "
                "run the program; its CUDA, cuDNN or TensorRT libraries are missing or of another version"
            )
        return OnnxProgram(session, inputs, outputs)

    def _session(self, source: str | bytes, exact: bool) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what fails is raised
        if exact:
            # x86 processors without VNNI add products of int8 in 16 bits, and saturate (ONNX Runtime 1.32: logits five
            # steps of their scale off). There this takes exact kernels, which were as fast (0.98 to 1.01 of the time of
            # a decision on an AMD EPYC with AVX2); on other processors it does nothing.
            options.add_session_config_entry("session.x64quantprecision", "1")
        return self._onnxruntime.InferenceSession(source, options, providers=list(self._providers))

    def _loads_inexactly(self, source: str | bytes) -> bool:
        """Whether a program that does not load with exact kernels loads without: its weights share a zero point."""
        try:
            self._session(source, exact=False)
        except Exception:  # its exceptions share no base but Exception
            return False
        return True


def open_engine(provider: str = DEFAULT) -> OnnxEngine:
    """Open the engine; :func:`why_not` must have given None."""
    return OnnxEngine(provider)


class OnnxProgram(LockedProgram):
    """An ``.onnx`` program in a session. On the processor it reads the given arrays in place."""

    def __init__(self, session: Any, inputs: Shapes, outputs: Shapes) -> None:
        super().__init__(inputs, outputs)
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

    def _run(self, arrays: list[Float32], out: dict[str, Float32] | None) -> dict[str, Float32]:
        try:
            made = self._session.run(self._output_names, dict(zip(self._input_names, arrays, strict=True)))
        except Exception as error:  # its exceptions share no base but Exception
            raise EngineError(f"the .onnx program failed: {' '.join(str(error).split())}") from error
        return results_into(self.outputs, made, out)

    def _free(self) -> None:
        self._session = None
