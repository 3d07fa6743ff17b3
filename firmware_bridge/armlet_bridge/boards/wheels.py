"""A board's environment, gathered on the workstation: the board itself needs no internet, no pip and no root.

uv resolves armlet's requirements for the board's Python, architecture and C library, checks every wheel's hash, and
unpacks the wheels into a folder that becomes the board's ``site-packages``.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import distribution, requires
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import msgspec
from packaging.requirements import Requirement

from armlet_runtime.errors import DeployError

PYTHONS = ("3.13", "3.12", "3.11", "3.10")
"""Versions that the runtime supports, best first."""

BLOCK = 4096

PROBE = """
echo "architecture=$(uname -m)"
echo "glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2)"
echo "model=$(cat /proc/device-tree/model 2>/dev/null | tr -d '\\0')"
echo "memory_kb=$(sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo)"
echo "features=$(sed -n 's/^\\(Features\\|flags\\)[^:]*: *//p' /proc/cpuinfo | head -n 1)"
echo "free_kb=$(df -Pk . | sed -n '2s/^[^ ]* *[0-9]* *[0-9]* *\\([0-9]*\\).*/\\1/p')"
echo "clock=$(date +%s)"
echo "units=$(systemctl --user is-system-running 2>/dev/null)"
for name in python3.13 python3.12 python3.11 python3.10 python3; do
  command -v $name >/dev/null 2>&1 || continue
  echo "python=$(command -v $name) $($name -c 'import sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"
done
"""
"""A constant script for the board's ``sh``; it prints ``name=value`` lines."""


class Probe(msgspec.Struct, frozen=True):
    """A board's description of itself.

    Attributes:
        architecture: ``aarch64`` or ``x86_64``.
        glibc: Version of its C library, such as ``2.36``.
        model: Model in its device tree; empty without a device tree.
        memory_bytes: Total memory.
        features: CPU features, as the kernel names them.
        free_bytes: Free space of the home folder's file system.
        clock: Unix seconds on its clock.
        units: State of its user's systemd; empty without systemd.
        python: Path of the interpreter to use.
        python_version: Its version, such as ``3.11``.
    """

    architecture: str
    glibc: str
    model: str
    memory_bytes: int
    features: tuple[str, ...]
    free_bytes: int
    clock: int
    units: str
    python: str
    python_version: str


def read_probe(text: str) -> Probe:
    """Read the output of :data:`PROBE`.

    Raises:
        DeployError: The board cannot run armlet; the message names what is missing.
    """
    answers: dict[str, str] = {}
    pythons: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        path, _, version = value.partition(" ")
        if name == "python" and version in PYTHONS:
            pythons.setdefault(version, path)
        else:
            answers[name] = value
    if answers.get("architecture") not in ("aarch64", "x86_64"):
        raise DeployError(
            f"this board is a {answers.get('architecture') or 'machine of unknown kind'}; armlet supports 64-bit Arm "
            f"(aarch64) and x86-64: install a 64-bit system on it"
        )
    if not re.fullmatch(r"2\.\d+", answers.get("glibc", "")):
        raise DeployError(
            "this board has no GNU C library, which the engines need: install Debian, Raspberry Pi OS or Ubuntu"
        )
    best = next((version for version in PYTHONS if version in pythons), None)
    if best is None:
        raise DeployError(f"this board has no Python {PYTHONS[-1]} to {PYTHONS[0]} with its venv module: install it")
    return Probe(
        architecture=answers["architecture"],
        glibc=answers["glibc"],
        model=answers.get("model", ""),
        memory_bytes=int(answers.get("memory_kb") or 0) * 1024,
        features=tuple(answers.get("features", "").split()),
        free_bytes=int(answers.get("free_kb") or 0) * 1024,
        clock=int(answers.get("clock") or 0),
        units=answers.get("units", ""),
        python=pythons[best],
        python_version=best,
    )


class Environment(msgspec.Struct, frozen=True):
    """Contents of a board's ``site-packages``.

    Attributes:
        digest: Digest of the contents, by which a board recognises an environment that it has.
        archive: Gzipped tar archive of the contents.
        size: Bytes that the files take on a disk with blocks of 4 KiB.
    """

    digest: str
    archive: bytes
    size: int


