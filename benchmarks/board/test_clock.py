"""The common clock: how far samples of made devices are off, and what decoding and aligning cost.

``benchmark.extra_info`` of the first holds the figures in ms; time itself is measured in the second.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from armlet_runtime.signals import Wearable
from armlet_runtime.wearables import imu
from tests.support import made_devices

SECONDS, SETTLED_S, SEEDS = 40.0, 10.0, 4
PACKETS = 2000


def test_alignment(benchmark: BenchmarkFixture) -> None:
    """+-100 ppm, delays of 5 to 60 ms, 5 % loss, bursts; errors beyond the link's least delay, from 10 s on."""

    def run() -> tuple[list[NDArray[np.float64]], ...]:
        errors, bounds, arrivals = [], [], []
        for seed in range(SEEDS):
            for ppm in (-100.0, 0.0, 100.0):
                got = made_devices.align(made_devices.Device(ppm), SECONDS, seed)
                late = got.at_s >= SETTLED_S
                errors.append(np.abs(got.error_ms[late]))
                bounds.append(got.bound_ms[late])
                arrivals.append(got.arrival_ms[late])
        return errors, bounds, arrivals

    errors, bounds, arrivals = map(np.concatenate, benchmark.pedantic(run, rounds=1))  # type: ignore[no-untyped-call]
    figures = {f"error_p{q}_ms": float(np.percentile(errors, q)) for q in (50, 95, 99)}
    figures["arrival_p95_ms"] = float(np.percentile(arrivals, 95))
    figures["better_than_arrival_p95"] = figures["arrival_p95_ms"] / figures["error_p95_ms"]
    figures["bound_p50_ms"] = float(np.median(bounds))
    figures["bound_holds"] = float((errors <= bounds).mean())
    benchmark.extra_info.update({name: round(value, 4) for name, value in figures.items()})
    assert figures["error_p50_ms"] <= 1.0 and figures["error_p99_ms"] <= 5.0
    assert figures["better_than_arrival_p95"] >= 10 and figures["bound_holds"] >= 0.99


@pytest.mark.parametrize("per_packet", [2, 10])
def test_decode_and_align(benchmark: BenchmarkFixture, per_packet: int) -> None:
    """Packets of six axes into a wearable's rings; ``extra_info`` has samples of one axis triple a second."""
    info = imu.ImuInfo(50.0, {"acc": 0.001, "gyro": 0.01})
    still = {name: np.zeros((per_packet, 3), np.float32) for name in info.scales}
    step_us = per_packet * 20_000
    packets = [imu.encode_data(info, n, n * step_us, still) for n in range(PACKETS)]

    def run() -> int:
        wearable = Wearable("w", 5_000_000_000)
        wearable.connected()
        wearable.info(imu.INFO_UUID, imu.encode_info(info))
        for n, packet in enumerate(packets):
            wearable.data(imu.DATA_UUID, packet, n * step_us * 1000 + 5_000_000 + n * 7919 % 20_000_000)
        return wearable.counts["imu"].samples

    samples = benchmark.pedantic(run, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    assert samples == 2 * per_packet * PACKETS
    if benchmark.stats is not None:  # it is with --benchmark-disable
        benchmark.extra_info["samples_per_s"] = round(samples / benchmark.stats.stats.median)
