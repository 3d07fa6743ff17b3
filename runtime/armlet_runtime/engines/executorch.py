"""ExecuTorch without torch. ``.pte`` programs through XNNPACK.

The official Python binding imports torch: hundreds of megabytes, and seconds to start. There are two ways around it,
and :attr:`Engine.detail <armlet_runtime.engines.base.Engine>` says which one was taken:

1. *shim*: the executorch wheel of exactly :data:`WHEEL_VERSION` holds ``libexecutorch*.so`` and headers. A small C
   interface (``executorch_shim.cpp``) is compiled against them with the system's ``g++`` on first use, and kept in
   ``$ARMLET_CACHE``, else ``~/.cache/armlet``. The Python package ``executorch`` itself is never imported. On a board:
   ``pip install --no-deps executorch==1.5.1``, as its declared dependencies are for exporting.
2. *executorch-numpy-runtime*, for Python 3.12 and later. It offers no way to run on one thread only.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError
from .base import Engine, Float32, Program, Shapes, match_tensors, ordered_inputs

WHEEL_VERSION = "1.5.1"
"""The shim is written against, and tested with, the C++ interface of this version only."""

_NUMPY_PACKAGE = "executorch-numpy-runtime"
_SOURCE = Path(__file__).with_name("executorch_shim.cpp")
# In the order of their needs. Kernels and backends register themselves when loaded; the quantised kernels are loaded
# only for a program that needs them (see _ShimEngine.load).
_LIBRARIES = (
    "libexecutorch.so",
    "libexecutorch_threadpool.so",
    "libexecutorch_kernels_optimized.so",
    "libexecutorch_backend_xnnpack.so",
)
_QUANTISED_KERNELS = "libexecutorch_kernels_quantized.so"
# The two definitions are those that the wheel's CMake configuration demands of whoever uses its headers.
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED")
_OPERATOR_MISSING = 0x14  # executorch::runtime::Error::OperatorMissing
_DTYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64"}


def why_not() -> str | None:
    """Why this engine cannot be used here, or None."""
    shim = _why_not_shim()
    other = _why_not_numpy_runtime()
    return None if shim is None or other is None else f"{shim}; and {other}"


def open_engine() -> Engine:
    """Open the engine, by the shim if that can be; :func:`why_not` must have said that it can be.

    Raises:
        EngineError: The shim does not compile or load.
    """
    return ShimEngine() if _why_not_shim() is None else NumpyRuntimeEngine()


# ---- 1. the shim


def _wheel_folder() -> Path:
    # find_spec does not import a top-level package.
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError("the folder of the executorch wheel is not to be found; install it again")
    return Path(next(iter(spec.submodule_search_locations)))


def _why_not_shim() -> str | None:
    install = f"pip install --no-deps executorch=={WHEEL_VERSION}"
    try:
        found = version("executorch")
    except PackageNotFoundError:
        return f"executorch is not installed ({install})"
    if found.partition("+")[0] != WHEEL_VERSION:
        return f"executorch {found} is installed, and only {WHEEL_VERSION} will do ({install})"
    missing = [name for name in _LIBRARIES if not (_wheel_folder() / "lib" / name).exists()]
    if missing:
        return f"the executorch wheel for this platform has no {', '.join(missing)}"
    if not _shim_path().exists() and shutil.which("g++") is None:
        return "g++ is needed once, to compile armlet's part (apt install g++)"
    return None


def _shim_path() -> Path:
    """Where the compiled shim is kept: named after all that it depends on."""
    set_to = os.environ.get("ARMLET_CACHE")
    folder = Path(set_to) if set_to else Path.home() / ".cache" / "armlet"
    key = hashlib.sha256(_SOURCE.read_bytes() + repr(_FLAGS).encode()).hexdigest()[:16]
    return folder / f"executorch-shim-{version('executorch')}-{platform.machine()}-{key}.so"


def _compile(path: Path) -> None:
    include, libraries = _wheel_folder() / "include", _wheel_folder() / "lib"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Compiled beside its place and renamed, so that a second process never loads half of it.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".shim-") as folder:
        made = Path(folder) / path.name
        command = [
            "g++", *_FLAGS, f"-I{include}", f"-I{include}/executorch/runtime/core/portable_type/c10", str(_SOURCE),
            "-o", str(made), f"-L{libraries}", "-lexecutorch", "-lexecutorch_threadpool",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:300])
            raise EngineError(f"armlet's part for executorch does not compile with g++ here: {first}")
        made.replace(path)


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
        self.detail = "XNNPACK, optimized kernels, 1 thread, armlet's shim"
        path = _shim_path()
        if not path.exists():
            try:
                _compile(path)
            except OSError as error:
                raise EngineError(
                    f"cannot keep armlet's part for executorch in {path.parent}: {error.strerror}; "
                    "name another folder in $ARMLET_CACHE"
                ) from error
        try:
            # Global, so that the shim and the later libraries find these by name, wherever the wheel is installed.
            for name in _LIBRARIES:
                ctypes.CDLL(str(_wheel_folder() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise EngineError(f"the executorch libraries do not load: {error}") from error
        _declare(self._library)
        self._library.armlet_et_init()

    def load(self, program: bytes, inputs: Shapes, outputs: Shapes) -> Program:
        """See :meth:`armlet_runtime.engines.base.Engine.load`."""
        handle, error = self._open(program)
        if error == _OPERATOR_MISSING and "quantized kernels" not in self.detail:
            # Most int8 programs quantise inside the delegate and need none of these. They are not loaded for nothing:
            # a process that already holds a copy of them (an exporting one can) would be ended by ExecuTorch.
            ctypes.CDLL(str(_wheel_folder() / "lib" / _QUANTISED_KERNELS), mode=ctypes.RTLD_GLOBAL)
            self.detail += ", quantized kernels"
            handle, error = self._open(program)
        if handle is None:
            raise EngineError(f"the .pte program does not load: {_why(self._library, error)}")
        return ShimProgram(self._library, handle, inputs, outputs)

    def _open(self, program: bytes) -> tuple[int | None, int]:
        error = ctypes.c_uint32()
        handle: int | None = self._library.armlet_et_load(program, len(program), ctypes.byref(error))
        return handle, error.value


def _declare(library: ctypes.CDLL) -> None:
    handle = ctypes.c_void_p
    for name, result, arguments in (
        ("init", None, ()),
        ("message", ctypes.c_char_p, ()),
        ("load", handle, (ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint32))),
        ("free", None, (handle,)),
        ("count", ctypes.c_size_t, (handle, ctypes.c_bool)),
        ("describe", ctypes.c_uint32, (handle, ctypes.c_bool, ctypes.c_size_t, ctypes.POINTER(_Tensor))),
        ("buffer", ctypes.c_void_p, (handle, ctypes.c_bool, ctypes.c_size_t)),
        ("run", ctypes.c_uint32, (handle,)),
    ):
        function = getattr(library, f"armlet_et_{name}")
        function.restype, function.argtypes = result, arguments


def _why(library: ctypes.CDLL, error: int) -> str:
    message = library.armlet_et_message().decode(errors="replace").strip()
    return f"error 0x{error:02x}" + (f", {message}" if message else "")


class ShimProgram:
    """A ``.pte`` program in a ``Module`` of the executorch wheel."""

    def __init__(self, library: ctypes.CDLL, handle: int, inputs: Shapes, outputs: Shapes) -> None:
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        self._library = library
        self._handle: int | None = handle
        # A .pte has no names: match_tensors goes by position.
        try:
            match_tensors("input", inputs, self._describe(output=False))
            match_tensors("output", outputs, self._describe(output=True))
        except EngineError:
            self.close()
            raise
        self._input_buffers = self._buffers(inputs, output=False)
        self._output_buffers = self._buffers(outputs, output=True)

    def _buffers(self, shapes: Shapes, *, output: bool) -> list[Float32]:
        """Arrays over the program's own buffers, which live until it is freed."""
        buffers = []
        for index, shape in enumerate(shapes.values()):
            address = self._library.armlet_et_buffer(self._handle, output, index)
            memory = (ctypes.c_float * int(np.prod(shape))).from_address(address)
            buffers.append(np.ctypeslib.as_array(memory).reshape(shape))
        return buffers

    def _describe(self, *, output: bool) -> list[tuple[str, tuple[int, ...], str]]:
        found = []
        for index in range(self._library.armlet_et_count(self._handle, output)):
            tensor = _Tensor()
            error = self._library.armlet_et_describe(self._handle, output, index, ctypes.byref(tensor))
            if error:
                raise EngineError(f"the .pte program does not describe itself: {_why(self._library, error)}")
            dtype = _DTYPES.get(tensor.dtype, f"dtype {tensor.dtype}")
            found.append((f"#{index}", tuple(tensor.sizes[: tensor.rank]), dtype))
        return found

    def __call__(self, inputs: Mapping[str, Float32]) -> dict[str, Float32]:
        """See :meth:`armlet_runtime.engines.base.Program.__call__`."""
        if self._handle is None:
            raise EngineError("the program was closed")
        for buffer, array in zip(self._input_buffers, ordered_inputs(self.inputs, inputs), strict=True):
            buffer[:] = array
        error = self._library.armlet_et_run(self._handle)
        if error:
            raise EngineError(f"the .pte program failed: {_why(self._library, error)}")
        return {name: buffer.copy() for name, buffer in zip(self.outputs, self._output_buffers, strict=True)}

    def close(self) -> None:
        """See :meth:`armlet_runtime.engines.base.Program.close`."""
        if self._handle is not None:
            self._input_buffers = self._output_buffers = []
            self._library.armlet_et_free(self._handle)
            self._handle = None

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

    def load(self, program: bytes, inputs: Shapes, outputs: Shapes) -> Program:
        """See :meth:`armlet_runtime.engines.base.Engine.load`."""
        try:
            method = self._runtime.Runtime.get().load_program(program).load_method("forward")
            described = method.metadata
        except self._runtime.ExecuTorchError as error:
            raise EngineError(f"the .pte program does not load: {error}") from error
        for kind, promised in (("input", inputs), ("output", outputs)):
            tensors = [
                (f"#{i}", tuple(tensor["shape"]), _DTYPES.get(tensor["scalar_type"], f"dtype {tensor['scalar_type']}"))
                for i, tensor in enumerate(described[f"{kind}s"])
            ]
            match_tensors(kind, promised, tensors)
        return NumpyRuntimeProgram(method, self._runtime.ExecuTorchError, inputs, outputs)


class NumpyRuntimeProgram:
    """A ``.pte`` program in executorch-numpy-runtime."""

    def __init__(self, method: Any, failure: type[Exception], inputs: Shapes, outputs: Shapes) -> None:
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        self._method, self._failure = method, failure

    def __call__(self, inputs: Mapping[str, Float32]) -> dict[str, Float32]:
        """See :meth:`armlet_runtime.engines.base.Program.__call__`."""
        if self._method is None:
            raise EngineError("the program was closed")
        arrays = ordered_inputs(self.inputs, inputs)
        try:
            results = self._method(arrays)
        except self._failure as error:
            raise EngineError(f"the .pte program failed: {error}") from error
        return dict(zip(self.outputs, results, strict=True))

    def close(self) -> None:
        """See :meth:`armlet_runtime.engines.base.Program.close`."""
        self._method = None
