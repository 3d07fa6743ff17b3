"""Throws bytes at every decoder: `python tests/runtime/fuzz_decoders.py [INPUTS] [SEED]`, a million each by default.

The test suite does the same with fewer inputs. Half of the inputs are noise, half are whole conversations with one or a
few bytes changed, cut off or added. A decoder must give samples or a PacketError, whatever comes.
"""

from __future__ import annotations

import random
import sys
import time
import warnings
from collections.abc import Iterator

import numpy as np

from armlet_runtime.errors import PacketError
from armlet_runtime.wearables import (
    PROFILES,
    Profile,
    battery,
    device_information,
    imu,
    movesense,
    polar,
    thingy52,
    uart,
)
from armlet_runtime.wearables.profile import Batch, Decoder

Said = tuple[str, str, bytes]

_POLAR_RAMP = np.arange(60).reshape(20, 3) * 7 % 50
_ANY = bytes(range(1, 21))


def _polar() -> Iterator[Said]:
    for kind in polar.KINDS:
        settings = polar.encode_settings({polar.RATE: (52.0,)})
        yield "written", polar.CONTROL_UUID, bytes([polar.START, kind]) + settings
        answer = polar.Answer(polar.START, kind, polar.DONE, {polar.FACTOR: (0.25,)})
        yield "data", polar.CONTROL_UUID, polar.encode_answer(answer)
    for (kind, layout), how in polar.LAYOUTS.items():
        samples = np.resize(_POLAR_RAMP, (20, how.channels))
        if layout & polar.COMPRESSED:
            body = polar.compress(samples, how.bits)
        else:
            body = b"".join(int(one).to_bytes(how.bits // 8, "little") for one in samples.reshape(-1))
        yield "data", polar.DATA_UUID, polar.HEAD.pack(kind, 10**18, layout) + body
    yield (
        "data",
        polar.DATA_UUID,
        polar.HEAD.pack(polar.PPI, 0, 0) + bytes.fromhex("48 20 03 05 00 06 48 52 03 05 00 07"),
    )


def _movesense() -> Iterator[Said]:
    for reference, path in ((1, b"/Meas/IMU9/104"), (2, b"/Meas/ECG/125")):
        yield "written", movesense.WRITE_UUID, bytes([movesense.SUBSCRIBE, reference]) + path
        yield "data", movesense.NOTIFY_UUID, bytes([movesense.ANSWER, reference, 200, 0])
    motion = movesense.encode_motion(1, 5, {name: np.ones((8, 3), np.float32) for name in movesense.SCALES})
    yield "data", movesense.NOTIFY_UUID, motion[:150]
    yield "data", movesense.NOTIFY_UUID, bytes([movesense.REST, 1]) + motion[150:]
    yield "data", movesense.NOTIFY_UUID, movesense.encode_ecg(2, 5, np.ones(16, np.float32))


def conversation(profile: Profile) -> list[Said]:
    """Something that such a wearable and its host could say."""
    info = imu.ImuInfo(50.0, {"acc": 0.001, "gyro": 0.01})
    known: dict[str, list[Said]] = {
        "imu": [
            ("info", imu.INFO_UUID, imu.encode_info(info)),
            ("data", imu.DATA_UUID, imu.encode_data(info, 7, 9, {m: np.ones((3, 3), np.float32) for m in info.scales})),
        ],
        "polar": list(_polar()),
        "movesense": list(_movesense()),
        "thingy52": [
            ("written", thingy52.CONFIGURATION_UUID, thingy52.configuration(50)),
            ("data", thingy52.RAW_UUID, bytes(18)),
        ],
        "uart": [
            ("data", uart.NOTIFY_UUID, uart.encode(5, 50.0, {"acc": [0.1, 0.2, 1.0], "hr": [70.0]})),
            ("data", uart.NOTIFY_UUID, b'>echo\r\n{"t": 25, "acc": [1, 2'),
            ("data", uart.NOTIFY_UUID, b', 3], "hr": [1e2]}\n'),
        ],
        "heart_rate": [("data", profile.sources[0], bytes.fromhex("1f 3c 00 05 00 00 04 00 02"))],
        "oximeter": [
            ("data", profile.sources[0], bytes.fromhex("1f 61 00 48 00") * 2 + bytes(10)),
            ("data", profile.sources[-1], bytes.fromhex("0f ca f3 48 00") + bytes(14)),
        ],
        "thermometer": [("data", profile.sources[0], bytes.fromhex("06 6e 01 00 ff") + bytes(8))],
        "arduino": [("data", source, np.ones(3, "<f4").tobytes()) for source in profile.sources],
    }
    return known.get(profile.name) or [("data", source, _ANY) for source in profile.sources]


def changed(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few of them changed, and perhaps cut off or lengthened."""
    out = bytearray(data)
    for _ in range(rng.randrange(4)):
        if out:
            out[rng.randrange(len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    what = rng.randrange(8)
    if what == 0:
        out = out[: rng.randrange(len(out) + 1)]
    elif what == 1:
        out += rng.randbytes(rng.randrange(1, 40))
    return bytes(out)


def check(decoder: Decoder, batches: list[Batch]) -> None:
    """That what a decoder gave is what it says that it gives."""
    for batch in batches:
        assert batch.group in decoder.groups
        for modality in batch.group.modalities:
            values = batch.values[modality.name]
            assert values.dtype == np.float32 and values.shape == (batch.count, len(modality.channels))
            assert np.isfinite(values).all()
        if batch.before_ns is not None:
            assert batch.before_ns.shape == (batch.count,) and batch.before_ns[-1] == 0


def fuzz(profile: Profile, inputs: int, seed: int) -> tuple[int, int]:
    """Throw so many inputs at a profile's decoder; how many gave samples, and how many were refused."""
    rng = random.Random(f"{seed} {profile.name}")
    said = conversation(profile)
    good = refused = done = 0
    while done < inputs:
        decoder = profile.decoder()
        for kind, source, data in said * 3:
            one = (
                data
                if rng.random() < 0.3
                else changed(data, rng)
                if rng.random() < 0.6
                else rng.randbytes(rng.randrange(60))
            )
            if rng.random() < 0.02:
                kind, source = rng.choice(("info", "written", "data")), rng.choice(profile.sources)
            try:
                batches = decoder.take(kind, source, one)
            except PacketError as error:
                assert str(error)
                refused += 1
            else:
                check(decoder, batches)
                good += bool(batches)
            done += 1
    return good, refused


def fuzz_facts(inputs: int, seed: int) -> tuple[int, int]:
    """The same for what wearables say of themselves."""
    rng = random.Random(seed)
    good = refused = 0
    for _ in range(inputs):
        data = rng.randbytes(rng.randrange(4)) if rng.random() < 0.5 else rng.randbytes(rng.randrange(40))
        assert device_information.decode(data).isprintable()
        try:
            assert 0 <= battery.decode(data) <= 100
            good += 1
        except PacketError:
            refused += 1
    return good, refused


def main() -> None:
    """The command line."""
    warnings.simplefilter("error")
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for profile in PROFILES:
        began = time.monotonic()
        good, refused = fuzz(profile, inputs, seed)
        took_s = time.monotonic() - began
        print(f"{profile.name}: {inputs} inputs, {good} gave samples, {refused} refused, {took_s:.0f} s", flush=True)
    good, refused = fuzz_facts(inputs, seed)
    print(f"battery, device information: {inputs} inputs, {good} good, {refused} refused", flush=True)


if __name__ == "__main__":
    main()
