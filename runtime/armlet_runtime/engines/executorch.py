"""ExecuTorch without torch. ``.pte`` programs through XNNPACK.

The official Python binding imports torch: hundreds of megabytes, and seconds to start. There are two ways around it,
and :attr:`Engine.detail <armlet_runtime.engines.base.Engine>` names the one in use:

1. *shim*, on every supported Python: the executorch wheel of exactly
   :data:`~armlet_runtime.engines.executorch_shim.WHEEL_VERSION` holds ``libexecutorch*.so`` and headers. A small C
   interface (``executorch_shim.cpp``) is compiled against them on first use, see
   :mod:`armlet_runtime.engines.executorch_build`. The Python package ``executorch`` itself is never imported. On a
   board: ``pip install --no-deps executorch==1.5.1``, as its declared dependencies are for exporting.
2. *executorch-numpy-runtime*, for Python 3.12 and later where there is no compiler. It offers no way to run on one
   thread only, and copies inputs.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Float32
from ..errors import EngineError
from . import executorch_shim
from .base import Engine, LockedProgram, Program, Shapes, check_file, match_tensors, results_into

_NUMPY_PACKAGE = "executorch-numpy-runtime"
# Most programs run in the delegate alone and need no kernels outside of it. The libraries with those are loaded when a
# program needs them, in this order: they cost memory, and a process that already holds a copy of the quantised ones
# (an exporting one can) would be ended by ExecuTorch.
_KERNELS = {
    "optimized kernels": "libexecutorch_kernels_optimized.so",
    "quantized kernels": "libexecutorch_kernels_quantized.so",
}
_OPERATOR_MISSING = 0x14  # executorch::runtime::Error::OperatorMissing
_DTYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64"}


def why_not() -> str | None:
    """Why this engine cannot be used here, or None."""
    shim = _why_not_shim()
    other = _why_not_numpy_runtime()
    return None if shim is None or other is None else f"{shim}; and {other}"


def open_engine() -> Engine:
    """Open the engine, by the shim if possible; :func:`why_not` must have given None.

    Raises:
        EngineError: The shim does not compile or load.
    """
    return ShimEngine() if _why_not_shim() is None else NumpyRuntimeEngine()


# ---- 1. the shim


def _why_not_shim() -> str | None:
    try:
        executorch_shim.installed_wheel()
    except EngineError as error:
        return str(error)
    if not _shim_path().exists() and shutil.which("g++") is None:
        return (
            "g++ is needed once, to compile armlet's part (apt install g++; or compile it elsewhere, see "
            "python -m armlet_runtime.engines.executorch_build --help)"
        )
    return None


def _shim_path() -> Path:
    return executorch_shim.cache_folder() / executorch_shim.file_name(platform.machine())


class _Tensor(ctypes.Structure):
    _fields_ = (("dtype", ctypes.c_int32), ("rank", ctypes.c_int32), ("sizes", ctypes.c_int64 * 16))


class ShimEngine:
    """See :class:`~armlet_runtime.engines.base.Engine`."""

    name = "executorch"

    def __init__(self) -> None:
        """Compile the shim if it is not in the cache, and load it with the wheel's libraries.

        Raises:
            EngineError: It does not compile or load.
        """
        self.version = version("executorch")
        self.detail = "XNNPACK, 1 thread, armlet's shim"
        wheel, path = executorch_shim.installed_wheel(), _shim_path()
        self._libraries = wheel / "lib"
        if not path.exists():
            from .executorch_build import build  # with what it imports it would stay in the memory of every board

            build(wheel, path.parent, platform.machine())
        try:
            # Global, so that the shim and the later libraries find these by name, wherever the wheel is installed.
            for name in executorch_shim.LIBRARIES:
                ctypes.CDLL(str(self._libraries / name), mode=ctypes.RTLD_GLOBAL)
            self._library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(self._libraries / executorch_shim.BACKEND), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise EngineError(f"the executorch libraries do not load: {error}") from error
        _declare(self._library)
        self._library.armlet_et_init()
        code = self._library.armlet_et_share_workspace()
        if code:
            raise EngineError(f"XNNPACK does not share its workspace: {_why(self._library, code)}")

    def load(self, program: bytes | Path, inputs: Shapes, outputs: Shapes) -> Program:
        """See :meth:`armlet_runtime.engines.base.Engine.load`."""
        if isinstance(program, Path):
            check_file(program)
        handle, error = self._open(program)
        for name, library in _KERNELS.items():
            if error == _OPERATOR_MISSING and name not in self.detail:
                ctypes.CDLL(str(self._libraries / library), mode=ctypes.RTLD_GLOBAL)
                self.detail += f", {name}"
                handle, error = self._open(program)
        if handle is None:
            raise EngineError(f"the .pte program does not load: {_why(self._library, error)}")
        return ShimProgram(self._library, handle, program, inputs, outputs)

    def _open(self, program: bytes | Path) -> tuple[int | None, int]:
        error = ctypes.c_uint32()
        handle: int | None
        if isinstance(program, Path):
            handle = self._library.armlet_et_load_file(str(program).encode(), ctypes.byref(error))
        else:
            handle = self._library.armlet_et_load(program, len(program), ctypes.byref(error))
        return handle, error.value


def _declare(library: ctypes.CDLL) -> None:
    handle, error = ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)
    for name, result, arguments in (
        ("init", None, ()),
        ("share_workspace", ctypes.c_uint32, ()),
        ("message", ctypes.c_char_p, ()),
        ("load", handle, (ctypes.c_char_p, ctypes.c_size_t, error)),
        ("load_file", handle, (ctypes.c_char_p, error)),
        ("free", None, (handle,)),
        ("count", ctypes.c_size_t, (handle, ctypes.c_bool)),
        ("describe", ctypes.c_uint32, (handle, ctypes.c_bool, ctypes.c_size_t, ctypes.POINTER(_Tensor))),
        ("run", ctypes.c_uint32, (handle, ctypes.c_void_p, ctypes.c_void_p)),
    ):
        function = getattr(library, f"armlet_et_{name}")
        function.restype, function.argtypes = result, arguments


def _why(library: ctypes.CDLL, error: int) -> str:
    message = library.armlet_et_message().decode(errors="replace").strip()
    return f"error 0x{error:02x}" + (f", {message}" if message else "")


class _Pointers:
    """An array of pointers to arrays, made once and filled anew for each call."""

    def __init__(self, count: int) -> None:
        self._pointers = (ctypes.c_void_p * count)()
        self._arrays: list[Float32 | None] = [None] * count
        self.address = ctypes.addressof(self._pointers)

    def set(self, arrays: Iterable[Float32]) -> None:
        for index, array in enumerate(arrays):
            # To ask where an array lies takes longer than a small layer. One that is held here cannot move.
            if array is not self._arrays[index]:
                self._pointers[index] = _address(array)
                self._arrays[index] = array


def _address(array: Float32) -> int:
    try:
        # Three times as fast as array.ctypes.data, but for writeable arrays only.
        # (That arrays are buffers NumPy's types say from Python 3.12 on.)
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except TypeError:
        return int(array.ctypes.data)


class ShimProgram(LockedProgram):
    """A ``.pte`` program in a ``Module`` of the executorch wheel."""

    def __init__(
        self, library: ctypes.CDLL, handle: int, program: bytes | Path, inputs: Shapes, outputs: Shapes
    ) -> None:
        super().__init__(inputs, outputs)
        self._library, self._handle = library, handle
        self._program = program  # bytes are read where they lie, for as long as the program is loaded
        # A .pte has no names: match_tensors goes by position.
        try:
            match_tensors("input", inputs, self._describe(output=False))
            match_tensors("output", outputs, self._describe(output=True))
        except EngineError:
            self.close()
            raise
        self._call = library.armlet_et_run
        self._inputs = _Pointers(len(inputs))
        self._outputs, self._results = _Pointers(len(outputs)), _Pointers(len(outputs))
        # For calls without arrays to write into: to copy a small array is cheaper than to make one and ask where it is.
        self._buffers = {name: np.zeros(shape, np.float32) for name, shape in outputs.items()}
        self._outputs.set(self._buffers.values())

    def _describe(self, *, output: bool) -> list[tuple[str, tuple[int, ...], str]]:
        programs = []
        for index in range(self._library.armlet_et_count(self._handle, output)):
            tensor = _Tensor()
            error = self._library.armlet_et_describe(self._handle, output, index, ctypes.byref(tensor))
            if error:
                raise EngineError(f"the .pte program does not describe itself: {_why(self._library, error)}")
            dtype = _DTYPES.get(tensor.dtype, f"dtype {tensor.dtype}")
            programs.append((f"#{index}", tuple(tensor.sizes[: tensor.rank]), dtype))
        return programs

    def _run(self, arrays: list[Float32], out: dict[str, Float32] | None) -> dict[str, Float32]:
        self._inputs.set(arrays)
        outputs = self._outputs
        if out is not None:
            outputs = self._results
            outputs.set(map(out.__getitem__, self.outputs))
        error = self._call(self._handle, self._inputs.address, outputs.address)
        if error:
            raise EngineError(f"the .pte program failed: {_why(self._library, error)}")
        return {name: buffer.copy() for name, buffer in self._buffers.items()} if out is None else out

    def _free(self) -> None:
        self._library.armlet_et_free(self._handle)

    def __del__(self) -> None:
        self.close()


# ---- 2. executorch-numpy-runtime


def _why_not_numpy_runtime() -> str | None:
    if sys.version_info < (3, 12):
        return f"{_NUMPY_PACKAGE} exists for Python 3.12 and later only"
    try:
        version(_NUMPY_PACKAGE)
    except PackageNotFoundError:
        return f"{_NUMPY_PACKAGE} is not installed either (pip install 'armlet[executorch]')"
    return None


class NumpyRuntimeEngine:
    """See :class:`~armlet_runtime.engines.base.Engine`."""

    name = "executorch"

    def __init__(self) -> None:
        import executorch_numpy_runtime

        self.version = f"{executorch_numpy_runtime.__et_version__} in {_NUMPY_PACKAGE} {version(_NUMPY_PACKAGE)}"
        self.detail = f"XNNPACK, optimized and quantized kernels, its own thread pool, {_NUMPY_PACKAGE}"
        self._runtime = executorch_numpy_runtime

    def load(self, program: bytes | Path, inputs: Shapes, outputs: Shapes) -> Program:
        """See :meth:`armlet_runtime.engines.base.Engine.load`."""
        if isinstance(program, Path):
            check_file(program)
        try:
            method = self._runtime.Runtime.get().load_program(program).load_method("forward")
            described = method.metadata
        except self._runtime.ExecuTorchError as error:
            raise EngineError(f"the .pte program does not load: {error}") from error
        if not all(tensor["is_memory_planned"] for tensor in described["outputs"]):
            raise EngineError(
                f"the .pte program has no memory planned for its outputs, and {_NUMPY_PACKAGE} needs that; "
                "export it with alloc_graph_output, or install g++ for armlet's own part"
            )
        for kind, promised in (("input", inputs), ("output", outputs)):
            tensors = [
                (f"#{i}", tuple(tensor["shape"]), _DTYPES.get(tensor["scalar_type"], f"dtype {tensor['scalar_type']}"))
                for i, tensor in enumerate(described[f"{kind}s"])
            ]
            match_tensors(kind, promised, tensors)
        return NumpyRuntimeProgram(method, self._runtime.ExecuTorchError, inputs, outputs)


class NumpyRuntimeProgram(LockedProgram):
    """A ``.pte`` program in executorch-numpy-runtime."""

    def __init__(self, method: Any, failure: type[Exception], inputs: Shapes, outputs: Shapes) -> None:
        super().__init__(inputs, outputs)
        self._method, self._failure = method, failure

    def _run(self, arrays: list[Float32], out: dict[str, Float32] | None) -> dict[str, Float32]:
        try:
            made = self._method(arrays)
        except self._failure as error:
            raise EngineError(f"the .pte program failed: {error}") from error
        return results_into(self.outputs, made, out)

    def _free(self) -> None:
        self._method = None
