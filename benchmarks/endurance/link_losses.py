"""A thousand link losses: ``python -m benchmarks.endurance.link_losses --bundle FILE --key FILE.pub``.

Virtual IMUs, one for each of the bundle's modalities, go out of reach in turn for 1.5 to 6 s, at any phase of the hop.
Of each loss it is measured how long after the staleness limit (the newest sample's time and ``stale_after_s``) the
first decision without the lost sensor was out, and how long after the new link was up the first with all of them. Idle
time is skipped (``tests/support/idle_skipping_clock.py``); the time that the program computes counts.

A window of L seconds is whole again when ``return_coverage`` x L of it was received, and is decided at the next hop: no
program can be quicker than that, and the margin is what this one takes beyond it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from armlet_bridge.radio import open_bluetooth
from armlet_bridge.virtual import AirController, AirLink, Play, WearableSpec, put_on
from armlet_runtime.bluetooth import Session, drive
from armlet_runtime.bundle import open_bundle, trusted_keys
from armlet_runtime.decisions import Decision
from armlet_runtime.live import LiveCore, stale_ns
from armlet_runtime.modalities import Modality
from armlet_runtime.model import BundleModel
from armlet_runtime.signals import Packet, Recording, Stream
from tests.support import idle_skipping_clock

AWAY_S = (1.5, 6.0)
MOST_S = 30.0
"""A loss from which it has not come back in so long is not recovered."""
CYCLE_S = 12.0
"""More than a loss and its recovery take on the average; so long a recording is played for each."""


class Losses:
    """One run; see the module's text."""

    def __init__(self, model: BundleModel, losses: int, seed: int) -> None:
        self.losses = losses
        self.rng = random.Random(seed)
        self.model = model
        self.core = LiveCore(model, time.monotonic_ns)
        self.modalities = model.manifest.modalities
        self.names = tuple(modality.name for modality in self.modalities)
        self.newest: tuple[int, Decision] | None = None
        self.up_ns: dict[str, int] = {}
        self.decisions = self.missed = 0
        self.masked_s: list[float] = []
        self.whole_s: list[float] = []
        self.relinked_s: list[float] = []
        self.lost = 0

    async def run(self) -> dict[str, Any]:
        """Lose and regain, and give the figures."""
        seconds = self.losses * CYCLE_S
        rng = np.random.default_rng(1)
        streams = {}
        for modality in self.modalities:
            times = np.rint(np.arange(round(seconds * modality.rate_hz)) * 1e9 / modality.rate_hz).astype(np.int64)
            values = rng.normal(size=(len(times), len(modality.channels))).astype(np.float32)
            streams[modality.name] = Stream(
                Modality(modality.name, modality.channels, modality.unit, modality.rate_hz), times, values
            )
        specs = [WearableSpec(name.capitalize(), (name,)) for name in self.names]
        air = AirLink()
        async with (
            put_on(Recording("made", "nobody", streams=streams), air, specs) as play,
            open_bluetooth(AirController("host", air)) as bluetooth,
        ):
            session = Session(bluetooth, tuple(spec.name for spec in specs))
            driving = asyncio.ensure_future(drive(session, self._turn))
            playing = asyncio.ensure_future(play.run())
            try:
                await self._lose_all(play)
            finally:
                for task in (playing, driving):
                    task.cancel()
                await asyncio.gather(playing, driving, return_exceptions=True)
            return self._figures(session)

    def _turn(self, packets: list[Packet], now_ns: int) -> int | None:
        for packet in packets:
            if packet.kind == "connected":
                self.up_ns[packet.wearable] = packet.arrival_ns
            self._out(self.core.packet(packet))
        self._out(self.core.advance(now_ns))
        return self.core.due_ns()

    def _out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self.missed += decision.index != self.decisions
            self.decisions += 1
            self.newest = time.monotonic_ns(), decision

    async def _until(self, holds: Callable[[Decision], bool]) -> int | None:
        """When the first decision was out of which this holds; None if none was in time."""
        end = time.monotonic() + MOST_S
        while time.monotonic() < end:
            if self.newest is not None and holds(self.newest[1]):
                return self.newest[0]
            await asyncio.sleep(0.02)
        return None

    async def _lose_all(self, play: Play) -> None:
        for n in range(self.losses):
            modality = self.modalities[n % len(self.modalities)]
            wearable = modality.name.capitalize()
            if await self._until(lambda decision: decision.subset == self.names) is None:
                self.lost += 1
                continue
            await asyncio.sleep(self.rng.uniform(0.0, self.model.manifest.window.hop_s))
            controller = play.wearables[wearable].controller
            controller.out_of_range()
            back = time.monotonic() + self.rng.uniform(*AWAY_S)
            masked_ns = await self._until(lambda decision, name=modality.name: name not in decision.subset)  # type: ignore[misc]
            newest_ns = self.core.wearables[wearable].rings[modality.name].newest_ns()
            await asyncio.sleep(max(0.0, back - time.monotonic()))
            controller.in_range()
            back_ns = time.monotonic_ns()
            whole_ns = await self._until(lambda decision: decision.subset == self.names)
            if masked_ns is None or whole_ns is None:
                self.lost += 1
                continue
            self.masked_s.append((masked_ns - newest_ns - stale_ns(self.model.manifest.presence, modality)) / 1e9)
            self.whole_s.append((whole_ns - self.up_ns[wearable]) / 1e9)
            self.relinked_s.append((self.up_ns[wearable] - back_ns) / 1e9)

    def _figures(self, session: Session) -> dict[str, Any]:
        manifest = self.model.manifest
        fill_s = manifest.presence.return_coverage * manifest.window.length_s
        return {
            "losses": self.losses,
            "recovered": len(self.whole_s),
            "links": sum(link.connections - 1 for link in session.links.values()),
            "decisions": self.decisions,
            "missed": self.missed,
            "window_s": manifest.window.length_s,
            "hop_s": manifest.window.hop_s,
            "filling_s": fill_s,
            "masked_after_limit_s": spread(self.masked_s),
            "whole_after_link_s": spread(self.whole_s),
            "link_after_return_s": spread(self.relinked_s),
            "troubles": {name: link.failures for name, link in session.links.items()},
        }


def spread(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50": round(float(p50), 4), "p99": round(float(p99), 4), "max": round(max(values), 4)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--key", type=Path, action="append", default=[])
    parser.add_argument("--losses", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = BundleModel.from_bundle(open_bundle(args.bundle, trusted_keys(args.key)))
    figures, clock = idle_skipping_clock.run(Losses(model, args.losses, args.seed).run())
    figures["skipped_s"] = clock.skipped_ns / 1e9
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")
    return 0 if figures["recovered"] == args.losses and not figures["missed"] else 1


if __name__ == "__main__":
    sys.exit(main())
