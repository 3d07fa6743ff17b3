"""Four wearables for half an hour, and a hundred thousand faults.

``python -m benchmarks.soak --bundle FILE --key FILE.pub``: an IMU, a Polar H10, a Movesense sensor and a Muse, all
virtual, play a recording whose values number its samples, into the session and the live loop of ``armlet run``.
Meanwhile packets are lost, doubled, put out of order, cut off and lengthened, wearables go out of reach, hang up, fall
silent and restart, and the adapter is pulled out and put back in. Idle time is skipped (``skipped_idle.py``).

Each fault is noted, and so is what the runtime's counts say in the end. Packet faults keep away from link faults by a
second, and from each other by a packet; else a count would not be known (a doubled packet whose first copy was
swallowed by a lost link is no repeat).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bleak.backends.client import BaseBleakClient
from bleak.backends.scanner import BaseBleakScanner

from armlet_bridge.air import AirController, AirLink
from armlet_bridge.bumble_backend import Bluetooth, open_bluetooth
from armlet_bridge.virtual import VirtualWearable
from armlet_runtime.ble import Session
from armlet_runtime.bundle import open_bundle
from armlet_runtime.decisions import Decision
from armlet_runtime.driver import drive
from armlet_runtime.live import LiveCore
from armlet_runtime.modalities import Modality
from armlet_runtime.model import BundleModel
from armlet_runtime.recording import Packet, Stream
from armlet_runtime.streams import SampleRing
from armlet_runtime.trust import trusted_keys
from armlet_runtime.wearables import movesense, muse

from . import skipped_idle

TOLERANCE_NS = 20_000_000
"""A sample further than this from the time at which it was taken is at a wrong time."""
ACTIVE = 0.75
"""Share of the packets that may be touched: while no link is lost, or about to be."""
CALM_S = 1.0
"""No packet is touched for so long before and after a link fault."""


@dataclass(frozen=True)
class Spec:
    """A wearable: its name, its profile, and its streams with their rates in Hz, channels and the unit of the count."""

    name: str
    profile: str
    modality: str
    rate_hz: float
    channels: tuple[str, ...]
    unit: str
    step: float
    turn: int  # the count begins anew after so many samples

    def stream(self, seconds: float) -> Stream:
        count = round(seconds * self.rate_hz)
        times = np.rint(np.arange(count) * 1e9 / self.rate_hz).astype(np.int64)
        numbers = (np.arange(count) % self.turn * self.step).astype(np.float32)
        values = np.repeat(numbers[:, None], len(self.channels), axis=1)
        return Stream(Modality(self.modality, self.channels, self.unit, self.rate_hz), times, values)


XYZ = ("x", "y", "z")
SPECS = (
    Spec("Imu", "imu", "acc", 50.0, XYZ, "g", 0.003, 1000),
    Spec("Imu", "imu", "gyro", 50.0, XYZ, "rad/s", 0.01, 1000),
    Spec("Polar H10 1", "polar", "ecg", 130.0, ("ecg",), "mV", 0.002, 2000),
    Spec("Movesense 2", "movesense", "ecg", 512.0, ("ecg",), "mV", movesense.ECG_MV * 2, 4000),
    Spec("Muse-3", "muse", "eeg", 256.0, tuple(muse.EEG_UUIDS.values()), "uV", muse.EEG_UV, 2000),
)
CUTS = {"polar": 2, "movesense": 3}
"""The most bytes cut off: whole samples fewer make a packet that is valid, only shorter."""


@dataclass
class Worn:
    """One wearable, and what was done to it."""

    wearable: VirtualWearable
    profile: str
    rng: random.Random
    calm: asyncio.Lock = field(default_factory=asyncio.Lock)
    calm_now: bool = True
    stalled: bool = False
    breaks: int = 0
    done: Counter[str] = field(default_factory=Counter)
    held: bytes | None = None
    rested: bool = True
    spoilt: int = 0  # batches of a Muse that lack an electrode's packet
    newest_spoilt: bytes = b""
    playing: asyncio.Future[None] | None = None

    def tamper(self, value: bytes, share: float) -> list[bytes]:
        """What arrives in the place of a notification."""
        if self.stalled:
            self.done["swallowed"] += 1
            return []
        if self.held is not None:
            held, self.held = self.held, None
            return [value, held]
        if self.calm_now or not self.rested or self.rng.random() >= share or not self.is_data(value):
            self.rested = True
            return [value]
        self.rested = False
        kinds = ["lost", "doubled", "truncated", "oversized"] + ["reordered"] * (self.profile != "muse")
        kind = self.rng.choice(kinds)
        self.done[kind] += 1
        if self.profile == "muse" and kind in ("lost", "truncated", "oversized"):
            self.spoilt += value[:2] != self.newest_spoilt
            self.newest_spoilt = value[:2]
        if kind == "lost":
            return []
        if kind == "doubled":
            return [value, value]
        if kind == "reordered":
            self.held = value
            return []
        if kind == "truncated":
            return [value[: -self.rng.randint(1, min(CUTS.get(self.profile, 8), len(value) - 1))]]
        return [value + self.rng.randbytes(1 if self.profile in CUTS else self.rng.randint(1, 30))]

    def is_data(self, value: bytes) -> bool:
        return self.profile != "movesense" or value[0] == movesense.DATA


class Adapter:
    """An adapter that can be pulled out and put back in: what :class:`armlet_runtime.ble.Session` takes."""

    def __init__(self, air: AirLink) -> None:
        self._air = air
        self._stack = AsyncExitStack()
        self._now: Bluetooth | None = None
        self._controller: AirController | None = None

    async def plug(self) -> None:
        self._controller = AirController("host", self._air)
        self._now = await self._stack.enter_async_context(open_bluetooth(self._controller))

    async def unplug(self) -> None:
        assert self._now is not None and self._controller is not None
        self._controller.power_off()
        self._now.radio.device.host.on_transport_lost()
        await self._stack.aclose()

    @property
    def scanner(self) -> type[BaseBleakScanner]:
        assert self._now is not None
        return self._now.scanner

    @property
    def client(self) -> type[BaseBleakClient]:
        assert self._now is not None
        return self._now.client

    @property
    def options(self) -> Mapping[str, Any]:
        return {}

    def interval_ms(self, address: str) -> float | None:
        assert self._now is not None
        return self._now.interval_ms(address)


class Soak:
    """One soak; see the module's text."""

    def __init__(self, model: BundleModel, seconds: float, faults: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seconds = seconds
        packets = seconds * (50.0 + 4.0 + 512 / 16 + 256 / 12 * 4) * ACTIVE
        # Every packet after a fault is left alone.
        self.share = 1 / max(1.2, packets / max(faults, 1) - 1)
        self.faults = faults
        self.core = LiveCore(model, time.monotonic_ns)
        self.worn: dict[str, Worn] = {}
        self.unplugged = 0
        self.start_ns = 0
        self.decisions = self.missed = self.windows = self.wrong = 0
        self.worst_ns = 0
        self.longest_ns = 0
        self.latest_out_ns: int | None = None
        self.subsets: Counter[str] = Counter()
        self.resident: list[tuple[float, int]] = []

    @asynccontextmanager
    async def wearables(self, air: AirLink) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for name in dict.fromkeys(spec.name for spec in SPECS):
                specs = [spec for spec in SPECS if spec.name == name]
                streams = [spec.stream(self.seconds) for spec in specs]
                wearable = VirtualWearable(name, streams, air, 1, self.rng.uniform(-50, 50), specs[0].profile)
                stack.push_async_callback(wearable.power_off)
                await wearable.power_on()
                self.worn[name] = Worn(wearable, specs[0].profile, random.Random(self.rng.random()))
            air.tamper = lambda sender, value: (
                self.worn[sender].tamper(value, 0.0 if self._over else self.share) if sender in self.worn else [value]
            )
            yield

    async def run(self) -> dict[str, Any]:
        """Play all, break what can be broken, and give the figures."""
        air = AirLink()
        async with self.wearables(air):
            adapter = Adapter(air)
            await adapter.plug()
            session = Session(adapter, tuple(self.worn), {"acc": None, "gyro": None, "eeg": None, "ecg": 512.0})
            breaking = asyncio.ensure_future(self._break_all(session, adapter))
            with suppress(asyncio.CancelledError):
                await drive(session, self._turn, self.seconds)
            playing = [one.playing for one in self.worn.values() if one.playing is not None]
            for task in (breaking, *playing):
                task.cancel()
            await asyncio.gather(breaking, *playing, return_exceptions=True)
            if breaking.done() and not breaking.cancelled() and (error := breaking.exception()):
                raise error
            return self._figures(session)

    # --- what the live loop does --------------------------------------------------------------------------------------

    def _turn(self, packets: list[Packet], now_ns: int) -> int | None:
        for packet in packets:
            self._out(self.core.packet(packet))
        self._out(self.core.advance(now_ns))
        return self.core.due_ns()

    def _out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            now_ns = time.monotonic_ns()
            if self.latest_out_ns is not None:
                self.longest_ns = max(self.longest_ns, now_ns - self.latest_out_ns)
            self.latest_out_ns = now_ns
            self.missed += decision.index != self.decisions
            self.decisions += 1
            self.subsets["+".join(decision.subset)] += 1
            for spec in SPECS:
                wearable = self.core.wearables.get(spec.name)
                if self.start_ns and wearable is not None and spec.modality in wearable.rings:
                    self._check(spec, wearable.rings[spec.modality], decision.window_end_ns)
            if self.decisions % 20 == 0:
                self.resident.append((now_ns / 60e9, resident_bytes()))

    def _check(self, spec: Spec, ring: SampleRing, end_ns: int) -> None:
        """That every sample that a window could hold lies where it was taken."""
        times, values = ring.samples(end_ns)
        numbers = np.rint(values[:, 0] / spec.step)
        turn_ns = spec.turn / spec.rate_hz * 1e9
        off = (times + float(end_ns - self.start_ns) - numbers * (1e9 / spec.rate_hz) + turn_ns / 2) % turn_ns
        off = np.abs(off - turn_ns / 2)
        self.windows += 1
        self.wrong += bool((off > TOLERANCE_NS).any())
        self.worst_ns = max(self.worst_ns, int(off.max()))

    # --- what is done to the wearables --------------------------------------------------------------------------------

    async def _break_all(self, session: Session, adapter: Adapter) -> None:
        while not all(one.wearable.ready for one in self.worn.values()):
            await asyncio.sleep(0.01)
        self.start_ns = time.monotonic_ns() + 100_000_000
        for one in self.worn.values():
            self._play(one)
        await asyncio.gather(
            self._break_adapter(session, adapter), *(self._break_link(session, one) for one in self.worn.values())
        )

    def _play(self, one: Worn) -> None:
        """Play on from now."""
        now_ns = max(self.start_ns, time.monotonic_ns())
        at_ns = now_ns - self.start_ns
        one.playing = asyncio.ensure_future(one.wearable.play(at_ns, round(self.seconds * 1e9), now_ns))

    @property
    def _over(self) -> bool:
        # A lost packet is counted when the next one comes.
        return time.monotonic_ns() > self.start_ns + (self.seconds - 3) * 1e9

    @property
    def _enough(self) -> bool:
        return time.monotonic_ns() > self.start_ns + (self.seconds - 15) * 1e9

    async def _break_link(self, session: Session, one: Worn) -> None:
        name, rng = one.wearable.name, one.rng
        link = session.links[name]
        while True:
            async with one.calm:
                await self._until_streaming(session, name)
                one.calm_now = False
            await asyncio.sleep(rng.uniform(10, 40))
            async with one.calm:
                one.calm_now = True
                await asyncio.sleep(CALM_S)
                if self._enough:
                    return
                kind = rng.choice(("away", "hung up", "stalled", "restarted"))
                one.done[kind] += 1
                if kind == "restarted":
                    assert one.playing is not None
                    one.playing.cancel()
                    await asyncio.gather(one.playing, return_exceptions=True)
                    one.wearable.restart(rng.randrange(1 << 40), rng.randrange(1 << 16))
                    self._play(one)
                    await asyncio.sleep(2.0)
                    continue
                one.breaks += 1
                before = link.connections
                if kind == "away":
                    one.wearable.controller.out_of_range()
                    await asyncio.sleep(rng.uniform(1.5, 5.0))
                    one.wearable.controller.in_range()
                elif kind == "hung up":
                    await one.wearable.hang_up()
                else:
                    one.stalled = True
                    while link.state == "streaming":
                        await asyncio.sleep(0.05)
                    one.stalled = False
                while link.connections == before:
                    await asyncio.sleep(0.05)

    async def _break_adapter(self, session: Session, adapter: Adapter) -> None:
        while True:
            await asyncio.sleep(self.rng.uniform(40, 80))
            async with AsyncExitStack() as stack:
                for one in self.worn.values():
                    await stack.enter_async_context(one.calm)
                    one.calm_now = True
                await asyncio.sleep(CALM_S)
                if self._enough:
                    return
                self.unplugged += 1
                before = {name: session.links[name].connections for name in self.worn}
                await adapter.unplug()
                for one in self.worn.values():
                    one.breaks += 1
                await asyncio.sleep(self.rng.uniform(1.0, 4.0))
                await adapter.plug()
                for name in self.worn:
                    while session.links[name].connections == before[name]:
                        await asyncio.sleep(0.05)
                    await self._until_streaming(session, name)
                for one in self.worn.values():
                    one.calm_now = self._enough

    async def _until_streaming(self, session: Session, name: str) -> None:
        while session.links[name].state != "streaming":
            await asyncio.sleep(0.05)
        await asyncio.sleep(CALM_S)

    # --- figures ------------------------------------------------------------------------------------------------------

    def _figures(self, session: Session) -> dict[str, Any]:
        rows = {}
        for name, one in self.worn.items():
            counts = self.core.wearables[name].counts.values()
            total = {key: sum(getattr(c, key) for c in counts) for key in
                     ("duplicated", "out_of_order", "malformed", "lost", "implausible", "restarts")}  # fmt: skip
            done = one.done
            lost = done["lost"] + done["truncated"] + done["oversized"]
            rows[name] = {
                "duplicated": (done["doubled"], total["duplicated"]),
                "out_of_order": (done["reordered"], total["out_of_order"]),
                "malformed": (done["truncated"] + done["oversized"], total["malformed"]),
                "lost": (one.spoilt if one.profile == "muse" else lost, total["lost"]),
                "restarts": (done["restarted"], total["restarts"]),
                "connections": (1 + one.breaks, session.links[name].connections),
                "implausible": (0, total["implausible"]),
            }
        faults = sum(sum(n for kind, n in one.done.items() if kind != "swallowed") for one in self.worn.values())
        # The first half is warming up.
        late = np.array(self.resident[len(self.resident) // 2 :], np.float64)
        slope = float(np.polyfit(late[:, 0], late[:, 1] / 1024, 1)[0]) if len(late) > 2 else None
        hop_ns = self.core._hop_ns
        return {
            "seconds": self.seconds,
            "faults": faults + self.unplugged,
            "by_kind": dict(sum((one.done for one in self.worn.values()), Counter({"unplugged": self.unplugged}))),
            "counted": {
                name: {key: {"done": a, "counted": b} for key, (a, b) in row.items()} for name, row in rows.items()
            },
            "all_counted": all(a == b for row in rows.values() for a, b in row.values()),
            "decisions": self.decisions,
            "missed": self.missed,
            "subsets": dict(self.subsets),
            "windows_checked": self.windows,
            "windows_wrong": self.wrong,
            "worst_ms": self.worst_ns / 1e6,
            "longest_silence_hops": self.longest_ns / hop_ns,
            "dropped_packets": session.dropped,
            "resident_mib": resident_bytes() / 2**20,
            "resident_slope_kib_per_minute": slope,
            "resident_kib_by_minute": [n // 1024 for _, n in self.resident[5::6]],
        }


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--key", type=Path, action="append", default=[])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--faults", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = BundleModel.from_bundle(open_bundle(args.bundle, trusted_keys(args.key)))
    began = time.monotonic()
    figures, clock = skipped_idle.run(Soak(model, args.minutes * 60, args.faults, args.seed).run())
    figures["wall_s"], figures["skipped_s"] = time.monotonic() - began, clock.skipped_ns / 1e9
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")
    good = figures["all_counted"] and not figures["windows_wrong"] and figures["longest_silence_hops"] <= 2
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
