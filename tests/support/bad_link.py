"""A bad link: IP packets between here and a network namespace, some lost, all late, or none for a while.

Two TUN devices, and between them a thread that hands packets on. What is tried over it is the kernel's own TCP, which
sees losses and delays as it does on a radio link. Needs root, ``ip`` (Debian: iproute2) and ``/dev/net/tun``.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

# linux/if_tun.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1500
NUMBERS = 256


def why_not() -> str:
    """Why there can be no bad link here; empty if there can."""
    if shutil.which("ip") is None:
        return "ip is not installed: apt-get install iproute2"
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        return "made links need root and /dev/net/tun"
    with free_number() as number:
        name = f"armlet{number}"
        tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
        if tried.returncode:
            return f"no network namespaces here ({tried.stderr.strip()})"
        subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


@contextlib.contextmanager
def free_number() -> Iterator[int]:
    """A number that no other process of this machine has: names of devices and addresses are made of it."""
    for number in range(NUMBERS):
        with Path(tempfile.gettempdir(), f"armlet-link-{number}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            # Whoever had the number before may have been killed with its namespace up.
            subprocess.run(["ip", "netns", "del", f"armlet{number}"], capture_output=True, check=False)
            yield number
            return
    raise RuntimeError(f"all {NUMBERS} made links of this machine are in use")


class BadLink:
    """A link to a namespace. A context manager.

    Attributes:
        namespace: Name of the namespace.
        address: The far end's address, as seen from here.
        loss: Share of packets that are lost, each way.
        delay_s: How late every packet is, each way.
        cut: Whether none gets through.
        carried: Packets that got through.
        lost: Packets that did not.
    """

    def __init__(self, loss: float = 0.0, delay_s: float = 0.0, seed: int = 1) -> None:
        """Make nothing yet."""
        with contextlib.ExitStack() as stack:
            number = stack.enter_context(free_number())
            self._held = stack.pop_all()
        self.namespace = f"armlet{number}"
        # A network of four addresses for each number.
        self._here, self.address = (f"10.213.{number // 64}.{number % 64 * 4 + host}" for host in (1, 2))
        self._names = (f"arm{number}h", f"arm{number}b")
        self.loss, self.delay_s, self.cut = loss, delay_s, False
        self.carried = self.lost = 0
        self._random = random.Random(seed)
        self._ended = threading.Event()

    def __enter__(self) -> BadLink:
        """Make the namespace and both ends."""
        self._ip("netns", "add", self.namespace)
        self._ends = [self._tun(name) for name in self._names]
        here, there = self._names
        self._ip("link", "set", there, "netns", self.namespace)
        self._ip("addr", "add", f"{self._here}/30", "dev", here)
        self._ip("link", "set", here, "mtu", str(MTU), "up")
        for command in (
            ("addr", "add", f"{self.address}/30", "dev", there),
            ("link", "set", there, "mtu", str(MTU), "up"),
            ("link", "set", "lo", "up"),
        ):
            self._ip("-n", self.namespace, *command)
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take all of it away, with the processes at the far end."""
        for pid in subprocess.check_output(["ip", "netns", "pids", self.namespace], text=True).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self._ended.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)
        self._ip("netns", "del", self.namespace)
        self._held.close()

    def inside(self, *command: str) -> list[str]:
        """The command line that runs a command in the namespace."""
        return ["ip", "netns", "exec", self.namespace, *command]

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    @staticmethod
    def _tun(name: str) -> int:
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        return end

    def _carry(self) -> None:
        late: list[tuple[float, int, int, bytes]] = []
        number = 0
        while not self._ended.is_set():
            wait = max(0.0, late[0][0] - time.monotonic()) if late else 0.05
            ready, _, _ = select.select(self._ends, [], [], min(wait, 0.05))
            now = time.monotonic()
            for end in ready:
                packet = os.read(end, MTU + 100)
                if self.cut or self._random.random() < self.loss:
                    self.lost += 1
                    continue
                number += 1
                other = self._ends[1 - self._ends.index(end)]
                heapq.heappush(late, (now + self.delay_s, number, other, packet))
            while late and late[0][0] <= now:
                _, _, other, packet = heapq.heappop(late)
                os.write(other, packet)
                self.carried += 1
