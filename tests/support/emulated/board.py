"""An emulated board: a Debian arm64 system with its own kernel, sshd and disk under QEMU.

The system is not installed, because that takes a quarter of an hour under emulation: Debian's packages are unpacked
here, a few files that their installation would have written are written, and the whole becomes an ext4 disk. The kernel
boots with a small first file system that holds its drivers, then runs from the disk, which keeps what was written when
QEMU is killed.

Two machines: ``virt`` with a Cortex-A76 (the Raspberry Pi 5's core), and ``raspi3b``, a Raspberry Pi 3 Model B with
its own device tree, SD card and a network over USB, and like it without a clock that runs while it is off. Their clocks
count instructions, a nanosecond each, so that a board's limits (how long a golden run may take) do not depend on what
else the host does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from .. import artefacts, sshd

DEBIAN = "bookworm"
TOOLS = {
    "qemu-system-aarch64": "qemu-system-arm", "mmdebstrap": "mmdebstrap", "ssh-keygen": "openssh-client",
    "cpio": "cpio", "depmod": "kmod", "mke2fs": "e2fsprogs",
}  # fmt: skip
PACKAGES = (
    "linux-image-arm64", "base-files", "base-passwd", "busybox-static", "openssh-server", "openssh-sftp-server",
    "python3", "bash", "dash", "coreutils", "grep", "sed", "gzip", "tar", "procps", "iproute2", "mount", "util-linux",
    "libc-bin", "libstdc++6", "netbase", "hostname",
)  # fmt: skip
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
DISK_BYTES = 1 << 30
"""A power of two, as QEMU wants it of SD cards; the file takes what is written."""

BOOT_S = 400.0
"""Patience for a machine whose host has other work."""

READY, STARTED = "BOARD-READY", "ARMLET-STARTED"
PREFIX = "/home/pi/.local/share/armlet"

INITRD_INIT = """#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
for module in $(busybox cat /modules.$machine); do busybox insmod /$module; done
tries=0
until busybox mount -t ext4 -o noatime $disk /root 2>/dev/null; do
  busybox sleep 0.1
  tries=$((tries + 1))
  [ $tries -lt 600 ] || { echo "no disk $disk"; busybox poweroff -f; }
done
busybox mount -o move /dev /root/dev
exec busybox switch_root /root /sbin/init
"""
"""``machine``, ``disk`` and ``link`` come from the kernel's command line."""

INITTAB = "::sysinit:/etc/start\n::once:/etc/start-armlet\n"

START = f"""#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /dev/pts /run/sshd
mount -t devpts devpts /dev/pts
hostname -F /etc/hostname
ip link set lo up
until ip link set $link up 2>/dev/null; do sleep 0.1; done
ip address add 10.0.2.15/24 dev $link
/usr/sbin/sshd
echo {READY} > /dev/console
"""


def start_armlet(prefix: Path, out: Path) -> str:
    """What a board without systemd and without Bluetooth does at every start: a Python program.

    It does what ``armlet run`` does before it scans, and then verifies the bundle in use and makes its golden run.
    """
    return f"""
import sys
from pathlib import Path
from armlet_runtime.cli import main
from armlet_runtime.install.probation import settle
settle(Path("{prefix}/slot"))
sys.exit(main(["verify", "file:{prefix}/slot", "--golden", "--json", "{out}"]))
"""


START_ARMLET = f"""#!/bin/sh
[ -e {PREFIX}/slot/state.json ] || exit 0
cd /home/pi
setpriv --reuid=1000 --regid=1000 --clear-groups env HOME=/home/pi ARMLET_HOME={PREFIX}/home \\
  {PREFIX}/venv/bin/python /etc/start-armlet.py > /tmp/started.log 2>&1
echo "{STARTED} $? $(tail -n 1 /tmp/started.log) $(tr -d '\\n' < /tmp/started.json)" > /dev/console
"""

FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
    "pi:x:1000:1000::/home/pi:/bin/bash\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\npi:*:19000:0:99999:7:::\n",
    "etc/group": "root:x:0:\ntty:x:5:\npi:x:1000:\nnogroup:x:65534:\n",
    "etc/hostname": "board\n",
    "etc/ssh/sshd_config": "UsePAM no\nPasswordAuthentication no\nSubsystem sftp /usr/lib/openssh/sftp-server\n",
    "etc/inittab": INITTAB,
    "etc/start": START,
    "etc/start-armlet": START_ARMLET,
    "etc/start-armlet.py": start_armlet(Path(PREFIX), Path("/tmp/started.json")),
}


