"""The screen of a live run: what comes over the air is shown as it is, and everything fits 80 x 24."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from armlet_runtime.bluetooth import Link
from armlet_runtime.bundle.manifest import CertificateRow
from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.live.core import LiveCore
from armlet_runtime.modalities import Modality
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.policy import Policy
from armlet_runtime.signals.conversion import packets_of
from armlet_runtime.signals.recording import Recording, Stream
from armlet_runtime.views.monitor import Monitor, binned, one_channel
from armlet_runtime.views.terminal import Painter, TerminalView, frame, spark


@pytest.fixture
def model(small_draft: Path) -> Iterator[BundleModel]:
    draft = Draft(small_draft)
    made = BundleModel(draft.manifest, draft.read, "litert")
    yield made
    made.close()


def played(model: BundleModel, seconds: float = 6.0, gyro_until_s: float = 4.0) -> tuple[Monitor, LiveCore, int]:
    """A replay in which the gyroscope is lost; and when it ended."""
    streams = {}
    for modality, until_s in zip(model.manifest.modalities, (seconds, gyro_until_s), strict=True):
        times = (np.arange(round(until_s * 50)) * 20_000_000).astype(np.int64)
        values = np.sin(times[:, None] / 1e9 * np.array([1.0, 3.0, 7.0])).astype(np.float32)
        streams[modality.name] = Stream(modality, times, values)
    row = CertificateRow("acc", "litert", 0.5, 0.5, 0.0, 0.0, 1.0, 0.44, 0.56)
    core = LiveCore(model, policy=Policy(certified={"acc": row}))
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
    monitor, _, end_ns = played(model)
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
    monitor, _, end_ns = played(model)
    monitor.links({"Polar H10 1234567890": Link("Polar H10 1234567890", "streaming")})
    for width, name in ((80, "Polar H10 1234567890 "), (60, "Polar H10 1234 "), (40, "Polar H1 ")):
        lines = [line.plain for line in frame(monitor, model.manifest.modalities, end_ns, width, 24)]
        assert any(line.startswith(f"{name}streaming ") for line in lines)
        (head,) = (line for line in lines if line.startswith("wearable"))
        assert width < 60 or head.index("clock") + len("+100 ppm ±99.9 ms") <= width


def test_what_is_shown_of_a_replay(model: BundleModel) -> None:
    monitor, _, end_ns = played(model)
    lines = [line.plain for line in frame(monitor, model.manifest.modalities, end_ns, 80, 24)]
    text = "\n".join(lines)
    assert lines[0].startswith(" small 1 on litert") and "replay" in lines[0]
    assert "on acc  (certified macro-F1 0.50 [0.44, 0.56])" in text
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
    assert "waiting for the first window" in text and "never" in text and text.endswith("\nnone heard yet")


def test_brackets_in_names_and_problems_are_text(model: BundleModel, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(LiveCore(model))
    link = Link("[/bold]", "missing", "[org.bluez.Error.Failed] gone\x1b[2J")
    monitor.links({link.name: link})
    view = TerminalView(monitor, model.manifest.modalities)
    view.tick(10**12)
    view.problem("the link\nwas lost")
    view.close()
    shown = capsys.readouterr().out
    assert "[/bold]" in shown
    assert "[org.bluez.Error.Failed] gone [2J" in shown and "gone\x1b" not in shown
    # The terminal is given back: cursor, and the screen that was there before.
    assert shown.startswith("\x1b[?1049h\x1b[?25l") and shown.endswith("\x1b[?25h\x1b[?1049l")


def test_only_what_changed_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.text import Text

    painter = Painter()
    painter.paint([Text("one"), Text("two"), Text("three", "red")], 80, 24)
    capsys.readouterr()
    painter.paint([Text("one"), Text("2"), Text("three", "red")], 80, 24)
    assert capsys.readouterr().out == "\x1b[2;1H2\x1b[K"
    painter.paint([Text("one"), Text("2"), Text("three", "red")], 80, 24)
    assert capsys.readouterr().out == ""
    painter.paint([Text("one")], 80, 24)
    assert capsys.readouterr().out == "\x1b[2;1H\x1b[K\x1b[3;1H\x1b[K"
    painter.paint([Text("o" * 50)], 40, 24)  # another size: all of it, cut
    assert capsys.readouterr().out == "\x1b[2J\x1b[1;1H" + "o" * 39 + "…\x1b[K" or not painter.blocks
    painter.close()


def test_sparks() -> None:
    assert spark([None, 0.0, 5.0, 10.0], " 12345") == " 135"
    assert spark([2.0, 2.0], " 12345") == "11" and spark([None, None], " 12") == "  "
    times = np.array([-950, -50, -40], np.int64) * 1_000_000
    assert binned(times, np.array([1.0, 2.0, 4.0], np.float32), 10**9, 4) == [1.0, None, None, 3.0]
    assert binned(times[:0], np.zeros(0, np.float32), 10**9, 2) == [None, None]
    three = Modality("acc", ("x", "y", "z"), "g", 50.0)
    assert one_channel(three, np.array([[3.0, 4.0, 12.0]], np.float32)).tolist() == [13.0]
