"""The screen of a live run: what comes over the air is shown as it is, and everything fits 80 x 24."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from armlet_runtime.bluetooth import Link
from armlet_runtime.bundle.certificate import CertificateRow
from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.live.core import LiveCore
from armlet_runtime.modalities import Modality
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.policy import Policy
from armlet_runtime.signals.conversion import packets_of
from armlet_runtime.signals.recording import Recording, Stream
from armlet_runtime.views import line_writer
from armlet_runtime.views.frame import fitted, frame, spark
from armlet_runtime.views.line_writer import BackgroundWriter
from armlet_runtime.views.monitor import Monitor, binned, one_channel
from tests.support.small_bundle import SmallBundle


@pytest.fixture
def model(small_draft: Path) -> Iterator[BundleModel]:
    draft = Draft(small_draft)
    made = BundleModel(draft.manifest, draft.read, "litert")
    yield made
    made.close()


def replayed(
    model: BundleModel, core: LiveCore | None = None, seconds: float = 6.0, gyro_until_s: float = 4.0
) -> tuple[Monitor, LiveCore, int]:
    """A replay in which the gyroscope is lost, in a core of its own if none is given; and when it ended."""
    streams = {}
    for modality, until_s in zip(model.manifest.modalities, (seconds, gyro_until_s), strict=True):
        times = (np.arange(round(until_s * 50)) * 20_000_000).astype(np.int64)
        values = np.sin(times[:, None] / 1e9 * np.array([1.0, 3.0, 7.0])).astype(np.float32)
        streams[modality.name] = Stream(modality, times, values)
    row = CertificateRow("acc", "litert", 0.5, 0.5, 0.0, 0.0, 1.0, 0.44, 0.56)
    core = core or LiveCore(model, policy=Policy(certified={"acc": row}, certified_on="hapt validation"))
    monitor = Monitor(core, live=False)
    packets, _ = packets_of(Recording("walk", "anna", streams=streams), model.manifest.modalities)
    for packet in packets:
        for decision in core.packet(packet):
            monitor.decision(decision)
    end_ns = round(seconds * 1e9)
    for decision in core.advance(end_ns):
        monitor.decision(decision)
    return monitor, core, end_ns


def test_everything_fits_80_by_24(model: BundleModel) -> None:
    monitor, _, end_ns = replayed(model)
    links = {f"Wearable {n}": Link(f"Wearable {n}", "streaming", "", rssi=-60, battery=80) for n in range(12)}
    links["Long"] = Link("A very long name that somebody gave it", "waiting", "a problem that " * 10)
    for wearables in ({}, links):
        monitor.links(wearables)
        for width, height in ((80, 24), (40, 12), (200, 60)):
            lines = frame(monitor, model.manifest.modalities, end_ns, width, height)
            assert len(lines) <= height
            for line in lines:
                line.truncate(width, overflow="ellipsis")
                assert line.cell_len <= width
    text = "\n".join(line.plain for line in frame(monitor, model.manifest.modalities, end_ns, 80, 24))
    assert text.endswith("and 6 more") and text.count("streaming") == 8


def test_a_narrow_terminal_cuts_names_and_keeps_clocks(model: BundleModel) -> None:
    monitor, _, end_ns = replayed(model)
    monitor.links({"Polar H10 1234567890": Link("Polar H10 1234567890", "streaming")})
    for width, name in ((80, "Polar H10 1234567890 "), (60, "Polar ..567890 "), (40, "Pol..890 ")):
        lines = [line.plain for line in frame(monitor, model.manifest.modalities, end_ns, width, 24)]
        assert any(line.startswith(f"{name}streaming ") for line in lines)
        (head,) = (line for line in lines if line.startswith("wearable"))
        assert width < 60 or head.index("clock") + len("+100 ppm ±99.9 ms") <= width


def test_what_is_shown_of_a_replay(model: BundleModel) -> None:
    monitor, _, end_ns = replayed(model)
    lines = [line.plain for line in frame(monitor, model.manifest.modalities, end_ns, 80, 24)]
    text = "\n".join(lines)
    assert lines[0].startswith(" small 1 on litert") and "replay" in lines[0]
    assert "on acc  (certified macro-F1 0.50 [0.44, 0.56] on hapt validation)" in text
    (subsets,) = (line for line in lines if line.startswith("subsets"))
    assert set(subsets.split()[1]) == {"=", "-"} and subsets.split()[1].startswith("=====") and subsets.endswith("-")
    acc, gyro = (next(line for line in lines if line.startswith(name)) for name in ("acc ", "gyro "))
    assert "100%" in acc and set(acc[9:50]) & set("▁▂▃▄▅▆▇█") and " 0%" in gyro
    assert any(line.startswith("walk") and "linked" in line for line in lines)
    for label in model.manifest.labels:
        assert label in text
    plain = "\n".join(line.plain for line in frame(monitor, model.manifest.modalities, end_ns, 80, 24, blocks=False))
    assert plain.isascii()


def test_before_anything_was_heard(model: BundleModel) -> None:
    monitor = Monitor(LiveCore(model))
    text = "\n".join(line.plain for line in frame(monitor, model.manifest.modalities, 10**12, 80, 24))
    assert "waiting for the first window" in text and "never" in text and text.endswith("\nno wearable heard yet")


SHOW_BRACKETS = r"""
import sys, time
from pathlib import Path
from armlet_runtime.bluetooth import Link
from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.live import LiveCore
from armlet_runtime.model import BundleModel, Policy
from armlet_runtime.views import Monitor, make_view