@dataclass(frozen=True)
class Kind:
    """A machine that QEMU knows: its options, its drivers, and what its kernel calls its disk and its network."""

    options: tuple[str, ...]
    disk_options: tuple[str, ...]
    network: str
    modules: tuple[str, ...]
    console: str
    disk: str
    link: str


KINDS = {
    "virt": Kind(
        ("-M", "virt", "-cpu", "cortex-a76", "-m", "1024"),
        ("-drive", "file={disk},format=raw,if=none,id=disk", "-device", "virtio-blk-device,drive=disk"),
        "virtio-net-device",
        ("virtio_mmio", "virtio_blk", "virtio_net", "crc32c_generic", "ext4"),
        "ttyAMA0",
        "/dev/vda",
        "eth0",
    ),
    "raspi3b": Kind(
        ("-M", "raspi3b", "-dtb", "{folder}/bcm2837-rpi-3-b.dtb"),
        ("-drive", "file={disk},format=raw,if=sd"),
        "usb-net",
        (
            "bcm2835", "sdhci-iproc", "reset-raspberrypi", "phy-generic", "dwc2", "cdc_ether", "rndis_host",
            "crc32c_generic", "ext4",
        ),
        "ttyAMA0,115200",
        "/dev/mmcblk0",
        "usb0",
    ),
}  # fmt: skip


class BoardDownError(RuntimeError):
    """The machine did not come up, or went down by itself."""


def missing_packages() -> list[str]:
    """Debian packages that this machine lacks for it."""
    return sorted(package for tool, package in TOOLS.items() if shutil.which(tool, path=PATH) is None)


def system(cache: Path) -> Path:
    """The folder with the system: ``disk.ext4``, ``vmlinuz``, ``initrd``, device trees and keys; made if not there.

    Raises:
        subprocess.CalledProcessError: A step of making it failed; Debian's packages need a network.
    """
    contents = repr((DEBIAN, PACKAGES, FILES, INITRD_INIT, KINDS, DISK_BYTES))
    key = hashlib.sha256(contents.encode()).hexdigest()[:8]
    return artefacts.made(f"emulated-board-{DEBIAN}", key, _make_system, cache)


def _make_system(folder: Path) -> None:
    root = folder / "root"
    _run(
        "mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", f"--include={','.join(PACKAGES)}",
        DEBIAN, root,
    )  # fmt: skip
    version = next((root / "lib" / "modules").iterdir()).name
    shutil.copy(root / f"boot/vmlinuz-{version}", folder / "vmlinuz")
    for tree in (root / f"usr/lib/linux-image-{version}/broadcom").glob("bcm2837-*.dtb"):
        shutil.copy(tree, folder)
    _make_initrd(root, version, folder)
    for name in ("boot", "lib/modules", f"usr/lib/linux-image-{version}", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(root / name, ignore_errors=True)
    _write_files(root, folder)
    with (folder / "disk.ext4").open("wb") as disk:
        disk.truncate(DISK_BYTES)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-d", root, folder / "disk.ext4")
    shutil.rmtree(root)


def _make_initrd(root: Path, version: str, folder: Path) -> None:
    _run("depmod", "-b", root, version)
    needs = {}
    for line in (root / f"lib/modules/{version}/modules.dep").read_text().splitlines():
        file, _, others = line.partition(":")
        needs[Path(file).stem] = (file, others.split())
    tree = folder / "initrd-root"
    for name in ("bin", "dev", "proc", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", tree / "bin/busybox")
    for machine, kind in KINDS.items():
        order: list[str] = []
        for module in kind.modules:
            own, before = needs[module]
            order += [needed for needed in (*reversed(before), own) if needed not in order]
        for driver in map(Path, order):
            (tree / driver).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / f"lib/modules/{version}" / driver, tree / driver)
        (tree / f"modules.{machine}").write_text("\n".join(order) + "\n")
    (tree / "init").write_text(INITRD_INIT)
    (tree / "init").chmod(0o755)
    pack = "find . | cpio --quiet --create --format=newc --owner=0:0 | gzip -1 > ../initrd"
    subprocess.run(["sh", "-c", pack], cwd=tree, check=True, capture_output=True, text=True)
    shutil.rmtree(tree)


def _write_files(root: Path, folder: Path) -> None:
    for name, text in FILES.items():
        path = root / name
        path.write_text(text)
        path.chmod(0o755 if text.startswith("#!") else 0o600 if name == "etc/shadow" else 0o644)
    init = root / "sbin/init"
    init.unlink(missing_ok=True)
    init.symlink_to("/bin/busybox")
    for name in ("dev", "proc", "sys", "run", "tmp", "root"):
        (root / name).mkdir(exist_ok=True)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / "etc/ssh/ssh_host_ed25519_key")
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "id_ed25519")
    shutil.copy(root / "etc/ssh/ssh_host_ed25519_key.pub", folder / "host_key.pub")
    home = root / "home/pi"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    shutil.copy(folder / "id_ed25519.pub", home / ".ssh/authorized_keys")
    for path in (home, *home.rglob("*")):
        os.chown(path, 1000, 1000)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PATH": PATH})


