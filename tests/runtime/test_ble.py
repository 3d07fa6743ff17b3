"""The Bluetooth session: unchanged bleak code on bumble's virtual link, with wearables that come and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import numpy as np
import pytest

from armlet_bridge.radio.bumble_backend import open_bluetooth as open_bumble
from armlet_bridge.virtual.air import AirController, AirLink
from armlet_bridge.virtual.air_ports import serve
from armlet_bridge.virtual.wearable import LinkLoss, Play, WearableSpec, put_on
from armlet_runtime.bluetooth import link, open_bluetooth, session
from armlet_runtime.bluetooth.session import Session
from armlet_runtime.errors import UsageError, WearableError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Packet, Recording, Stream
from armlet_runtime.signals.wearable import Wearable
from armlet_runtime.wearables import imu

RATE_HZ = 50.0


def counting(seconds: float) -> Recording:
    """Acc and gyro whose x counts the samples, and a heart rate."""
    count = round(seconds * RATE_HZ)
    times = (np.arange(count) * 1e9 / RATE_HZ).astype(np.int64)
    streams = {}
    for name, unit in (("acc", "g"), ("gyro", "rad/s")):
        values = np.zeros((count, 3), np.float32)
        values[:, 0] = np.arange(count) % 1000 / 1000
        streams[name] = Stream(Modality(name, ("x", "y", "z"), unit, RATE_HZ), times, values)
    slow = (np.arange(int(seconds) + 1) * 1e9).astype(np.int64)
    streams["hr"] = Stream(Modality("hr", ("bpm",), "bpm", 1.0), slow, np.full((len(slow), 1), 72, np.float32))
    return Recording("counting", "nobody", streams=streams)


class Run:
    """A running session, and all that it gave so far."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.task = asyncio.ensure_future(session.run())
        self._taken: list[Packet] = []

    @property
    def packets(self) -> list[Packet]:
        self._taken += self.session.take()
        return self._taken

    def of(self, name: str, kind: str = "data") -> list[Packet]:
        return [packet for packet in self.packets if (packet.wearable, packet.kind) == (name, kind)]

    async def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it did not happen in time: {self.session.links}"
            if self.task.done():
                self.task.result()
            await asyncio.sleep(0.01)

    def streaming(self, *names: str) -> bool:
        links = self.session.links
        return all(name in links and links[name].state == "streaming" for name in names)


@asynccontextmanager
async def running(
    recording: Recording, *specs: WearableSpec, names: tuple[str, ...] = (), modalities: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Run, Play, AirLink]]:
    air = AirLink()
    async with (
        put_on(recording, air, list(specs)) as play,
        open_bumble(AirController("host", air)) as bluetooth,
    ):
        run = Run(Session(bluetooth, names, modalities))
        try:
            yield run, play, air
        finally:
            run.task.cancel()
            await asyncio.gather(run.task, return_exceptions=True)


ACC, GYRO, HR = WearableSpec("Acc", ("acc",)), WearableSpec("Gyro", ("gyro",)), WearableSpec("Strap", ("hr",))


async def test_three_wearables_stream_and_end_cleanly() -> None:
    async with running(counting(2.5), ACC, GYRO, HR) as (run, play, _):
        await play.run()
        await run.until(lambda: len(run.of("Acc")) == len(run.of("Gyro")) == 63 and len(run.of("Strap")) == 3)
        packets = run.packets
        assert all(a.arrival_ns <= b.arrival_ns for a, b in pairwise(packets))
        assert abs(packets[-1].arrival_ns - time.monotonic_ns()) < 1e9
        for name in ("Acc", "Gyro"):
            kinds = [packet.kind for packet in packets if packet.wearable == name]
            assert kinds == ["connected", "info"] + ["data"] * 63
        info = imu.decode_info(run.of("Acc", "info")[0].data)
        heard = np.concatenate([imu.decode_data(info, p.data).samples["acc"][:, 0] for p in run.of("Acc")])
        assert np.array_equal(np.rint(heard * 1000), np.arange(125))
        assert {p.source for p in run.of("Acc")} == {imu.DATA_UUID} and run.session.dropped == 0
        run.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run.task
        assert sorted(p.wearable for p in run.packets if p.kind == "disconnected") == ["Acc", "Gyro", "Strap"]
        await asyncio.sleep(0.1)
        assert not any(wearable.subscribed.is_set() for wearable in play.wearables.values())


