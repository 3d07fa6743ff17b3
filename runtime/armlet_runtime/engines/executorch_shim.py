"""Where armlet's C interface over the C++ libraries in the executorch wheel lies; built by ``executorch_build.py``."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import EngineError

WHEEL_VERSION = "1.5.1"
"""The shim is written against, and tested with, the C++ interface of this version only."""

LIBRARIES = ("libexecutorch.so", "libexecutorch_threadpool.so")
"""Libraries that the shim needs, in the order in which they need each other."""

BACKEND = "libexecutorch_backend_xnnpack.so"
"""What every program needs besides; loaded after the shim, see there."""

SOURCE = Path(__file__).with_name("executorch_shim.cpp")
# The two definitions are those that the wheel's CMake configuration demands of whoever uses its headers.
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED")
"""For the compiler."""


def installed_wheel() -> Path:
    """The folder ``executorch`` of the installed wheel. Nothing of it is imported.

    Raises:
        EngineError: It is not installed, of another version, or without the libraries.
    """
    install = f"pip install --no-deps executorch=={WHEEL_VERSION}"
    try:
        installed = version("executorch")
    except PackageNotFoundError:
        raise EngineError(f"executorch is not installed ({install})") from None
    if installed.partition("+")[0] != WHEEL_VERSION:
        raise EngineError(f"executorch {installed} is installed, and only {WHEEL_VERSION} will do ({install})")
    spec = importlib.util.find_spec("executorch")  # does not import a top-level package
    if spec is None or not spec.submodule_search_locations:
        raise EngineError("the folder of the executorch wheel is not to be found; install it again")
    folder = Path(next(iter(spec.submodule_search_locations)))
    missing = [name for name in (*LIBRARIES, BACKEND) if not (folder / "lib" / name).exists()]
    if missing:
        raise EngineError(f"the executorch wheel for this platform has no {', '.join(missing)}")
    return folder


def cache_folder() -> Path:
    """Where compiled shims are kept."""
    set_to = os.environ.get("ARMLET_CACHE")
    return Path(set_to) if set_to else Path.home() / ".cache" / "armlet"


def file_name(machine: str) -> str:
    """Name of the shim for a machine (``x86_64``, ``aarch64``): it has in it all that the file depends on."""
    key = hashlib.sha256(SOURCE.read_bytes() + repr(FLAGS).encode()).hexdigest()[:16]
    return f"executorch-shim-{WHEEL_VERSION}-{machine}-{key}.so"