@dataclass
class Machine:
    """One board with a disk of its own.

    Attributes:
        machine: Name of its kind.
        system: Folder from :func:`system`.
        folder: Where its disk and the logs of its console lie.
    """

    machine: str
    system: Path
    folder: Path
    port: int = 0
    boots: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        _run("cp", "--sparse=always", self.system / "disk.ext4", self.disk)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    @property
    def disk(self) -> Path:
        """Its disk."""
        return self.folder / "disk"

    @property
    def console(self) -> Path:
        """What its console said since it was switched on."""
        return self.folder / f"console-{self.boots}.log"

    def switch_on(self) -> float:
        """Boot; seconds until its sshd was started."""
        assert self.process is None, "it is on"
        self.boots += 1
        kind = KINDS[self.machine]
        forward = f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22"  # and no way out: it has no internet
        line = (
            f"console={kind.console} loglevel=3 rdinit=/init machine={self.machine} disk={kind.disk} link={kind.link}"
        )
        fill = {"disk": self.disk, "folder": self.system}
        self.process = subprocess.Popen(
            [
                "qemu-system-aarch64", *(option.format(**fill) for option in (*kind.options, *kind.disk_options)),
                "-accel", "tcg", "-icount", "shift=0",
                "-kernel", self.system / "vmlinuz", "-initrd", self.system / "initrd",
                "-append", line, "-netdev", forward, "-device", f"{kind.network},netdev=net",
                "-display", "none", "-monitor", "none", "-serial", f"file:{self.console}", "-no-reboot",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(self.folder / "qemu.log").open("wb"),
        )  # fmt: skip
        began = time.monotonic()
        self.wait_for(READY)
        return time.monotonic() - began

    def wait_for(self, word: str, seconds: float = BOOT_S) -> str:
        """The line of the console with that word, once it is there.

        Raises:
            BoardDownError: It did not come, or the machine went down.
        """
        assert self.process is not None
        end = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            text = self.console.read_text(errors="replace") if self.console.exists() else ""
            for line in text.splitlines(keepends=True):
                if word in line and line.endswith("\n"):
                    return line[line.index(word) :].strip()
            if ended or time.monotonic() > end:
                raise BoardDownError(
                    f"no '{word}' on the console of {self.machine}; it ended so:\n{text[-2000:]}\n"
                    + (self.folder / "qemu.log").read_text()
                )
            time.sleep(0.05)

    def last_words(self) -> str:
        """What its console said last."""
        return self.console.read_text(errors="replace")[-800:]

    def pull_the_plug(self) -> None:
        """Kill QEMU at once; nothing that the board had not given to its disk is kept."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def write_ssh_config(self, home: Path) -> None:
        """Have ``ssh://board`` mean this machine for whoever has that home.

        On a busy host its time passes slowly, and a link that answers late is not lost yet.
        """
        sshd.write_config(home, self.port, "pi", self.system / "id_ed25519", "ServerAliveCountMax 100")

    @property
    def fingerprint(self) -> str:
        """Of its host key."""
        return sshd.fingerprint(self.system / "host_key.pub")