def gather(probe: Probe, extras: tuple[str, ...] = ()) -> Environment:
    """Gather a board's environment.

    Args:
        probe: The board.
        extras: Engines besides LiteRT, as extras of armlet: ``onnx``, ``executorch``.

    Raises:
        DeployError: A requirement has no wheel for this board, or an engine is not made for its Python.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "requirements.in").write_text("\n".join(requirements(probe, extras)) + "\n")
        platform = f"{probe.architecture}-manylinux_2_{min(int(probe.glibc.split('.')[1]), 40)}"
        machine = ["--python-version", probe.python_version, "--python-platform", platform, "--only-binary", ":all:"]
        lock = str(root / "requirements.txt")
        _uv(["pip", "compile", *machine, "--generate-hashes", str(root / "requirements.in"), "-o", lock], probe)
        site = root / "site"
        target = ["--target", str(site)]
        _uv(["pip", "install", *machine, *target, "--require-hashes", "--no-deps", "-r", lock], probe)
        _uv(["pip", "install", *machine, *target, "--no-deps", str(_own_wheel(root, probe))], probe)
        size = sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in site.rglob("*") if path.is_file())
        return Environment(_digest(site), _pack(site), size)


def requirements(probe: Probe, extras: tuple[str, ...]) -> list[str]:
    """Armlet's requirements on the board, with those of the extras.

    Raises:
        DeployError: An extra has no requirement for the board's Python, so that its engine would be missing.
    """
    always = _of_extra(probe, "")
    lines = list(always)
    for extra in extras:
        added = [line for line in _of_extra(probe, extra) if line not in always]
        if not added:
            raise DeployError(
                f"there is no '{extra}' for Python {probe.python_version} on {probe.architecture}: leave out --engine "
                f"{extra} (LiteRT is always there), or put a newer Python on the board"
            )
        lines += added
    return lines


def _of_extra(probe: Probe, extra: str) -> list[str]:
    """Requirements whose markers hold on the board with this extra, as lines without markers."""
    environment = {
        "extra": extra,
        "implementation_name": "cpython",
        "platform_machine": probe.architecture,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{probe.python_version}.0",
        "python_version": probe.python_version,
        "sys_platform": "linux",
    }
    lines = []
    for requirement in map(Requirement, requires("armlet") or []):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            requirement.marker = None
            lines.append(str(requirement))
    return lines


def _own_wheel(root: Path, probe: Probe) -> Path | str:
    """Build the wheel of this armlet from its sources; without sources return the requirement of its version."""
    installed = distribution("armlet")
    where = json.loads(installed.read_text("direct_url.json") or "{}").get("url", "")
    if not where.startswith("file://"):
        return f"armlet=={installed.version}"
    _uv(["build", "--wheel", "--out-dir", str(root), path_of(where)], probe)
    return next(root.glob("armlet-*.whl"))


def path_of(url: str) -> str:
    """Decode the path of a ``file://`` address, in which blanks and other characters are escaped."""
    return url2pathname(urlsplit(url).path)


def _uv(arguments: list[str], probe: Probe) -> None:
    command = [sys.executable, "-m", "uv", "--quiet", "--no-python-downloads", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        complaint = " ".join(done.stderr.split())
        raise DeployError(
            f"cannot gather the packages for a board with Python {probe.python_version}, {probe.architecture} and "
            f"glibc {probe.glibc}: {complaint[:400]}"
        )


def _pack(site: Path) -> bytes:
    buffer = io.BytesIO()
    # Level 1: the archive is sent once, and a higher level would take longer than sending it.
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for path in sorted(site.rglob("*")):
            info = archive.gettarinfo(path, str(path.relative_to(site)))
            info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
            if info.isreg():
                with path.open("rb") as file:
                    archive.addfile(info, file)
            elif info.isdir():
                archive.addfile(info)
    return buffer.getvalue()


def _digest(site: Path) -> str:
    # Installers write times and paths of the workstation into these files.
    notes = ("RECORD", "direct_url.json", "uv_cache.json", "uv_build.json", "REQUESTED", "INSTALLER")
    whole = hashlib.sha256()
    for path in sorted(site.rglob("*")):
        if path.is_file() and path.name not in notes:
            whole.update(f"{path.relative_to(site)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()
