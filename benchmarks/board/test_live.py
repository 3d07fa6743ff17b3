"""The live loop: what it makes of packets a second, what a decision costs beside its programs, how big the process is.

Each figure stands beside its goal in the summary and in ``extra_info.goals``. Processor time is counted, so that other
work on the machine does not.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from armlet_runtime.bundle import Bundle
from armlet_runtime.live import LiveCore
from armlet_runtime.modalities import Modality
from armlet_runtime.model import BundleModel
from armlet_runtime.signals import Cutter, Packet, Recording, Stream, Wearable, write_recording
from armlet_runtime.wearables import imu

ARMLET = [sys.executable, "-m", "armlet_runtime"]
EPOCH_NS = 1_000_000_000_000
WEARABLES, SECONDS = 3, 60
DECISIONS, WARM_UP = 600, 50
Goal = Callable[..., None]
# What bumble adds to a process that has armlet's side of Bluetooth.
BUMBLE = """
import armlet_runtime.bluetooth.session, armlet_runtime.bundle.container
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
import armlet_bridge.radio.bumble_backend
print(resident() - before)
"""


def packets(name: str, modalities: tuple[Modality, ...], seconds: float, per_packet: int) -> list[Packet]:
    """An IMU's connection and all that it sends, with 5 to 25 ms of delay."""
    rate_hz = modalities[0].rate_hz
    info = imu.ImuInfo(rate_hz, {modality.name: 0.001 for modality in modalities})
    rng = np.random.default_rng(1)
    lines = [
        Packet(EPOCH_NS, name, "connected", "", b""),
        Packet(EPOCH_NS, name, "info", imu.INFO_UUID, imu.encode_info(info)),
    ]
    step_ns = round(per_packet * 1e9 / rate_hz)
    for n in range(round(seconds * rate_hz / per_packet)):
        values = {m.name: rng.normal(size=(per_packet, 3)).astype(np.float32) for m in modalities}
        data = imu.encode_data(info, n, n * step_ns // 1000, values)
        arrival_ns = EPOCH_NS + (n + 1) * step_ns + 5_000_000 + n * 7919 % 20_000_000
        lines.append(Packet(arrival_ns, name, "data", imu.DATA_UUID, data))
    return lines


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("per_packet", [2, 10])
def test_decode_align_and_window(benchmark: BenchmarkFixture, goal: Goal, per_packet: int) -> None:
    """Three six-axis IMUs of 50 Hz into windows of 2.56 s every 0.32 s; a sample is one axis triple."""
    acc, gyro = Modality("acc", ("x", "y", "z"), "g", 50.0), Modality("gyro", ("x", "y", "z"), "rad/s", 50.0)
    sent = {f"w{n}": packets(f"w{n}", (acc, gyro), SECONDS, per_packet) for n in range(WEARABLES)}
    hop_ns, length = 320_000_000, 128

    def run() -> int:
        windows = 0
        for name, said in sent.items():
            wearable = Wearable(name, 4_000_000_000)
            cutters: list[Cutter] = []
            end_ns = EPOCH_NS + 2_560_000_000
            for packet in said:
                wearable.take(packet)
                while packet.arrival_ns > end_ns + 30_000_000:
                    cutters = cutters or [Cutter(wearable.rings[m.name], m, length, hop_ns) for m in (acc, gyro)]
                    for cutter in cutters:
                        assert cutter.cut(end_ns).coverage > 0.95
                        windows += 1
                    end_ns += hop_ns
        return windows

    windows = benchmark.pedantic(run, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    assert windows > WEARABLES * 2 * (SECONDS - 4) / 0.32
    if benchmark.stats is not None:  # it is with --benchmark-disable
        samples = WEARABLES * 2 * SECONDS * 50
        benchmark.extra_info["samples_per_s"] = round(samples / benchmark.stats.stats.median)
        us = benchmark.stats.stats.median / samples * 1e6
        goal(f"decode, align, window: us a sample, {per_packet} a packet", us, 20.0, f"{1e6 / us:.0f} samples/s")


def test_overhead_of_a_decision(benchmark: BenchmarkFixture, goal: Goal, bundle: Bundle) -> None:
    """Of the live loop's decision, windows and normalisation included, over the same program calls made bare."""
    model = BundleModel.from_bundle(bundle)
    manifest = model.manifest
    if {modality.name for modality in manifest.modalities} - {"acc", "gyro", "mag"}:
        pytest.skip("the made wearables of this benchmark are IMUs")
    seconds = (DECISIONS + WARM_UP) * manifest.window.hop_s + 10 * manifest.window.length_s
    reports = sorted(
        (packet for modality in manifest.modalities for packet in packets(modality.name, (modality,), seconds, 2)),
        key=lambda packet: packet.arrival_ns,
    )
    windows = {
        m.name: np.ones((1, len(m.channels), manifest.window.samples(m)), np.float32) for m in manifest.modalities
    }
    row = np.ones((1, len(windows) * manifest.token_dim), np.float32)
    core = LiveCore(model, time.monotonic_ns)
    deciding, taking, bare = [], [], []

    def run() -> None:
        for packet in reports:
            began = time.thread_time_ns()
            decisions = core.packet(packet)
            took = time.thread_time_ns() - began
            if not decisions:
                taking.append(took)
            elif len(decisions) == 1 and len(decisions[0].subset) == len(windows):
                deciding.append(took)
                began = time.thread_time_ns()
                for name, window in windows.items():
                    model._encoders[name]({"window": window})
                model._aggregator({"tokens": row})
                bare.append(time.thread_time_ns() - began)

    benchmark.pedantic(run, rounds=1)  # type: ignore[no-untyped-call]
    assert len(deciding) > DECISIONS
    whole_us, taking_us, bare_us = (float(np.median(times[WARM_UP:])) / 1e3 for times in (deciding, taking, bare))
    summary = f"{whole_us:.0f} us, of it {taking_us:.0f} for taking in the packet, {bare_us:.0f} in the programs"
    goal("decision beside its programs, us", whole_us - taking_us - bare_us, 200.0, summary)


@pytest.fixture
def air(tmp_path: Path) -> Iterator[str]:
    """Three virtual wearables in a process of their own; gives what ``--bluetooth`` takes."""
    times = (np.arange(50 * 120) * 20_000_000).astype(np.int64)
    slow = times[::50]
    streams = {
        name: Stream(Modality(name, ("x", "y", "z"), unit, 50.0), times, np.ones((len(times), 3), np.float32))
        for name, unit in (("acc", "g"), ("gyro", "rad/s"))
    }
    streams["hr"] = Stream(Modality("hr", ("bpm",), "bpm", 1.0), slow, np.full((len(slow), 1), 72, np.float32))
    write_recording(tmp_path / "played.mcap", Recording("played", "nobody", streams=streams))
    command = [*ARMLET, "wearables", "simulate", str(tmp_path / "played.mcap"), "--listen", "tcp-server:127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield "bumble:" + process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait()


def test_memory_of_the_live_process(
    benchmark: BenchmarkFixture, goal: Goal, bundle_file: tuple[Path, list[Path]], air: str, tmp_path: Path
) -> None:
    """``armlet run`` with three wearables, a recorder and a screen, on LiteRT.

    The goal is for BlueZ (``tests/runtime/bluez`` holds it to that); here the virtual air needs bumble in the process,
    and what importing it adds is taken off.
    """
    bundle, keys = bundle_file
    trust = [word for key in keys for word in ("--key", str(key))]
    command = [
        *ARMLET, "run", str(bundle), *trust, "--engine", "litert", "--bluetooth", air, "--duration", "20",
        "--wearables", "Armlet-Acc,Armlet-Gyro,Armlet-Hr", "--record", str(tmp_path / "live.mcap"),
        "--decisions", str(tmp_path / "live.jsonl"), "--json", str(tmp_path / "live.json"),
    ]  # fmt: skip

    def run() -> None:
        ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment)
        os.close(theirs)
        reader = threading.Thread(target=read_all, args=(ours,))
        reader.start()
        _, said = process.communicate()
        reader.join()
        os.close(ours)
        assert process.returncode == 0, said.decode()

    benchmark.pedantic(run, rounds=1)  # type: ignore[no-untyped-call]
    summary = json.loads((tmp_path / "live.json").read_text())
    assert len(summary["wearables"]) == 3 and summary["decisions"] > 10
    resident = summary["memory"]["resident_bytes"]
    bumble = int(subprocess.run([sys.executable, "-c", BUMBLE], capture_output=True, check=True).stdout)
    goal(
        "armlet run without bumble, resident MB", (resident - bumble) / 1e6, 90.0, f"bumble {bumble / 1e6:.0f} MB more"
    )


def read_all(screen: int) -> None:
    """Take what is shown, so that the process does not wait."""
    while True:
        try:
            if not os.read(screen, 4096):
                return
        except OSError:  # nobody has it open any more
            return
