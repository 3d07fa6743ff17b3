"""A user-mode Linux kernel with Bluetooth, built once from Debian's source package and kept in a cache.

``python tests/runtime/bluez/kernel.py`` builds it and prints where it lies.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support import artefacts

SOURCE = Path("/usr/src/linux-source-6.1.tar.xz")
CONFIG = Path(__file__).with_name("kernel.config")
INIT = Path(__file__).with_name("init.sh")

# What must be there, and the Debian package that has it.
NEEDS = {
    str(SOURCE): "linux-source-6.1",
    "/usr/bin/bc": "bc",
    "/usr/bin/flex": "flex",
    "/usr/bin/bison": "bison",
    "/usr/bin/gcc": "gcc",
    "/usr/bin/make": "make",
    "/usr/bin/xz": "xz-utils",
    "/usr/bin/dbus-daemon": "dbus",
    "/usr/libexec/bluetooth/bluetoothd": "bluez",
}

# Of the source 1.3 GB; these sources are not needed, their Kconfig files are.
LEFT_OUT = (
    "*/Documentation/*/*", "*/tools/*", "*/samples/*.c", "*/sound/*.[ch]", "*.dts*", "*/arch/[!xu]*/*.[chS]",
    *(f"*/drivers/{one}/*/*.[ch]" for one in ("gpu", "net", "media", "staging", "infiniband", "scsi", "iio", "clk")),
)  # fmt: skip


def missing() -> list[str]:
    """Debian packages without which there is no real BlueZ here."""
    return [package for path, package in NEEDS.items() if not Path(path).exists()]


def build() -> Path:
    """Build the kernel unless the cache has it.

    Returns:
        Its executable.

    Raises:
        subprocess.CalledProcessError: The build failed; what it said is in ``stderr``.
    """
    told = f"{SOURCE.stat().st_size} {SOURCE.stat().st_mtime_ns} {LEFT_OUT}".encode()
    key = hashlib.sha256(CONFIG.read_bytes() + told).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    cache = Path(os.environ.get("ARMLET_CACHE", base / "armlet"))
    kernel = cache / f"user-mode-linux-{key}"
    with artefacts.locked(cache / ".user-mode-linux.lock"):
        if not kernel.exists():
            _build(kernel)
    return kernel


def _build(kernel: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="armlet-kernel-") as name:
        folder = Path(name)
        excluded = [f"--exclude={pattern}" for pattern in LEFT_OUT]
        _run("tar", "xf", str(SOURCE), "--strip-components=1", *excluded, "-C", name)
        make = ("make", "-s", "-C", name, "ARCH=um")
        _run(*make, "allnoconfig", f"KCONFIG_ALLCONFIG={CONFIG}")
        _run(*make, f"-j{os.cpu_count() or 1}", "linux")
        _run("strip", str(folder / "linux"))
        # Renamed into its place, so that a build that was interrupted leaves nothing behind.
        with tempfile.NamedTemporaryFile(dir=kernel.parent, delete=False) as file:
            part = Path(file.name)
        shutil.copy(folder / "linux", part)
        part.chmod(0o755)
        part.rename(kernel)


def refusal(kernel: Path) -> str:
    """What the host forbids, in the kernel's words, without which none can be booted; empty if one can be.

    A user-mode Linux traces its processes (ptrace), which some containers forbid, and maps its memory from a file in
    TMPDIR, which some systems mount noexec.
    """
    command = [str(kernel), "mem=64M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init=/bin/true"]
    with tempfile.TemporaryDirectory(prefix="armlet-uml-") as name:
        tried = subprocess.run(
            [*command, "con=null", "con0=null,fd:1", "quiet"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", env={**os.environ, "HOME": name}, timeout=60,
        )  # fmt: skip
    return "; ".join(line for line in tried.stdout.splitlines() if "not permitted" in line or "noexec" in line)


def boot(kernel: Path, tests: Path, timeout_s: float, clock: str = "virtual", **variables: str) -> tuple[int, str]:
    """Boot the kernel, run a file of tests as root inside, power off.

    Args:
        kernel: Of :func:`build`.
        tests: They see the host's file system read-only, a system D-Bus, and no ``bluetoothd`` yet.
        timeout_s: After which it is killed.
        clock: What time is inside. ``virtual``: it stands still while a process runs, and what all sleep is skipped
            (time-travel=inf-cpu), so that how fast or busy the host is changes nothing. ``real``: the host's.
        variables: Of its environment, without blanks.

    Returns:
        pytest's exit status (-1 if it did not come to one), and all that was said.
    """
    with tempfile.TemporaryDirectory(prefix="armlet-uml-") as name:
        seed = Path(name) / "seed"
        seed.write_bytes(os.urandom(64))
        command = [
            str(kernel), "mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={INIT}",
            "con=null", "con0=null,fd:1", "quiet", *(["time-travel=inf-cpu"] if clock == "virtual" else []),
            f"ARMLET_PYTHON={sys.executable}", f"ARMLET_TESTS={tests}", f"ARMLET_SEED={seed}", f"ARMLET_CLOCK={clock}",
            *(f"{name}={value}" for name, value in variables.items()),
        ]  # fmt: skip
        # The guest's memory is a file in TMPDIR; HOME holds its control socket.
        environment = {**os.environ, "HOME": name}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            said, _ = process.communicate()
            said += f"\nnot finished in {timeout_s:g} s"
    marks = [line.partition("=")[2] for line in said.splitlines() if line.startswith("GUEST_EXIT=")]
    return (int(marks[-1]) if marks else -1), said


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    print(build())
