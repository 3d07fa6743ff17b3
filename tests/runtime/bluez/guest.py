"""Run inside the user-mode Linux by ``test_bluez.py``: the runtime on real BlueZ, and what BlueZ does wrong.

Wearables and their air are virtual, and so is the controller on ``/dev/vhci``; the kernel's Bluetooth, ``bluetoothd``,
the D-Bus and bleak's BlueZ back end are what a Raspberry Pi has. All times are of the guest's clock (``kernel.boot``).
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from bleak.backends.bluezdbus.manager import get_global_bluez_manager
from bleak.exc import BleakError

from armlet_bridge.virtual.air import AirLink
from armlet_bridge.virtual.air_ports import KernelPort
from armlet_bridge.virtual.wearable import Play, WearableSpec, put_on
from armlet_runtime.bluetooth import Session, SystemBluetooth
from armlet_runtime.signals.wearable import Wearable

from ..test_ble import Run, counting

BLUETOOTHD = "/usr/libexec/bluetooth/bluetoothd"
# What samples may be late by against one another; in real time that is the host's affair.
LATE_MS = 20 if os.environ["ARMLET_CLOCK"] == "virtual" else 1000
ACC, GYRO, STRAP = WearableSpec("Acc", ("acc",)), WearableSpec("Gyro", ("gyro",)), WearableSpec("Strap", ("hr",))


class Daemon:
    """``bluetoothd``. Memory that it has freed is overwritten, so that a use of it after that is a crash."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "MALLOC_PERTURB_": "165"}
        self._process = subprocess.Popen([BLUETOOTHD, "-n"], stderr=subprocess.DEVNULL, env=environment)

    def kill(self) -> None:
        """End it without a word, as a crash does."""
        assert self._process.poll() is None, f"bluetoothd ended by itself ({self._process.returncode})"
        self._process.kill()
        self._process.wait()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    one = Daemon()
    yield one
    one.kill()


async def powered() -> None:
    """Return when BlueZ has a usable adapter."""
    end = time.monotonic() + 10
    while True:
        try:
            (await get_global_bluez_manager()).get_default_adapter()
            return
        except (BleakError, OSError, EOFError):
            assert time.monotonic() < end, "BlueZ has no adapter"
            await asyncio.sleep(0.1)


@dataclass
class Worn:
    """Wearables, the adapters (the last one is plugged in), and a session that runs on it."""

    run: Run
    play: Play
    air: AirLink
    ports: list[KernelPort]

    def wearable(self, name: str) -> Wearable:
        """What came of one, decoded."""
        wearable = Wearable(name, keep_ns=60_000_000_000)
        for packet in self.run.packets:
            if packet.wearable == name:
                wearable.take(packet)
        return wearable

    def samples_once(self, name: str, modality: str) -> None:
        """That every sample came once, at its own time."""
        wearable = self.wearable(name)
        counts = wearable.counts["imu"]
        assert counts.duplicated == counts.malformed == counts.implausible == 0, counts
        times, values = wearable.rings[modality].samples(0)
        steps = np.diff(np.rint(values[:, 0] * 1000)) % 1000
        assert (steps >= 1).all()
        late_ms = np.diff(times) / 1e6 - steps * 20
        late_ms = (late_ms + 10_000) % 20_000 - 10_000  # the count begins anew after 20 s
        assert np.ptp(np.cumsum(late_ms)) < LATE_MS


@asynccontextmanager
async def worn(*specs: WearableSpec, seconds: float = 120.0) -> AsyncIterator[Worn]:
    air = AirLink()
    async with AsyncExitStack() as stack:
        play = await stack.enter_async_context(put_on(counting(seconds), air, list(specs)))
        ports = [KernelPort(air)]
        stack.callback(lambda: ports[-1].close())
        await powered()
        run = Run(Session(SystemBluetooth()))
        try:
            yield Worn(run, play, air, ports)
        finally:
            run.task.cancel()
            await asyncio.gather(run.task, return_exceptions=True)


async def test_three_wearables_stream_each_sample_once(daemon: Daemon) -> None:
    async with worn(ACC, GYRO, STRAP, seconds=3.0) as on:
        await on.run.until(lambda: on.run.streaming("Acc", "Gyro", "Strap"), 40)
        await on.play.run()
        await on.run.until(
            lambda: len(on.run.of("Acc")) == len(on.run.of("Gyro")) == 75 and len(on.run.of("Strap")) > 2
        )
        on.samples_once("Acc", "acc")
        on.samples_once("Gyro", "gyro")
        assert all(link.mtu == 517 and link.rssi == -50 for link in on.run.session.links.values())