draft = Draft(Path(sys.argv[1]))
model = BundleModel(draft.manifest, draft.read, "litert")
monitor = Monitor(LiveCore(model))
link = Link("[/bold]", "missing", "[org.bluez.Error.Failed] gone\x1b[2J")
monitor.links({link.name: link})
view = make_view(monitor, model.manifest.modalities, Policy())
view.problem("the link\nwas lost")
end = time.monotonic() + 1.5
while time.monotonic() < end:
    view.tick(10**12)
    time.sleep(0.02)
view.close()
print("after")
"""


def on_a_terminal(command: list[str], rows: int = 24, columns: int = 80) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command whose standard output is a terminal; and the terminal's other end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    return process, ours


def read_until(terminal: int, text: str, seconds: float = 60.0) -> str:
    """What is written to a terminal, up to and with ``text``."""
    shown = b""
    while text.encode() not in shown:
        assert select.select([terminal], [], [], seconds)[0], shown
        shown += os.read(terminal, 65536)
    return shown.decode(errors="replace")


def test_brackets_in_names_and_problems_are_text(small_draft: Path) -> None:
    process, terminal = on_a_terminal([sys.executable, "-c", SHOW_BRACKETS, str(small_draft)])
    shown = read_until(terminal, "after")
    assert process.wait(30) == 0
    os.close(terminal)
    assert "[/bold]" in shown and "the link was lost" in shown
    assert "[org.bluez.Error.Failed] gone [2J" in shown and "gone\x1b" not in shown
    # The terminal is given back: the screen that was there before, and its cursor.
    before, after = shown.split("\x1b[?1049h")[1].split("\x1b[?1049l")
    assert "\x1b[?25l" in before and "[/bold]" in before and "\x1b[?25h" in before + after
    assert after.replace("\x1b[?25h", "").strip() == "after"


def decided(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_decisions(path: Path, count: int, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while decided(path) < count:
        assert time.monotonic() < end, f"{decided(path)} of {count} decisions"
        time.sleep(0.05)


def test_a_stalled_terminal_does_not_stop_decisions(small_bundle: SmallBundle, played: Path, tmp_path: Path) -> None:
    key, out = str(small_bundle.public_key_path), tmp_path / "decisions.jsonl"
    command = [sys.executable, "-m", "armlet_runtime", "replay", str(played), str(small_bundle.path), "--key", key]
    process, terminal = on_a_terminal([*command, "--speed", "10", "--decisions", str(out)])
    read_until(terminal, "decisions")  # the screen is up
    os.write(terminal, b"\x13")  # Ctrl-S, as a stalled link: whoever writes to the terminal now waits
    wait_for_decisions(out, 118)  # all of the recording
    assert process.poll() is None  # the terminal still has to be given back
    os.write(terminal, b"\x11")
    assert "118 decisions, 0 missed" in read_until(terminal, "memory ").split("\x1b[?1049l")[1]
    assert process.wait(30) == 0
    os.close(terminal)


def test_a_stalled_pipe_does_not_stop_decisions(small_bundle: SmallBundle, played: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, b"x" * 4096)  # full: nothing more goes in until somebody reads
    key, out = str(small_bundle.public_key_path), tmp_path / "decisions.jsonl"
    command = [sys.executable, "-m", "armlet_runtime", "replay", str(played), str(small_bundle.path), "--key", key]
    process = subprocess.Popen([*command, "--speed", "10", "--decisions", str(out)], stdout=write)
    os.close(write)
    wait_for_decisions(out, 118)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode().lstrip("x")
    assert process.wait(30) == 0
    assert "window 0: acc+gyro -> " in text.splitlines()[0]
    assert "118 decisions, 0 missed" in text


def test_lines_that_nobody_reads_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "MAX_WAITING", 3)
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, b"x" * 4096)
    lines = BackgroundWriter(write, write)
    for number in range(10):
        lines.line(f"line {number}")
        time.sleep(0.02)  # the first is being written, the next three wait
    assert lines.dropped == 6
    assert os.read(read, 4096) == b"x" * 4096
    lines.close()
    os.close(write)
    with os.fdopen(read, "r") as pipe:
        assert pipe.read().splitlines() == [
            "line 0", "line 1", "line 2", "line 3", "armlet: 6 lines were dropped while nobody read them",
        ]  # fmt: skip


def test_a_reader_that_went_away_ends_the_command() -> None:
    read, write = os.pipe()
    lines = BackgroundWriter(write, write)
    os.close(read)
    lines.line("nobody reads this")
    with pytest.raises(BrokenPipeError):
        for _ in range(500):
            time.sleep(0.01)
            lines.line("nor this")
    lines.close()
    os.close(write)


def long_names(small_draft: Path) -> BundleModel:
    """The small model with names of sensors as long as those of a body with several."""
    draft = Draft(small_draft)
    names = {"acc": "left_forearm_watch_accelerometer", "gyro": "left_forearm_watch_gyroscope"}
    manifest = draft.manifest

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {names[name]: value for name, value in values.items()}

    manifest = msgspec.structs.replace(
        manifest,
        modalities=tuple(msgspec.structs.replace(one, name=names[one.name]) for one in manifest.modalities),
        normalisation=renamed(manifest.normalisation),
        engines={
            name: msgspec.structs.replace(programs, encoders=renamed(programs.encoders))
            for name, programs in manifest.engines.items()
        },
        golden=msgspec.structs.replace(manifest.golden, windows=renamed(manifest.golden.windows)),
    )
    return BundleModel(manifest, draft.read, "litert")


def test_names_of_sensors_are_not_cut(small_draft: Path) -> None:
    model = long_names(small_draft)
    first, second = (modality.name for modality in model.manifest.modalities)
    monitor, _, end_ns = replayed(model, gyro_until_s=6.0)
    lines = [line.plain for line in frame(monitor, model.manifest.modalities, end_ns, 80, 24)]
    text = "\n".join(lines)
    # The subset, whole, though its names go over two lines; each signal's line with a name of its own.
    assert f"on {first}" in text and f"+{second}" in text and max(map(len, lines)) <= 80
    assert sum(line.startswith(first) for line in lines) == sum(line.startswith(second) for line in lines) == 1
    narrow = [line.plain for line in frame(monitor, model.manifest.modalities, end_ns, 60, 24)]
    starts = [line.split(" ")[0] for line in narrow if line.startswith("left_")]
    assert len(set(starts)) == 2 and all(".." in name for name in starts)
    model.close()


def test_a_name_that_is_too_long_loses_its_middle() -> None:
    assert fitted("acc", 5) == "acc  " and fitted("watch", 5) == "watch"
    assert fitted("phone_accelerometer", 10) == "phon..eter" and fitted("phone_gyroscope", 9) == "phon..ope"
    assert fitted("加速度計の名前", 8) == "加 ..前 " or len(fitted("加速度計の名前", 8)) <= 8


def test_sparks() -> None:
    assert spark([None, 0.0, 5.0, 10.0], " 12345") == " 135"
    assert spark([2.0, 2.0], " 12345") == "11" and spark([None, None], " 12") == "  "
    times = np.array([-950, -50, -40], np.int64) * 1_000_000
    assert binned(times, np.array([1.0, 2.0, 4.0], np.float32), 10**9, 4) == [1.0, None, None, 3.0]
    assert binned(times[:0], np.zeros(0, np.float32), 10**9, 2) == [None, None]
    three = Modality("acc", ("x", "y", "z"), "g", 50.0)
    assert one_channel(three, np.array([[3.0, 4.0, 12.0]], np.float32)).tolist() == [13.0]