async def test_a_lost_link_is_made_again_when_the_wearable_is_back() -> None:
    async with running(counting(4.0), ACC, GYRO) as (run, play, _):
        await play.run(losses=[LinkLoss("Gyro", 0.5, 2.0)])
        await run.until(lambda: len(run.of("Acc")) == 100)
        kinds = [p.kind for p in run.packets if p.wearable == "Gyro" and p.kind != "data"]
        assert kinds == ["connected", "info", "disconnected", "connected", "info"]
        wearable = Wearable("Gyro", keep_ns=10_000_000_000)
        for packet in run.packets:
            if packet.wearable == "Gyro":
                wearable.take(packet)
        # Each sample once (no doubled notifications), at its own time, and early after the return.
        times, values = wearable.rings["gyro"].samples(0)
        indices = np.rint(values[:, 0] * 1000)
        assert len(set(indices)) == len(indices) and (np.diff(indices) >= 1).all()
        assert np.ptp(times / 1e6 - indices * 20) < 15
        gap = int(np.argmax(np.diff(indices)))
        assert abs(indices[gap] - 25) <= 3 and 97 <= indices[gap + 1] <= 100 + 0.7 * 50
        assert len(run.of("Acc")) == 100 and run.session.links["Gyro"].state == "streaming"


async def test_a_wearable_that_never_comes_does_not_hold_up_others() -> None:
    async with running(counting(6.0), ACC, GYRO, names=("Ghost", "Acc", "Gyro")) as (run, play, _):
        play.wearables["Gyro"].controller.out_of_range()
        await run.until(lambda: run.streaming("Acc"))
        await asyncio.sleep(0.3)
        play.wearables["Gyro"].controller.in_range()
        await run.until(lambda: run.streaming("Acc", "Gyro"))
        ghost = run.session.links["Ghost"]
        assert (ghost.state, ghost.problem) == ("missing", "not heard yet")


async def test_a_wearable_that_vanishes_while_connecting_does_not_hold_up_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "CONNECT_S", 1.0)
    async with running(counting(6.0), ACC, GYRO) as (run, play, _):
        play.wearables["Acc"].controller.out_of_range()
        await run.until(lambda: "Gyro" in run.session.links)
        play.wearables["Gyro"].controller.out_of_range()
        play.wearables["Acc"].controller.in_range()
        await run.until(lambda: run.streaming("Acc"))
        play.wearables["Gyro"].controller.in_range()
        await run.until(lambda: run.streaming("Acc", "Gyro"), 20.0)


async def test_only_wearables_of_use_are_taken() -> None:
    async with running(counting(2.0), ACC, HR, modalities=("acc", "gyro")) as (run, _, _):
        await run.until(lambda: run.streaming("Acc"))
        await asyncio.sleep(0.5)
        assert run.session.links.keys() == {"Acc"}
    async with running(counting(2.0), ACC, HR, names=("Strap",)) as (run, _, _):
        await run.until(lambda: run.streaming("Strap"))
        await asyncio.sleep(0.5)
        assert run.session.links.keys() == {"Strap"}


async def test_a_silent_wearable_is_taken_up_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a crash of bluetoothd looks like: the link seems to live, and nothing comes."""
    monkeypatch.setattr(link, "SILENCE_S", 0.5)
    async with running(counting(6.0), ACC) as (run, play, air):
        playing = asyncio.ensure_future(play.run())
        await run.until(lambda: len(run.of("Acc")) > 10)
        air.tamper = lambda sender, value: []
        await run.until(lambda: len(run.of("Acc", "disconnected")) == 1)
        air.tamper = None
        heard = len(run.of("Acc"))
        await run.until(lambda: len(run.of("Acc", "connected")) == 2 and len(run.of("Acc")) > heard + 10)
        playing.cancel()


async def test_a_heart_rate_band_may_be_silent_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some notify only what has changed, and nothing while they lie badly."""
    monkeypatch.setattr(link, "SILENCE_S", 0.2)
    async with running(counting(3.0), HR) as (run, play, _):  # a packet a second
        await play.run()
        await run.until(lambda: len(run.of("Strap")) == 4)
        assert run.session.links["Strap"].connections == 1


