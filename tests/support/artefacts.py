"""What tests make once and share: with the other workers of a run, and with later runs.

An artefact is a folder in the cache (``$ARMLET_CACHE``, else ``~/.cache/armlet``), whose name ends in the hash of what
makes it. It is made under a file lock and then renamed into its place, so it is whole or it is not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from armlet_runtime.engines.executorch_shim import cache_folder

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "runtime" / "armlet_runtime"
MAKERS = (
    "torch",
    "torchao",
    "executorch",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "onnx",
    "onnxruntime",
)
"""The libraries whose versions an exported program depends on."""
LIMIT_S = 1500.0
"""How long making one may take, on a machine that has much else to do."""
KEPT_S = 14 * 24 * 3600.0
"""For how long an artefact stays that no run asked for: other branches, and other checkouts, have their own."""


def digest(*sources: Path, more: str = "") -> str:
    """Hash of source files, of the sources in folders, of the Python and of the libraries that export programs."""
    total = hashlib.sha256(f"{platform.python_version()} {platform.machine()} {more}".encode())
    for library in MAKERS:
        with contextlib.suppress(PackageNotFoundError):
            total.update(f"{library}=={version(library)}".encode())
    for source in sources:
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file() and "__pycache__" not in path.parts:
                total.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock; whoever wants it in another process waits. The kernel frees it when its owner dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made(name: str, key: str, make: Callable[[Path], None], cache: Path | None = None) -> Path:
    """The folder ``NAME-KEY`` of the cache; ``make`` fills it if it is not there.

    Args:
        name: Of the artefact.
        key: Hash of all that it depends on, as :func:`digest` makes it.
        make: Fills an empty folder. If it raises, nothing is left.
        cache: Another folder than that for tests.
    """
    folder = (cache or cache_folder() / "tests") / f"{name}-{key}"
    with locked(folder.with_name(f".{name}.lock")):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
                Path(work).chmod(0o755)  # apt gives up root where it can
                (filling := Path(work) / "made").mkdir()
                make(filling)
                filling.rename(folder)
            _forget_old(folder.parent.glob(f"{name}-{'[0-9a-f]' * len(key)}"))
        folder.touch()  # used today
    return folder


def _forget_old(folders: Iterator[Path]) -> None:
    for folder in folders:
        if time.time() - folder.stat().st_mtime > KEPT_S:
            shutil.rmtree(folder, ignore_errors=True)


def run(command: Sequence[str | Path], cwd: Path = ROOT, **environment: str) -> str:
    """Run a program that makes an artefact, at most for :data:`LIMIT_S`; what it printed.

    Raises:
        AssertionError: It failed; with the end of its output.
    """
    process = subprocess.Popen(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        printed, complaints = process.communicate(timeout=LIMIT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
        process.wait()
    assert process.returncode == 0, printed[-3000:] + complaints[-3000:]
    return printed


def small_draft() -> Path:
    """The draft of the small model (:mod:`tests.support.small_model`); nobody may write in it."""

    def make(folder: Path) -> None:
        run([sys.executable, "-m", "tests.support.small_model", folder / "draft"])

    return made("small-model", digest(RUNTIME, Path(__file__).with_name("small_model.py")), make) / "draft"


def demo() -> Path:
    """What ``armlet demo --quick`` leaves: ``demo``, ``demo.json``, ``demo/stdout.txt``, and ``home`` with its keys.

    Every stage for real, training and playing cut to seconds. Nobody may write in it.

    Raises:
        AssertionError: The demo failed; where HAPT cannot be fetched it says so.
    """

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "armlet_runtime", "demo", "--quick", "--out", "demo", "--json", "demo.json"]
        (folder / "demo" / "stdout.txt").write_text(run(command, cwd=folder, ARMLET_HOME=str(folder / "home")))

    packages = ("runtime", "train", "export", "firmware_bridge")
    return made("demo", digest(*(ROOT / package for package in packages)), make)
