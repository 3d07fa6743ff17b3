"""The guide is taken at its word: its glove and the glove's twin work as they stand there, from scan to samples."""

from __future__ import annotations

import asyncio
import random
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from armlet_bridge.radio.bumble_backend import open_bluetooth
from armlet_bridge.virtual.air import AirController, AirLink
from armlet_bridge.virtual.twins import registry as twins
from armlet_bridge.virtual.wearable import WearableSpec, put_on
from armlet_runtime import wearables
from armlet_runtime.bluetooth import Session
from armlet_runtime.errors import PacketError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Recording, Stream
from armlet_runtime.signals.wearable import Wearable
from armlet_runtime.wearables import registry

GUIDE = Path(wearables.__file__).with_name("guide.md").read_text()


@pytest.fixture
def glove(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The file and the two entries that the guide tells to make."""
    profile, twin = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    module = types.ModuleType("armlet_runtime.wearables.glove")
    module.__package__ = "armlet_runtime.wearables"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(profile, module.__dict__)
    added = module.GloveProfile()
    monkeypatch.setattr(registry, "PROFILES", (*registry.PROFILES, added))
    monkeypatch.setattr(registry, "_BY_SOURCE", {**registry._BY_SOURCE, **dict.fromkeys(added.sources, added)})

    monkeypatch.setattr(wearables, "glove", module, raising=False)
    beside = types.ModuleType("armlet_bridge.virtual.twins.glove")
    beside.__package__ = "armlet_bridge.virtual.twins"
    exec(twin, beside.__dict__)
    (entry,) = re.findall(r'`"glove": (Kind\(.*\))` in `KINDS`', GUIDE)
    made = eval(entry, {**vars(twins), **vars(beside)})
    monkeypatch.setattr(twins, "KINDS", {**twins.KINDS, "glove": made})
    return module


def test_it_lists_every_profile() -> None:
    assert all(f"[{one.name}]({one.name}.py)" in GUIDE for one in registry.PROFILES)


async def test_the_whole_path(glove: types.ModuleType) -> None:
    times = np.arange(250) * 10_000_000
    values = np.stack([np.arange(250) / 1000, np.zeros(250), np.ones(250)], axis=1).astype(np.float32)
    recording = Recording(
        "walk", "anna", streams={"acc": Stream(Modality("acc", ("x", "y", "z"), "g", 100.0), times, values)}
    )
    air = AirLink()
    async with (
        put_on(recording, air, [WearableSpec("Glove", ("acc",), "glove")]) as play,
        open_bluetooth(AirController("host", air)) as bluetooth,
    ):
        session = Session(bluetooth, ("Glove",))
        running = asyncio.ensure_future(session.run())
        try:
            await asyncio.wait_for(play.run(duration_s=1.0), 20)
            await asyncio.sleep(0.2)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    heard = Wearable("Glove", 10**10)
    for packet in session.take():
        heard.take(packet)
    assert session.links["Glove"].attempts == 1 and heard.problem == ""
    _, got = heard.rings["acc"].samples(0)
    assert np.array_equal(got, values[:100]) and heard.counts["glove"].lost == 0
    assert heard.clocks["glove"].has_counters


def test_its_decoder_takes_any_bytes(glove: types.ModuleType) -> None:
    rng = random.Random(1)
    decoder = glove.GloveProfile().decoder()
    for _ in range(2000):
        data = rng.randbytes(rng.choice((8, rng.randrange(20))))
        try:
            (batch,) = decoder.take("data", glove.DATA_UUID, data)
        except PacketError:
            assert len(data) != 8
        else:
            assert len(data) == 8 and batch.count == 1
