"""Building ``executorch_shim.cpp``, armlet's C interface over the C++ libraries in the executorch wheel.

The engine builds it on first use with the system's ``g++`` and keeps it in ``$ARMLET_CACHE``, else ``~/.cache/armlet``.
For a board without a compiler it is built on another machine, and copied to that folder of the board::

    apt install g++-aarch64-linux-gnu
    pip download --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 --python-version 3.11 executorch==1.5.1
    python -m armlet_runtime.engines.executorch_build executorch-1.5.1-*_aarch64.whl --compiler aarch64-linux-gnu-g++

Any wheel of the board's architecture serves, whatever its Python version: nothing of Python is in the shim.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import ArmletError, EngineError, UsageError
from .executorch_shim import FLAGS, SOURCE, WHEEL_VERSION, file_name


def build(wheel: Path, folder: Path, machine: str, compiler: str = "g++") -> Path:
    """Compile the shim.

    Args:
        wheel: The folder ``executorch`` of a wheel of :data:`WHEEL_VERSION` for the machine.
        folder: Where it goes, as :func:`file_name`.
        machine: The machine that the compiler compiles for.
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
                compiler, *FLAGS, f"-I{include}", f"-I{include}/executorch/runtime/core/portable_type/c10",
                str(SOURCE), "-o", str(made), f"-L{libraries}", "-lexecutorch", "-lexecutorch_threadpool",
                "-ldl",
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
        prog="python -m armlet_runtime.engines.executorch_build",
        description="Build armlet's part for ExecuTorch, here or for a board of another architecture.",
    )
    parser.add_argument("wheel", type=Path, help=f"wheel of executorch {WHEEL_VERSION} for the board's architecture")
    parser.add_argument("--compiler", default="g++", help="such as aarch64-linux-gnu-g++ (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the file (default: the present folder)")
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