async def test_notifications_do_not_double_after_link_losses(daemon: Daemon) -> None:
    """https://github.com/hbldh/bleak/issues/2002"""
    async with worn(ACC, GYRO) as on:
        await on.run.until(lambda: on.run.streaming("Acc", "Gyro"), 40)
        playing = asyncio.ensure_future(on.play.run())
        gyro, link = on.play.wearables["Gyro"].controller, on.run.session.links["Gyro"]
        for loss in range(5):
            gyro.out_of_range()
            await on.run.until(lambda: not on.run.streaming("Gyro"), 10)
            gyro.in_range()
            began, heard = time.monotonic(), len(on.run.of("Gyro"))
            await on.run.until(lambda heard=heard: len(on.run.of("Gyro")) > heard + 10, 20)  # type: ignore[misc]
            print(f"loss {loss}: samples again after {time.monotonic() - began:.2f} s, {link.failures}")
        assert link.connections == 6 and not link.failures
        on.samples_once("Gyro", "gyro")
        on.samples_once("Acc", "acc")
        assert len(on.run.of("Acc", "connected")) == 1
        playing.cancel()


async def test_reconnects_at_once_come_up_in_the_end(daemon: Daemon) -> None:
    """bluetoothd can take a new attempt down with the end of the old link: https://github.com/hbldh/bleak/issues/1489"""
    async with worn(ACC, seconds=240.0) as on:
        await on.run.until(lambda: on.run.streaming("Acc"), 40)
        playing = asyncio.ensure_future(on.play.run())
        link = on.run.session.links["Acc"]
        for _ in range(30):
            await on.play.wearables["Acc"].hang_up()
            await on.run.until(lambda: not on.run.streaming("Acc"), 10)
            await on.run.until(lambda: on.run.streaming("Acc"), 40)
        print(f"{link.attempts} attempts, {link.connections} connections, {link.failures}")
        assert link.connections == 31
        heard = len(on.run.of("Acc"))
        await on.run.until(lambda: len(on.run.of("Acc")) > heard + 10, 20)
        on.samples_once("Acc", "acc")
        playing.cancel()


async def test_a_killed_bluetoothd_is_got_over_in_the_same_process(daemon: Daemon) -> None:
    """No callback, and ``is_connected`` stays true."""
    async with worn(ACC, GYRO) as on:
        await on.run.until(lambda: on.run.streaming("Acc", "Gyro"), 40)
        playing = asyncio.ensure_future(on.play.run())
        daemon.kill()
        began = time.monotonic()
        await on.run.until(lambda: not on.run.streaming("Acc") and not on.run.streaming("Gyro"), 2)
        seen = time.monotonic() - began
        await asyncio.sleep(1.5)
        daemon.start()
        await powered()
        began, heard = time.monotonic(), (len(on.run.of("Acc")), len(on.run.of("Gyro")))
        await on.run.until(lambda: len(on.run.of("Acc")) > heard[0] + 5 and len(on.run.of("Gyro")) > heard[1] + 5, 30)
        print(f"noticed after {seen:.3f} s; samples of both {time.monotonic() - began:.2f} s after its restart")
        on.samples_once("Acc", "acc")
        playing.cancel()


async def test_an_adapter_that_is_pulled_out_and_comes_back(daemon: Daemon) -> None:
    async with worn(ACC) as on:
        await on.run.until(lambda: on.run.streaming("Acc"), 40)
        playing = asyncio.ensure_future(on.play.run())
        for _ in range(2):
            on.ports[-1].close()
            await on.run.until(lambda: not on.run.streaming("Acc"), 10)
            await asyncio.sleep(1.0)
            on.ports.append(KernelPort(on.air))
            began, heard = time.monotonic(), len(on.run.of("Acc"))
            await on.run.until(lambda heard=heard: len(on.run.of("Acc")) > heard + 5, 30)  # type: ignore[misc]
            print(f"samples again {time.monotonic() - began:.2f} s after its return")
        playing.cancel()


async def armlet(*arguments: str) -> str:
    """What a command said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "armlet_runtime", *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    return said


async def test_a_killed_runtime_leaves_its_wearable_to_the_next_and_a_living_one_does_not(
    daemon: Daemon, tmp_path: Path
) -> None:
    """BlueZ keeps the links of a process that is no more: https://github.com/bluez/bluez/issues/89"""
    air = AirLink()
    async with AsyncExitStack() as stack:
        play = await stack.enter_async_context(put_on(counting(120.0), air, [ACC]))
        stack.callback(KernelPort(air).close)
        await powered()
        first = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "armlet_runtime", "record", str(tmp_path / "first.mcap"), "--wearables", "Acc"
        )
        acc = play.wearables["Acc"]
        await asyncio.wait_for(acc.subscribed.wait(), 40)
        playing = asyncio.ensure_future(play.run())
        run = Run(Session(SystemBluetooth(), names=("Acc",)))
        try:
            await asyncio.sleep(15)
            assert acc.subscribed.is_set() and acc.dropped == 0 and run.session.links["Acc"].state == "missing"
            first.kill()
            await first.wait()
            began = time.monotonic()
            await run.until(lambda: run.streaming("Acc"), 20)
            print(f"taken over after {time.monotonic() - began:.2f} s")
            await run.until(lambda: len(run.of("Acc")) > 10, 5)
        finally:
            run.task.cancel()
            await asyncio.gather(run.task, return_exceptions=True)
            playing.cancel()


