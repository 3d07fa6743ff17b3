"""Lines of text over the Nordic UART service: Bangle.js, and whatever else can print.

Sources: Nordic's "Nordic UART Service (NUS)" (UUIDs); espruino.com, "Bangle.js" and "Interfacing" (how code is sent to
it: the byte 0x10 turns the echo of a line off; at most 20 bytes a write; ``Bangle.on('accel')`` gives g,
``Bangle.setPollInterval`` the rate, ``Bangle.on('HRM')`` the pulse).

The device notifies bytes; lines may straddle notifications, and end with a line feed. A line that is a JSON object is a
sample of one or more modalities, in their units (:data:`armlet_runtime.wearables.profile.UNITS`)::

    {"t": 81234, "hz": 50, "acc": [0.01, -0.02, 0.98], "gyro": [0.0, 0.1, 0.0]}

    t    time of the sample on the device's clock in ms; wraps at 2^32
    hz   nominal rate of such lines; only the first line of a kind needs it. 2 and less: they come when they come
    acc, gyro, mag, ecg, eeg, ppg, hr, ...    a list of numbers, one a channel; always as many

Lines that are no JSON object are ignored: prompts, echoes, a program's other talk. A Bangle.js needs no program: it is
sent one when it is connected.
"""

from __future__ import annotations

import msgspec
import numpy as np

from ..errors import PacketError
from ..modalities import Modality
from .profile import UNITS, XYZ, Batch, Counters, Group, ProfileBase, Steps, Subscribe, Wanted, Write

SERVICE_UUID = "6e400001-b5a3-f393-e0a9-e50e24dcca9e"
WRITE_UUID = "6e400002-b5a3-f393-e0a9-e50e24dcca9e"
NOTIFY_UUID = "6e400003-b5a3-f393-e0a9-e50e24dcca9e"

CLOCK_WRAP_MS = 1 << 32
COUNTERS = Counters(clock_wrap_ns=CLOCK_WRAP_MS * 1_000_000)
EVENTS_HZ = 2.0
MAX_LINE = 512
MAX_CHANNELS = 16
LARGEST = 1e30

BANGLE_NAME = "Bangle.js"
BANGLE_INTERVALS_MS = (80, 40, 20, 10)
"""Of its accelerometer: 12.5, 25, 50 and 100 Hz."""
BANGLE_WRITE_BYTES = 20


def encode(clock_ms: int, hz: float, values: dict[str, list[float]]) -> bytes:
    """One line."""
    return msgspec.json.encode({"t": clock_ms % CLOCK_WRAP_MS, "hz": hz, **values}) + b"\n"


class UartDecoder:
    """Decodes one connection. A line's group follows from the modalities in it."""

    def __init__(self) -> None:
        self.groups: tuple[Group, ...] = ()
        self._rest = b""
        self._known: dict[tuple[str, ...], Group] = {}

    def take(self, kind: str, source: str, data: bytes) -> list[Batch]:
        """See :class:`armlet_runtime.wearables.profile.Decoder`."""
        if kind != "data":
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        batches: list[Batch] = []
        problem = ""
        if len(self._rest) > MAX_LINE:
            self._rest, problem = b"", f"a line has more than {MAX_LINE} bytes"
        for line in lines:
            try:
                batches += self._line(line.strip())
            except PacketError as error:
                problem = str(error)
        if problem and not batches:
            raise PacketError(problem)
        return batches

    def _line(self, line: bytes) -> list[Batch]:
        if not line.startswith(b"{"):
            return []
        try:
            fields = msgspec.json.decode(line[:MAX_LINE], type=dict[str, object])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PacketError(f"a line is no JSON object: {error}") from error
        names = tuple(name for name in UNITS if name in fields)
        if not names:
            return []
        channels = {name: _numbers(name, fields[name]) for name in names}
        group = self._group(names, {name: len(values) for name, values in channels.items()}, fields.get("hz"))
        clock_ms = fields.get("t")
        if not isinstance(clock_ms, int) or not 0 <= clock_ms < CLOCK_WRAP_MS:
            raise PacketError('a line needs "t", whole milliseconds from 0 to 2^32 - 1')
        values = {name: np.array([channels[name]], np.float32) for name in names}
        return [Batch(group, values, clock_ns=clock_ms * 1_000_000)]

    def _group(self, names: tuple[str, ...], counts: dict[str, int], hz: object) -> Group:
        known = self._known.get(names)
        if known is None:
            if not isinstance(hz, int | float) or not 0.01 <= hz <= 10_000:
                raise PacketError(f'the first line with {" and ".join(names)} needs "hz", its rate from 0.01 to 10000')
            modalities = tuple(Modality(name, _channels(counts[name]), UNITS[name], float(hz)) for name in names)
            known = Group(f"uart.{'+'.join(names)}", modalities, COUNTERS if hz > EVENTS_HZ else None)
            self._known[names] = known
            self.groups = tuple(self._known.values())
        if any(counts[modality.name] != len(modality.channels) for modality in known.modalities):
            raise PacketError(f"a line with {' and '.join(names)} has another number of channels than the first")
        return known


