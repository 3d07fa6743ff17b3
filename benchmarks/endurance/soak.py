"""Four wearables for half an hour, and a hundred thousand faults.

``python -m benchmarks.endurance.soak --bundle FILE --key FILE.pub``: an IMU, a Polar H10, a Movesense sensor and a
Muse, all virtual, play a recording whose values number its samples, into the session and the live loop of ``armlet
run`` (``soak_runtime.py``). Meanwhile packets are lost, doubled, put out of order, cut off and lengthened, wearables go
out of reach, hang up, fall silent and restart, and the adapter is pulled out and put back in.

Idle time is skipped (``idle_skipping_clock.py``). With ``--apart`` it is not: then the runtime is a process of its
own, as on a board, and how its memory grows is measured. Afterwards what arrived is replayed, to look at every window.

Each fault is noted, and so is what the runtime's counts say in the end. Packet faults keep away from link faults by a
second, and from each other by a packet; else a count would not be known (a doubled packet whose first copy was
swallowed by a lost link is no repeat).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np

from armlet_bridge.virtual import AirLink, VirtualWearable, serve
from armlet_runtime.bundle import open_bundle, trusted_keys
from armlet_runtime.decisions import Decision
from armlet_runtime.live import LiveCore
from armlet_runtime.modalities import Modality
from armlet_runtime.model import BundleModel
from armlet_runtime.signals import SampleRing, Stream
from armlet_runtime.wearables import movesense
from tests.support import fast_clock, idle_skipping_clock

from .soak_runtime import NAMES, SPECS, Soaked, Spec, Told

TOLERANCE_NS = 20_000_000
"""A sample further than this from the time at which it was taken is at a wrong time."""
ACTIVE = 0.7
"""Share of the packets that may be touched: while no link is lost, or about to be."""
CALM_S = 1.0
"""No packet is touched for so long before and after a link fault."""
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


class LinkState(Protocol):
    """What is known here of one of the runtime's links; see :class:`armlet_runtime.bluetooth.Link`."""

    state: str
    connections: int


class Runtime(Protocol):
    """The runtime's half, in this process or in another."""

    pid: int

    @property
    def links(self) -> Mapping[str, LinkState]:
        """Wearable to its link."""

    async def run(self) -> dict[str, Any]:
        """Run until SIGTERM, and give the figures."""


@dataclass
class ToldState:
    """A link as another process says that it is."""

    state: str
    connections: int