class SlowAir(AirLink):
    """An air over which every packet of a link takes 30 ms: a long connection interval."""

    def _deliver(self, sender: AirController, receiver: AirController, action: Callable[[], None]) -> None:
        deliver = super()._deliver
        asyncio.get_running_loop().call_later(0.03, deliver, sender, receiver, action)


async def test_a_wearable_whose_services_take_long_comes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CONNECT_S", 0.4)
    air = SlowAir()
    async with put_on(counting(2.0), air, [ACC]), open_bumble(AirController("host", air)) as bluetooth:
        run = Run(Session(bluetooth, ("Acc",)))
        try:
            await run.until(lambda: run.streaming("Acc"), 15)
            assert run.session.links["Acc"].failures == {"away": 1}
        finally:
            run.task.cancel()
            await asyncio.gather(run.task, return_exceptions=True)


async def test_spoilt_packets_over_the_air_are_counted() -> None:
    count = 0

    def tamper(sender: str, value: bytes) -> list[bytes]:
        nonlocal count
        count += 1
        fates = {20: [], 30: [value, value], 40: [value[:-1]], 50: [value + b"\0"], 60: [b""], 70: [b"\xff" * 200]}
        return fates.get(count, [value])

    async with running(counting(4.0), ACC) as (run, play, air):
        air.tamper = tamper
        await play.run()
        await run.until(lambda: len(run.of("Acc")) == 100)
        wearable = Wearable("Acc", keep_ns=10_000_000_000)
        wearable.info(imu.INFO_UUID, run.of("Acc", "info")[0].data)
        for packet in run.of("Acc"):
            wearable.data(packet.source, packet.data, packet.arrival_ns)
        counts = wearable.counts["imu"]
        assert (counts.packets, counts.malformed, counts.duplicated, counts.lost) == (100, 4, 1, 5)
        assert counts.samples == 190
        times, values = wearable.rings["acc"].samples(0)
        assert np.ptp(times / 1e6 - np.rint(values[:, 0] * 1000) * 20) < 1


async def test_a_full_queue_drops_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "QUEUE_PACKETS", 20)
    async with running(counting(2.0), ACC) as (run, play, _):
        await play.run()
        await asyncio.sleep(0.1)
        assert run.session.dropped == 32  # connected, info and 50 packets came
        assert len(run.packets) == 20


async def test_the_end_of_a_link_is_told_by_a_full_queue_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "QUEUE_PACKETS", 20)
    async with running(counting(2.0), ACC) as (run, play, _):
        await play.run()
        await play.wearables["Acc"].hang_up()
        await run.until(lambda: run.session.links["Acc"].connections == 2)
        kinds = [packet.kind for packet in run.packets]
        assert kinds == ["connected", "info"] + ["data"] * 18 + ["disconnected", "connected", "info"]


async def test_no_bluetooth_is_one_sentence() -> None:
    async with AsyncExitStack() as stack:
        served = AsyncExitStack()
        transport = await served.enter_async_context(serve(AirLink(), "tcp-server:127.0.0.1:0"))
        bluetooth = await stack.enter_async_context(open_bluetooth(f"bumble:{transport}"))
        await served.aclose()  # the adapter is pulled out
        await asyncio.sleep(0.1)
        with pytest.raises(WearableError, match=r"Bluetooth cannot be used here .*check that an adapter is there"):
            await Session(bluetooth).run()


@pytest.mark.parametrize("name", ["nonsense", "bumble", "bumble:", "nonsense:tcp:1"])
async def test_an_unknown_bluetooth_names_the_known(name: str) -> None:
    with pytest.raises(UsageError, match="known here: system, bumble:TRANSPORT"):
        async with open_bluetooth(name):
            pass