async def test_wearables_are_shown_and_two_adapters_share_them(daemon: Daemon) -> None:
    air = AirLink()
    async with AsyncExitStack() as stack:
        play = await stack.enter_async_context(put_on(counting(60.0), air, [ACC, GYRO]))
        for _ in range(2):
            stack.callback(KernelPort(air).close)
        await powered()
        scanned = await armlet("wearables", "scan", "--seconds", "3")
        assert all(f"{name:24} " in scanned for name in ("Acc", "Gyro")) and scanned.count(" -50 dBm  imu") == 2
        info = await armlet("wearables", "info", "Gyro", "--bluetooth", "system:hci0")
        for says in (
            "battery     100",
            "mtu         517",
            "model       virtual wearable",
            "gyro (x, y, z) in rad/s at 50 Hz",
        ):
            assert says in info, info

        adapters = [SystemBluetooth(options={"bluez": {"adapter": name}}) for name in ("hci0", "hci1")]
        run = Run(Session(adapters, names=("Ghost", "Acc", "Gyro")))
        try:
            await run.until(lambda: run.streaming("Acc", "Gyro"), 40)
            await play.run(duration_s=1.0)
            await run.until(lambda: len(run.of("Acc")) == len(run.of("Gyro")) == 25)
            supervisors = run.session._supervisors
            assert run.session.links["Ghost"].state == "missing"
            assert supervisors["Acc"].adapter is not supervisors["Gyro"].adapter
        finally:
            run.task.cancel()
            await asyncio.gather(run.task, return_exceptions=True)


def test_armlet_run_decides_through_a_link_loss(daemon: Daemon, tmp_path: Path) -> None:
    """The command lines, as README has them, with nothing between them but BlueZ; a recorder and a screen, too."""
    bundle, played = Path(os.environ["ARMLET_BUNDLE"]), os.environ["ARMLET_PLAYED"]
    armlet = [sys.executable, "-m", "armlet_runtime"]
    air = subprocess.Popen(
        [*armlet, "wearables", "simulate", played, "--listen", "vhci", "--duration", "10", "--link-loss", "gyro:3:6"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    screen, theirs = pty.openpty()
    try:
        assert air.stdout is not None and "on the air at system" in air.stdout.readline()
        asyncio.run(powered())
        live = subprocess.Popen(
            [*armlet, "run", bundle, "--key", bundle.with_name("signing.key.pub"), "--duration", "15",
             "--wearables", "Armlet-Acc,Armlet-Gyro,Armlet-Hr", "--record", tmp_path / "live.mcap",
             "--decisions", tmp_path / "live.jsonl", "--json", tmp_path / "live.json"],
            stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(theirs)
        threading.Thread(target=show_nobody, args=(screen,), daemon=True).start()
        _, error = live.communicate(timeout=120)
    finally:
        air.terminate()
        air.wait(10)
    assert live.returncode == 0, error.decode()
    decisions = [json.loads(line) for line in (tmp_path / "live.jsonl").read_text().splitlines()]
    assert [one["index"] for one in decisions] == list(range(len(decisions)))
    summary = json.loads((tmp_path / "live.json").read_text())
    subsets = [one["subset"] for one in summary["transitions"]]
    print(subsets, summary["latency_s"], summary["memory"])
    assert [one for one, _ in groupby(one for one in subsets if one != "none")] == ["acc+gyro", "acc", "acc+gyro"]
    assert summary["missed"] == 0
    counts = {name: one["profiles"]["imu"] for name, one in summary["wearables"].items() if name != "Armlet-Hr"}
    assert counts["Armlet-Gyro"]["connections"] == 2 and counts["Armlet-Gyro"]["packets"] > 100
    assert all(one["duplicated"] == one["malformed"] == one["implausible"] == 0 for one in counts.values())
    assert summary["memory"]["resident_bytes"] < 90e6


def show_nobody(screen: int) -> None:
    """Take what is shown, so that the process does not wait."""
    with suppress(OSError):  # nobody has it open any more
        while os.read(screen, 4096):
            pass
