"""Emulated cores of boards: an arm64 tree of Debian under QEMU's user mode, as a Cortex-A72 and as a Cortex-A76."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from armlet_runtime.engines import executorch_build, executorch_shim
from tests.support import artefacts

ROOT = Path(__file__).parents[3]
TOOLS = {"qemu-aarch64": "qemu-user", "mmdebstrap": "mmdebstrap", "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu"}
DEBIAN = "bookworm"
PYTHON = "3.11"  # of that Debian
PACKAGES = (
    "numpy==2.4.6",
    "ai-edge-litert==2.3.0",
    f"executorch=={executorch_shim.WHEEL_VERSION}",
    "cffi",
    "cryptography>=44",
    "msgspec>=0.19",
)
# CPU part numbers (MIDR_EL1 in Arm's manuals) and the features that Linux names on these cores.
_A72 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
CORES = {
    "cortex-a72": ("0xd08", _A72),
    "cortex-a76": ("0xd0b", f"{_A72} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
}


@dataclass(frozen=True)
class Board:
    """An emulated board.

    Attributes:
        root: The arm64 tree.
        site: Its Python packages.
        scratch: A folder for what the cores say of themselves.
        plugin: The counting plugin; None if it is not available, and ``no_plugin`` says why.
    """

    root: Path
    site: Path
    scratch: Path
    plugin: Path | None
    no_plugin: str

    def run(self, core: str, script: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        tree = core_tree(self.root, self.scratch / core, *CORES[core])
        plugin = ["-plugin", f"file={self.plugin}"] if self.plugin else []
        paths = f"{self.site}:{ROOT / 'runtime'}:{ROOT}"
        python = (self.root / f"usr/bin/python{PYTHON}", "-S")
        return subprocess.run(
            ["qemu-aarch64", *plugin, "-cpu", core, "-L", tree, *python, script, *arguments],
            capture_output=True, text=True, timeout=300,
            env={"PYTHONPATH": paths, "ARMLET_CACHE": str(self.site.parent), "PYTHONHASHSEED": "0", "PATH": os.defpath},
        )  # fmt: skip


def core_tree(root: Path, folder: Path, part: str, features: str) -> Path:
    """The arm64 tree as a core sees it: the cached one by links, with ``/proc`` and ``/sys`` of its own.

    QEMU before 8 shows the host's processor in both, and the engines choose their kernels by what is there.
    """
    lines = ("processor\t: 0", f"Features\t: {features}", "CPU implementer\t: 0x41", "CPU architecture: 8",
             "CPU variant\t: 0x1", f"CPU part\t: {part}", "CPU revision\t: 0")  # fmt: skip
    files = {"proc/cpuinfo": "\n".join(lines) + "\n"}
    files |= {f"sys/devices/system/cpu/{name}": "0\n" for name in ("possible", "present", "online", "kernel_max")}
    if not folder.exists():
        folder.mkdir()
        for entry in root.iterdir():
            if entry.name not in ("proc", "sys"):
                (folder / entry.name).symlink_to(entry)
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder


def made(what: str, *command: str | Path) -> None:
    """Run a step of the preparation; it needs the network, and without it the test is skipped."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{what} cannot be made here: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


def make_board(scratch: Path) -> Board:
    """The emulated board, from the cache or made in minutes; skipped where that cannot be done.

    Args:
        scratch: A folder for what is the caller's own: the counting plugin, and what the cores say of themselves.
    """
    missing = sorted(package for tool, package in TOOLS.items() if shutil.which(tool) is None)
    if missing:
        pytest.skip(f"needs the system packages {', '.join(missing)}: apt install {' '.join(missing)}")
    contents = hashlib.sha256(repr(PACKAGES).encode()).hexdigest()[:8]
    folder = artefacts.made(f"arm64-{DEBIAN}", contents, _make_trees, executorch_shim.cache_folder())
    site = folder / "site"
    with artefacts.locked(folder.with_name(f".{folder.name}.lock")):
        executorch_build.build(site / "executorch", folder, "aarch64", "aarch64-linux-gnu-g++")
    plugin, why = counting_plugin(scratch, folder / "root")
    return Board(folder / "root", site, scratch, plugin, why)


def _make_trees(folder: Path) -> None:
    made(
        "the arm64 tree", "mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64",
        "--include=base-files,python3,libstdc++6,libgomp1", DEBIAN, folder / "root",
    )  # fmt: skip
    platforms = [f"--platform=manylinux_{glibc}_aarch64" for glibc in ("2_17", "2_27", "2_28", "2_34")]
    made(
        "the aarch64 packages", sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
        "--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *platforms,
        f"--target={folder / 'site'}", *PACKAGES,
    )  # fmt: skip


def counting_plugin(folder: Path, root: Path) -> tuple[Path | None, str]:
    source, plugin = Path(__file__).with_name("count_instructions.c"), folder / "count.so"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", str(source), "-o", str(plugin)]
    if shutil.which("gcc") is None:
        return None, "no gcc to compile the plugin"
    subprocess.run(command, check=True)
    tried = subprocess.run(
        ["qemu-aarch64", "-plugin", f"file={plugin}", "-L", root, root / f"usr/bin/python{PYTHON}", "-S", "-c",
         "import os; os.getpgid(0)"],
        capture_output=True, text=True,
    )  # fmt: skip
    if tried.returncode == 0 and "instructions" in tried.stderr:
        return plugin, ""
    return None, (tried.stderr.strip().splitlines() or ["this QEMU takes no plugins"])[-1]
