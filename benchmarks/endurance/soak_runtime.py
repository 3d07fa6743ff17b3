"""The runtime's half of the soak (``soak.py``): session and live loop as in ``armlet run``.

``python -m benchmarks.endurance.soak_runtime --bundle FILE --socket PATH --packets FILE`` is that half as a process of
its own, as on a board. It says in lines of JSON what state its links are in, and its figures when SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from bleak.backends.client import BaseBleakClient
from bleak.backends.scanner import BaseBleakScanner
from bumble.device import Device

from armlet_bridge.radio import Bluetooth, open_bluetooth
from armlet_runtime.bluetooth import Link, Session, drive
from armlet_runtime.bundle import open_bundle, trusted_keys
from armlet_runtime.decisions import Decision
from armlet_runtime.errors import WearableError
from armlet_runtime.live import LiveCore
from armlet_runtime.model import BundleModel
from armlet_runtime.signals import Packet
from armlet_runtime.wearables import movesense, muse
from tests.support import fast_clock

SAMPLE_NS = 10_000_000_000
"""Resident memory is looked at so often."""


@dataclass(frozen=True)
class Spec:
    """A stream of a wearable: the wearable's name and profile, the stream's rate in Hz, channels and the unit of the
    count."""

    name: str
    profile: str
    modality: str
    rate_hz: float
    channels: tuple[str, ...]
    unit: str
    step: float
    turn: int  # the count begins anew after so many samples


XYZ = ("x", "y", "z")
SPECS = (
    Spec("Imu", "imu", "acc", 50.0, XYZ, "g", 0.003, 1000),
    Spec("Imu", "imu", "gyro", 50.0, XYZ, "rad/s", 0.01, 1000),
    Spec("Polar H10 1", "polar", "ecg", 130.0, ("ecg",), "mV", 0.002, 2000),
    Spec("Movesense 2", "movesense", "ecg", 512.0, ("ecg",), "mV", movesense.ECG_MV * 2, 4000),
    Spec("Muse-3", "muse", "eeg", 256.0, tuple(muse.EEG_UUIDS.values()), "uV", muse.EEG_UV, 2000),
)
NAMES = tuple(dict.fromkeys(spec.name for spec in SPECS))


class Adapter:
    """An adapter that can be pulled out and put back in: what :class:`armlet_runtime.bluetooth.Session`
    takes."""

    options: Mapping[str, Any] = {}

    def __init__(self, socket: str) -> None:
        """``socket``: a Unix socket on which a controller answers while the adapter is in."""
        self._transport = f"unix-client:{socket}"
        self._now: Bluetooth | None = None
        self.found = asyncio.Event()

    async def keep(self) -> None:
        """Take up the controller whenever there is one; never returns."""
        while True:
            with suppress(WearableError):  # it is not in
                async with open_bluetooth(self._transport) as self._now:
                    # asyncio reads a socket into 256 KiB at the end of the heap, which no adapter of a board needs.
                    self._now.radio.device.host.hci_sink.transport.max_size = 4096
                    lost = asyncio.Event()
                    self._now.radio.device.once(Device.EVENT_FLUSH, lost.set)
                    self.found.set()
                    await lost.wait()
            await asyncio.sleep(0.1)

    @property
    def scanner(self) -> type[BaseBleakScanner]:
        assert self._now is not None
        return self._now.scanner

    @property
    def client(self) -> type[BaseBleakClient]:
        assert self._now is not None
        return self._now.client

    def interval_ms(self, address: str) -> float | None:
        assert self._now is not None
        return self._now.interval_ms(address)


class Told:
    """What is told of decisions.

    Attributes:
        decisions: How many there were.
        missed: How many of them did not follow the one before.
        subsets: Subset to how many were made on it.
    """

    def __init__(self) -> None:
        self.decisions = self.missed = 0
        self.subsets: Counter[str] = Counter()
        self._sha256 = sha256()

    def add(self, decision: Decision) -> None:
        self.missed += decision.index != self.decisions
        self.decisions += 1
        self.subsets["+".join(decision.subset)] += 1
        facts = (decision.window_end_ns, decision.decided_ns, decision.subset, decision.label, decision.scores)
        self._sha256.update(repr(facts).encode())

    def summary(self) -> dict[str, Any]:
        """``sha256`` is of what a replay must repeat."""
        return {
            "decisions": self.decisions,
            "missed": self.missed,
            "subsets": dict(self.subsets),
            "sha256": self._sha256.hexdigest(),
        }


class Soaked:
    """The runtime's half.

    Attributes:
        pid: The process in which it runs; SIGTERM ends it.
        links: Wearable to its link, once the session is there.
    """

    def __init__(self, model: BundleModel, socket: str, packets: Path) -> None:
        """Begin without an adapter.

        Args:
            model: What decides.
            socket: Where the adapter's controller answers.
            packets: Where to write what arrives, one pickled packet after the other. Not a recording: its index would
                grow in memory, for as long as it is written.
        """
        self.pid = os.getpid()
        self.links: Mapping[str, Link] = {}
        self._core = LiveCore(model, time.monotonic_ns)
        self._hop_ns = round(model.manifest.window.hop_s * 1e9)
        self._socket = socket
        self._packets = packets
        self._told = Told()
        self._longest_ns = 0
        self._latest_out_ns: int | None = None
        self._memory: list[tuple[float, int, int]] = []
        self._memory_ns = 0

    async def run(self) -> dict[str, Any]:
        """Run until SIGTERM, and give the figures."""
        adapter = Adapter(self._socket)
        keeping = asyncio.ensure_future(adapter.keep())
        try:
            await adapter.found.wait()
            session = Session(adapter, NAMES, {"acc": None, "gyro": None, "eeg": None, "ecg": 512.0})
            self.links = session.links
            with self._packets.open("wb") as file:
                ended_ns = await drive(session, lambda packets, now_ns: self._turn(file, packets, now_ns))
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        return self._figures(session, ended_ns)

    def _turn(self, file: IO[bytes], packets: list[Packet], now_ns: int) -> int | None:
        for packet in packets:
            pickle.dump(packet, file)
            self._out(self._core.packet(packet))
        self._out(self._core.advance(now_ns))
        if now_ns - self._memory_ns >= SAMPLE_NS:
            self._memory_ns = now_ns
            self._memory.append((now_ns / 60e9, *resident_kib()))
        return self._core.due_ns()

    def _out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            now_ns = time.monotonic_ns()
            if self._latest_out_ns is not None:
                self._longest_ns = max(self._longest_ns, now_ns - self._latest_out_ns)
            self._latest_out_ns = now_ns
            self._told.add(decision)

    def _figures(self, session: Session, ended_ns: int) -> dict[str, Any]:
        counted = {}
        for name in NAMES:
            counts = self._core.wearables[name].counts.values()
            counted[name] = {
                key: sum(getattr(count, key) for count in counts)
                for key in ("duplicated", "out_of_order", "malformed", "lost", "implausible", "restarts")
            }
            counted[name]["connections"] = session.links[name].connections
        return {
            "counted": counted,
            **self._told.summary(),
            "ended_ns": ended_ns,
            "longest_silence_hops": self._longest_ns / self._hop_ns,
            "dropped_packets": session.dropped,
            "memory": self._memory,
        }


def resident_kib() -> tuple[int, int]:
    """Resident memory of this process, all and anonymous, in KiB.

    Of ``smaps_rollup``, which counts pages. Other counts of the kernel are kept apart for each processor and may be off
    by dozens of pages (Documentation/filesystems/proc.rst on ``statm`` and ``status``).
    """
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {key: int(value.split()[0]) for key, value in (line.split(":") for line in lines)}
    return kib["Rss"], kib["Anonymous"]


async def report(model: BundleModel, socket: str, packets: Path) -> None:
    """Run one, and say what the other half is to know."""
    soaked = Soaked(model, socket, packets)
    running = asyncio.ensure_future(soaked.run())
    printed = ""
    while not running.done():
        line = json.dumps({name: (link.state, link.connections) for name, link in soaked.links.items()})
        if line != printed:
            print(printed := line, flush=True)
        await asyncio.wait({running}, timeout=0.05)
    print(json.dumps({"figures": running.result()}), flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--key", type=Path, action="append", default=[])
    parser.add_argument("--socket", required=True)
    parser.add_argument("--packets", type=Path, required=True)
    parser.add_argument("--speed", type=float, default=1.0)
    args = parser.parse_args()
    model = BundleModel.from_bundle(open_bundle(args.bundle, trusted_keys(args.key)))
    fast_clock.run(report(model, args.socket, args.packets), args.speed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
