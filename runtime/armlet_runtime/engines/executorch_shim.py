"""Building ``executorch_shim.cpp``, armlet's C interface over the C++ libraries in the executorch wheel.

The engine builds it on first use with the system's ``g++`` and keeps it in ``$ARMLET_CACHE``, else ``~/.cache/armlet``.
For a board without a compiler it is built on another machine, and copied to that folder of the board::

    apt install g++-aarch64-linux-gnu
    pip download --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 --python-version 3.11 executorch==1.5.1
    python -m armlet_runtime.engines.executorch_shim executorch-1.5.1-*_aarch64.whl --compiler aarch64-linux-gnu-g++

Any wheel of the board's architecture serves, whatever its Python version: nothing of Python is in the shim.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import ArmletError, EngineError, UsageError

WHEEL_VERSION = "1.5.1"
"""The shim is written against, and tested with, the C++ interface of this version only."""

LIBRARIES = ("libexecutorch.so", "libexecutorch_threadpool.so", "libexecutorch_backend_xnnpack.so")
"""What every program needs, in the order of their needs."""

_SOURCE = Path(__file__).with_name("executorch_shim.cpp")
# The two definitions are those that the wheel's CMake configuration demands of whoever uses its headers.
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED")


def installed_wheel() -> Path:
    """The folder ``executorch`` of the installed wheel. Nothing of it is imported.

    Raises:
        EngineError: It is not installed, of another version, or without the libraries.
    """
    install = f"pip install --no-deps executorch=={WHEEL_VERSION}"
    try:
        found = version("executorch")
    except PackageNotFoundError:
        raise EngineError(f"executorch is not installed ({install})") from None
    if found.partition("+")[0] != WHEEL_VERSION:
        raise EngineError(f"executorch {found} is installed, and only {WHEEL_VERSION} will do ({install})")
    spec = importlib.util.find_spec("executorch")  # does not import a top-level package
    if spec is None or not spec.submodule_search_locations:
        raise EngineError("the folder of the executorch wheel is not to be found; install it again")
    folder = Path(next(iter(spec.submodule_search_locations)))
    missing = [name for name in LIBRARIES if not (folder / "lib" / name).exists()]
    if missing:
        raise EngineError(f"the executorch wheel for this platform has no {', '.join(missing)}")
    return folder


def cache_folder() -> Path:
    """Where compiled shims are kept."""
    set_to = os.environ.get("ARMLET_CACHE")
    return Path(set_to) if set_to else Path.home() / ".cache" / "armlet"


def file_name(machine: str) -> str:
    """Name of the shim for a machine (``x86_64``, ``aarch64``): it has in it all that the file depends on."""
    key = hashlib.sha256(_SOURCE.read_bytes() + repr(_FLAGS).encode()).hexdigest()[:16]
    return f"executorch-shim-{WHEEL_VERSION}-{machine}-{key}.so"


def build(wheel: Path, folder: Path, machine: str, compiler: str = "g++") -> Path:
    """Compile the shim.

    Args:
        wheel: The folder ``executorch`` of a wheel of :data:`WHEEL_VERSION` for the machine.
        folder: Where it goes, as :func:`file_name`.
        machine: What the compiler compiles for.
        compiler: A g++ or clang++.

    Raises:
        EngineError: It does not compile, or cannot be written.
    """
    include, libraries = wheel / "include", wheel / "lib"
    path = folder / file_name(machine)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Compiled beside its place and renamed, so that a second process never loads half of it.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".shim-") as work:
            made = Path(work) / path.name
            command = [
                compiler, *_FLAGS, f"-I{include}", f"-I{include}/executorch/runtime/core/portable_type/c10",
                str(_SOURCE), "-o", str(made), f"-L{libraries}", "-lexecutorch", "-lexecutorch_threadpool",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:300])
                raise EngineError(f"armlet's part for executorch does not compile with {compiler} here: {first}")
            made.replace(path)
    except OSError as error:
        raise EngineError(
            f"cannot make armlet's part for executorch in {folder} with {compiler}: {error.strerror}; "
            "name another folder in $ARMLET_CACHE, or install the compiler"
        ) from error
    return path


def unpack(wheel: Path, folder: Path) -> tuple[Path, str]:
    """Unpack headers and libraries of a downloaded wheel; gives its folder ``executorch`` and its machine.

    Raises:
        UsageError: It is no executorch wheel of :data:`WHEEL_VERSION` for Linux.
    """
    named = re.fullmatch(r"executorch-([\w.]+?)(?:\+\w+)?-.*linux.*_(x86_64|aarch64)\.whl", wheel.name)
    if named is None or named[1] != WHEEL_VERSION:
        raise UsageError(f"{wheel.name} is not the name of a wheel of executorch {WHEEL_VERSION} for Linux")
    try:
        with zipfile.ZipFile(wheel) as archive:
            parts = ("executorch/include/", "executorch/lib/")
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(parts)])
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot unpack {wheel}: {error}") from error
    return folder / "executorch", named[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Build the shim from a downloaded wheel; prints the file."""
    parser = argparse.ArgumentParser(
        prog="python -m armlet_runtime.engines.executorch_shim",
        description="Build armlet's part for ExecuTorch, here or for a board of another architecture.",
    )
    parser.add_argument("wheel", type=Path, help=f"wheel of executorch {WHEEL_VERSION} for the board's architecture")
    parser.add_argument("--compiler", default="g++", help="such as aarch64-linux-gnu-g++ (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the file (default: this one)")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as work:
            wheel, machine = unpack(args.wheel, Path(work))
            print(build(wheel, args.out, machine, args.compiler))
    except ArmletError as error:
        print(f"armlet: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