class UartProfile(ProfileBase):
    """Lines over the Nordic UART service as a profile."""

    name: str = "uart"
    services: tuple[str, ...] = (SERVICE_UUID,)
    names: tuple[str, ...] = (BANGLE_NAME,)
    sources: tuple[str, ...] = (WRITE_UUID, NOTIFY_UUID)
    carries: tuple[str, ...] = tuple(UNITS)
    silence_s: float = 15.0  # a pulse comes every ten seconds if it is hard to find

    def start(self, wanted: Wanted) -> Steps:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        if wanted.name.startswith(BANGLE_NAME) and not wanted.named:
            raise PacketError(f"'{wanted.name}' is sent a program only if a person names it: --wearables NAME")
        yield Subscribe(NOTIFY_UUID)
        if wanted.name.startswith(BANGLE_NAME):
            yield from _send(bangle_program(wanted))

    def stop(self, wanted: Wanted) -> Steps:
        """Take the program off a Bangle.js again."""
        if wanted.name.startswith(BANGLE_NAME):
            yield from _send(
                "Bangle.removeAllListeners('accel');Bangle.removeAllListeners('HRM');Bangle.setHRMPower(0)"
            )

    def decoder(self) -> UartDecoder:
        """See :class:`armlet_runtime.wearables.profile.Profile`."""
        return UartDecoder()


def bangle_program(wanted: Wanted) -> str:
    """The program for a Bangle.js that sends the wanted modalities."""
    rate_hz = wanted.rate_hz(("acc",), 50.0)
    interval_ms = min(BANGLE_INTERVALS_MS, key=lambda ms: abs(1000 / ms - rate_hz))
    line = "Bluetooth.println(JSON.stringify({t:Math.round(getTime()*1000)%4294967296,hz:"
    program = ""
    if wanted.wants("acc"):
        program += f"Bangle.setPollInterval({interval_ms});"
        program += f"Bangle.on('accel',a=>{line}{1000 / interval_ms:g},acc:[a.x,a.y,a.z]}})));"
    if wanted.wants("hr"):
        program += f"Bangle.setHRMPower(1);Bangle.on('HRM',h=>{{if(h.confidence>50){line}1,hr:[h.bpm]}}))}});"
    return program


def _send(program: str) -> Steps:
    """One line of code, without echo, in as many writes as it needs."""
    code = b"\x10" + program.encode() + b"\n"
    for start in range(0, len(code), BANGLE_WRITE_BYTES):
        yield Write(WRITE_UUID, code[start : start + BANGLE_WRITE_BYTES])


def _numbers(name: str, value: object) -> list[float]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CHANNELS:
        raise PacketError(f'"{name}" in a line is a list of 1 to {MAX_CHANNELS} numbers')
    numbers = []
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int | float) or not abs(item) < LARGEST:
            raise PacketError(f'"{name}" in a line holds {str(item)[:20]}, which is no number')
        numbers.append(float(item))
    return numbers


def _channels(count: int) -> tuple[str, ...]:
    return XYZ if count == 3 else tuple(f"c{i}" for i in range(count)) if count > 1 else ("value",)