class Apart:
    """The runtime's half as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self.links: dict[str, LinkState] = {}
        self._process = process

    @staticmethod
    async def start(arguments: Sequence[str]) -> Apart:
        """``arguments``: of ``python -m benchmarks.endurance.soak_runtime``."""
        command = (sys.executable, "-m", f"{__package__}.soak_runtime", *arguments)
        return Apart(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE))

    async def run(self) -> dict[str, Any]:
        """As :class:`Runtime` has it."""
        assert self._process.stdout is not None
        figures: dict[str, Any] | None = None
        while line := await self._process.stdout.readline():
            said = json.loads(line)
            figures = said.pop("figures", None)
            self.links = {name: ToldState(*told) for name, told in said.items()}
        if await self._process.wait() or figures is None:
            raise RuntimeError(f"the runtime's process ended with {self._process.returncode}")
        return figures


class Soak:
    """One soak; see the module's text."""

    def __init__(self, seconds: float, faults: int, seed: int, socket: str) -> None:
        """``socket``: where the adapter's controller answers."""
        self.rng = random.Random(seed)
        self.seconds = seconds
        packets = seconds * (50.0 + 4.0 + 512 / 16 + 256 / 12 * 4) * ACTIVE
        # Every packet after a fault is left alone.
        self.share = 1 / max(1.05, packets / max(faults, 1) - 1)
        self.air = AirLink()
        self.worn: dict[str, Worn] = {}
        self.unplugged = 0
        self.start_ns = 0
        self.socket = socket
        self._plugged = AsyncExitStack()

    @asynccontextmanager
    async def wearables(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for name in NAMES:
                specs = [spec for spec in SPECS if spec.name == name]
                streams = [stream(spec, self.seconds) for spec in specs]
                wearable = VirtualWearable(name, streams, self.air, 1, self.rng.uniform(-50, 50), specs[0].profile)
                stack.push_async_callback(wearable.power_off)
                await wearable.power_on()
                self.worn[name] = Worn(wearable, specs[0].profile, random.Random(self.rng.random()))
            self.air.tamper = lambda sender, value: (
                self.worn[sender].tamper(value, 0.0 if self._over else self.share) if sender in self.worn else [value]
            )
            yield

    async def run(self, runtime: Runtime) -> dict[str, Any]:
        """Play all, break what can be broken, and give the figures."""
        async with self.wearables(), self._plugged:
            await self._plug()
            running = asyncio.ensure_future(runtime.run())
            breaking = asyncio.ensure_future(self._break_all(runtime))
            await asyncio.wait({running, breaking}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                os.kill(runtime.pid, signal.SIGTERM)
            figures = await running
            await breaking
            playing = [one.playing for one in self.worn.values() if one.playing is not None]
            for task in playing:
                task.cancel()
            await asyncio.gather(*playing, return_exceptions=True)
            return self._figures(figures)

    async def _plug(self) -> None:
        await self._plugged.enter_async_context(serve(self.air, f"unix-server:{self.socket}"))

    # --- what is done to the wearables --------------------------------------------------------------------------------

    async def _break_all(self, runtime: Runtime) -> None:
        while len(runtime.links) < len(self.worn) or not all(worn.wearable.ready for worn in self.worn.values()):
            await asyncio.sleep(0.01)
        self.start_ns = time.monotonic_ns() + 100_000_000
        for worn in self.worn.values():
            self._play(worn)
        end = asyncio.ensure_future(asyncio.sleep(self.seconds))
        breaking = asyncio.gather(
            self._break_adapter(runtime), *(self._break_link(runtime, worn) for worn in self.worn.values())
        )
        await asyncio.wait({breaking}, timeout=self.seconds)
        if breaking.done():
            await breaking
        await end
        breaking.cancel()
        await asyncio.gather(breaking, return_exceptions=True)

    def _play(self, worn: Worn) -> None:
        """Play on from now."""
        now_ns = max(self.start_ns, time.monotonic_ns())
        at_ns = now_ns - self.start_ns
        worn.playing = asyncio.ensure_future(worn.wearable.play(at_ns, round(self.seconds * 1e9), now_ns))

    @property
    def _over(self) -> bool:
        # A lost packet is counted when the next one comes.
        return time.monotonic_ns() > self.start_ns + (self.seconds - 3) * 1e9

    @property
    def _enough(self) -> bool:
        # A link that is broken now is up again before the end: that a Polar's is silent is noticed after half a minute.
        return time.monotonic_ns() > self.start_ns + (self.seconds - 45) * 1e9

    async def _break_link(self, runtime: Runtime, worn: Worn) -> None:
        name, rng = worn.wearable.name, worn.rng
        while True:
            async with worn.calm:
                await self._until_streaming(runtime, name)
                worn.calm_now = False
            await asyncio.sleep(rng.uniform(10, 40))
            async with worn.calm:
                worn.calm_now = True
                await asyncio.sleep(CALM_S)
                if self._enough:
                    return
                kind = rng.choice(("away", "hung up", "stalled", "restarted"))
                worn.done[kind] += 1
                if kind == "restarted":
                    assert worn.playing is not None
                    worn.playing.cancel()
                    await asyncio.gather(worn.playing, return_exceptions=True)
                    worn.wearable.restart(rng.randrange(1 << 40), rng.randrange(1 << 16))
                    self._play(worn)
                    await asyncio.sleep(2.0)
                    continue
                worn.breaks += 1
                before = runtime.links[name].connections
                if kind == "away":
                    worn.wearable.controller.out_of_range()
                    await asyncio.sleep(rng.uniform(1.5, 5.0))
                    worn.wearable.controller.in_range()
                elif kind == "hung up":
                    await worn.wearable.hang_up()
                else:
                    worn.stalled = True
                    while runtime.links[name].state == "streaming":
                        await asyncio.sleep(0.05)
                    worn.stalled = False
                while runtime.links[name].connections == before:
                    await asyncio.sleep(0.05)

    async def _break_adapter(self, runtime: Runtime) -> None:
        while True:
            await asyncio.sleep(self.rng.uniform(40, 80))
            async with AsyncExitStack() as stack:
                for worn in self.worn.values():
                    await stack.enter_async_context(worn.calm)
                    worn.calm_now = True
                await asyncio.sleep(CALM_S)
                if self._enough:
                    return
                self.unplugged += 1
                before = {name: runtime.links[name].connections for name in self.worn}
                await self._plugged.aclose()
                for worn in self.worn.values():
                    worn.breaks += 1
                await asyncio.sleep(self.rng.uniform(1.0, 4.0))
                await self._plug()
                for name in self.worn:
                    while runtime.links[name].connections == before[name]:
                        await asyncio.sleep(0.05)
                    await self._until_streaming(runtime, name)
                for worn in self.worn.values():
                    worn.calm_now = self._enough

    async def _until_streaming(self, runtime: Runtime, name: str) -> None:
        while runtime.links[name].state != "streaming":
            await asyncio.sleep(0.05)
        await asyncio.sleep(CALM_S)

    # --- figures ------------------------------------------------------------------------------------------------------

    def _figures(self, figures: dict[str, Any]) -> dict[str, Any]:
        """The runtime's half's figures beside what was done."""
        counted = figures.pop("counted")
        rows = {}
        for name, one in self.worn.items():
            done = one.done
            lost = done["lost"] + done["truncated"] + done["oversized"]
            was = {
                "duplicated": done["doubled"],
                "out_of_order": done["reordered"],
                "malformed": done["truncated"] + done["oversized"],
                "lost": one.spoilt if one.profile == "muse" else lost,
                "restarts": done["restarted"],
                "connections": 1 + one.breaks,
                "implausible": 0,
            }
            rows[name] = {key: {"done": n, "counted": counted[name][key]} for key, n in was.items()}
        by_kind = sum((one.done for one in self.worn.values()), Counter({"unplugged": self.unplugged}))
        return {
            "seconds": self.seconds,
            "faults": sum(n for kind, n in by_kind.items() if kind != "swallowed"),
            "by_kind": dict(by_kind),
            "counted": rows,
            "all_counted": all(one["done"] == one["counted"] for row in rows.values() for one in row.values()),
            **figures,
        }


def stream(spec: Spec, seconds: float) -> Stream:
    """A stream whose values number its samples."""
    count = round(seconds * spec.rate_hz)
    times = np.rint(np.arange(count) * 1e9 / spec.rate_hz).astype(np.int64)
    numbers = (np.arange(count) % spec.turn * spec.step).astype(np.float32)
    values = np.repeat(numbers[:, None], len(spec.channels), axis=1)
    return Stream(Modality(spec.modality, spec.channels, spec.unit, spec.rate_hz), times, values)


class Check:
    """Looks at every window of a replay of what arrived.

    Attributes:
        windows: How many were looked at: of each stream at each decision all samples that a window could hold.
        wrong: How many had a sample further than :data:`TOLERANCE_NS` from the time at which it was taken.
        worst_ns: The furthest.
        told: Of the decisions.
    """

    def __init__(self, model: BundleModel, start_ns: int) -> None:
        """``start_ns``: when sample 0 of every stream was taken."""
        self.windows = self.wrong = self.worst_ns = 0
        self.told = Told()
        self._core = LiveCore(model)
        self._start_ns = start_ns

    def replay(self, packets: Path, ended_ns: int) -> None:
        """Replay what :class:`Soaked` wrote, to the end of the run."""
        with packets.open("rb") as file:
            while file.peek(1):
                self._look(self._core.packet(pickle.load(file)))
        self._look(self._core.advance(ended_ns))

    def _look(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self.told.add(decision)
            for spec in SPECS:
                wearable = self._core.wearables.get(spec.name)
                if wearable is not None and spec.modality in wearable.rings:
                    self._check(spec, wearable.rings[spec.modality], decision.window_end_ns)

    def _check(self, spec: Spec, ring: SampleRing, end_ns: int) -> None:
        times, values = ring.samples(end_ns)
        numbers = np.rint(values[:, 0] / spec.step)
        turn_ns = spec.turn / spec.rate_hz * 1e9
        off = (times + float(end_ns - self._start_ns) - numbers * (1e9 / spec.rate_hz) + turn_ns / 2) % turn_ns
        off = np.abs(off - turn_ns / 2)
        self.windows += 1
        self.wrong += bool((off > TOLERANCE_NS).any())
        self.worst_ns = max(self.worst_ns, int(off.max()))


def growth(memory: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Of (minutes, resident KiB, anonymous KiB), how they grew in the second half; the first is warming up."""
    late = np.array(memory[len(memory) // 2 :], np.float64)
    minutes = late[:, 0] - late[0, 0]
    return {
        "resident_slope_kib_per_minute": float(np.polyfit(minutes, late[:, 1], 1)[0]),
        "anonymous_slope_kib_per_minute": float(np.polyfit(minutes, late[:, 2], 1)[0]),
        "resident_growth_kib": late[-1, 1] - late[0, 1],
        "over_minutes": minutes[-1],
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--key", type=Path, action="append", default=[])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--faults", type=int, default=110_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--apart", action="store_true", help="the runtime in its own process, no time skipped")
    parser.add_argument("--speed", type=float, default=1.0, help="with --apart: a clock so many times as fast")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = BundleModel.from_bundle(open_bundle(args.bundle, trusted_keys(args.key)))
    with TemporaryDirectory() as folder:
        socket, packets = str(Path(folder) / "air"), Path(folder) / "packets"
        soak = Soak(args.minutes * 60, args.faults, args.seed, socket)
        if args.apart:
            arguments = ["--bundle", args.bundle, *(word for key in args.key for word in ("--key", key))]
            arguments += ["--socket", socket, "--packets", packets, "--speed", args.speed]
            figures = fast_clock.run(apart(soak, list(map(str, arguments))), args.speed)
        else:
            figures, clock = idle_skipping_clock.run(together(soak, model, packets))
            figures["skipped_s"] = clock.skipped_ns / 1e9
        check = Check(model, soak.start_ns)
        check.replay(packets, figures.pop("ended_ns"))
    figures["windows_checked"], figures["windows_wrong"] = check.windows, check.wrong
    figures["worst_ms"] = check.worst_ns / 1e6
    figures["replayed_alike"] = check.told.summary()["sha256"] == figures.pop("sha256")
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")
    counted = figures["all_counted"] and figures["replayed_alike"] and not figures["missed"]
    return 0 if counted and not figures["windows_wrong"] and figures["longest_silence_hops"] <= 2 else 1


async def together(soak: Soak, model: BundleModel, packets: Path) -> dict[str, Any]:
    """A soak of the runtime in this process."""
    return await soak.run(Soaked(model, soak.socket, packets))


async def apart(soak: Soak, arguments: Sequence[str]) -> dict[str, Any]:
    """A soak of the runtime in a process of its own, started with ``arguments``."""
    figures = await soak.run(await Apart.start(arguments))
    return {**figures, **growth(figures["memory"])}


if __name__ == "__main__":
    sys.exit(main())
