"""The C header packs exactly what the runtime's codec reads."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armlet_runtime.wearables import imu

HEADER = Path(__file__).parents[2] / "firmware_bridge" / "firmware" / "armlet_imu.h"
NAMES = ("acc", "gyro", "mag")
# Exact in float32, so that the samples are whole numbers of LSB.
SCALE = 2.0**-13

# The header has inline functions only; these give them names that a library can export.
WRAPPER = """
#include "armlet_imu.h"
const uint8_t service[] = ARMLET_IMU_SERVICE_UUID;
const uint8_t info_uuid[] = ARMLET_IMU_INFO_UUID;
const uint8_t data_uuid[] = ARMLET_IMU_DATA_UUID;
size_t info(uint8_t *to, size_t room, float rate, uint8_t n, const uint8_t *codes, const float *scales) {
    return armlet_imu_info(to, room, rate, n, codes, scales);
}
size_t data(uint8_t *to, size_t room, uint8_t n, uint16_t sequence, uint32_t clock, const int16_t *axes, size_t count) {
    armlet_imu_packet packet;
    size_t i;
    armlet_imu_begin(&packet, to, room, n, sequence, clock);
    for (i = 0; i < count; i++) {
        if (!armlet_imu_add(&packet, axes + i * 3 * n)) break;
    }
    return packet.used;
}
"""


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("firmware")
    strict = ["-std=c99", "-ffreestanding", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
    wrapper, library = folder / "wrapper.c", folder / "firmware.so"
    wrapper.write_text(WRAPPER)
    command = [compiler, *strict, "-shared", "-fPIC", f"-I{HEADER.parent}", "-o", str(library), str(wrapper)]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.info.restype = loaded.data.restype = ctypes.c_size_t
    return loaded


def pack_info(firmware: ctypes.CDLL, info: imu.ImuInfo, room: int = 64) -> bytes:
    codes = bytes({"acc": 1, "gyro": 2, "mag": 3}[name] for name in info.scales)
    scales = (ctypes.c_float * len(codes))(*info.scales.values())
    out = ctypes.create_string_buffer(room)
    length = firmware.info(
        out, ctypes.c_size_t(room), ctypes.c_float(info.rate_hz), ctypes.c_uint8(len(codes)), codes, scales
    )
    return out.raw[:length]


def test_uuids_are_the_runtime_s(firmware: ctypes.CDLL) -> None:
    known = {"service": imu.SERVICE_UUID, "info_uuid": imu.INFO_UUID, "data_uuid": imu.DATA_UUID}
    for name, text in known.items():
        assert bytes((ctypes.c_uint8 * 16).in_dll(firmware, name)) == uuid.UUID(text).bytes[::-1]


@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
    rate=st.floats(0.125, 10_000, width=32),
    scale=st.floats(2**-20, 1000, width=32),
)
def test_info_is_the_codec_s(firmware: ctypes.CDLL, names: list[str], rate: float, scale: float) -> None:
    info = imu.ImuInfo(rate, dict.fromkeys(names, scale))
    packed = pack_info(firmware, info)
    assert packed == imu.encode_info(info)
    assert imu.decode_info(packed) == info
    assert pack_info(firmware, info, room=len(packed) - 1) == b""


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(draw=st.data(), sequence=st.integers(0, 2**16 - 1), clock_us=st.integers(0, 2**32 - 1))
def test_data_are_the_codec_s(firmware: ctypes.CDLL, draw: st.DataObject, sequence: int, clock_us: int) -> None:
    names = draw.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    count = draw.draw(st.integers(1, imu.MAX_COUNT + 3))
    seed = draw.draw(st.integers(0, 2**32 - 1))
    raw = np.random.default_rng(seed).integers(-(2**15), 2**15, (count, len(names), 3)).astype(np.int16)
    room = draw.draw(st.integers(8 + 6 * len(names), 8 + 6 * len(names) * (count + 1)))
    out = ctypes.create_string_buffer(room)
    length = firmware.data(
        out,
        ctypes.c_size_t(room),
        ctypes.c_uint8(len(names)),
        ctypes.c_uint16(sequence),
        ctypes.c_uint32(clock_us),
        raw.tobytes(),
        ctypes.c_size_t(count),
    )
    taken = min(count, imu.MAX_COUNT, (room - 8) // (6 * len(names)))
    info = imu.ImuInfo(50.0, dict.fromkeys(names, SCALE))
    samples = {name: raw[:taken, i].astype(np.float32) * np.float32(SCALE) for i, name in enumerate(names)}
    assert out.raw[:length] == imu.encode_data(info, sequence, clock_us, samples)
    read = imu.decode_data(info, out.raw[:length])
    assert (read.sequence, read.clock_us) == (sequence, clock_us)
