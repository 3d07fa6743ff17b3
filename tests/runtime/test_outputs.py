"""What a run gives out: the tally in bounded memory, decision lines on a full disk and in a folder."""

from __future__ import annotations

import json
import os
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from armlet_runtime.decisions import Decision
from armlet_runtime.errors import UsageError
from armlet_runtime.files import set_aside
from armlet_runtime.live.core import LiveCore
from armlet_runtime.live.decision_lines import DecisionLines, LiveDecisionLines
from armlet_runtime.live.open_bundle import Opened
from armlet_runtime.live.output_folder import OutputFolder
from armlet_runtime.live.recording_output import RecordingOutput
from armlet_runtime.live.run import Run
from armlet_runtime.live.summary import MOST_TRANSITIONS, Summary, Tally
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.policy import Policy
from armlet_runtime.signals import Recorder, read_recording
from tests.support.small_bundle import SmallBundle

from .test_live import both


@pytest.fixture(scope="module")
def opened(small_bundle: SmallBundle) -> Iterator[Opened]:
    bundle = small_bundle.open()
    model = BundleModel.from_bundle(bundle)
    yield Opened(model, bundle, Policy())
    model.close()


def decided(index: int, subset: tuple[str, ...] = ("acc",), latency_s: float = 0.01) -> Decision:
    """A decision with an embedding of 12 numbers, as the small model's."""
    end_ns = 1_000_000_000 + index * 500_000_000
    embedding = tuple(0.123456789 + n for n in range(12)) if subset else ()
    label, reason = ("walking", None) if subset else (None, "no sensor")
    scores = (0.7, 0.1, 0.1, 0.1) if subset else ()
    ages: dict[str, float | None] = {"acc": 0.01, "gyro": None}
    return Decision(
        index, end_ns, end_ns, subset, label, scores, embedding, ages, {"acc": 1.0, "gyro": 0.0}, "litert", reason,
        label, (), latency_s, latency_s / 10,
    )  # fmt: skip


def summary_of(tally: Tally, opened: Opened) -> Summary:
    return tally.summary(Run(opened, LiveCore(opened.model)), 0.0, 0.0, links={})


def test_a_tally_of_a_long_run_is_small_and_right_to_one_percent(opened: Opened) -> None:
    """Eight hours of half-second hops, with the subset changing all the time."""
    latencies = np.random.default_rng(0).lognormal(-5, 1.0, 60_000)
    tally = Tally(LiveCore(opened.model))
    tracemalloc.start()
    try:
        for index, latency_s in enumerate(latencies.tolist()):
            tally.decision(decided(index, ("acc",) if index % 2 else ("acc", "gyro"), latency_s))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000, f"{held} bytes are kept of 60 000 decisions"
    summary = summary_of(tally, opened)
    assert summary.latency_s is not None and summary.compute_s is not None
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert getattr(summary.latency_s, name) == pytest.approx(np.percentile(latencies, percent), rel=0.01)
    assert summary.latency_s.max == latencies.max()
    limit_s = opened.bundle.manifest.presence.max_wait_s + 0.05
    assert summary.late == int((latencies > limit_s).sum()) > 0
    assert summary.decisions == 60_000 and summary.subsets == {"acc+gyro": 30_000, "acc": 30_000}
    assert len(summary.transitions) == MOST_TRANSITIONS and summary.transitions[-1].index == 59_999
    assert summary.transitions_left_out == 60_000 - MOST_TRANSITIONS


def test_a_tally_of_no_decision_and_of_one(opened: Opened) -> None:
    tally = Tally(LiveCore(opened.model))
    assert summary_of(tally, opened).latency_s is None
    tally.decision(decided(0, latency_s=0.0))  # a clock may stand still
    spread = summary_of(tally, opened).latency_s
    assert spread is not None and spread.max == 0.0 and spread.p50 <= spread.p99 <= spread.max


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """As a disk that is full from there on: the kernel writes a part of a line, and then fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_lines_and_says_so_and_no_decision(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = LiveDecisionLines(path)
    line = len(decided(0).to_json()) + 1
    lines.decision(decided(0))
    assert lines.news() == () and lines.reports() == []
    with no_file_larger_than(round(2.5 * line)):
        for index in range(1, 5):
            lines.decision(decided(index))
        assert lines.news() == (f"cannot write {path}: File too large: decisions are made, and not written there",)
        assert lines.news() == ()
    lines.decision(decided(5))
    assert lines.news() == (f"{path}: decisions are written again",)
    lines.close()
    assert [json.loads(line)["index"] for line in path.read_bytes().splitlines()] == [0, 1, 5], "no line is torn"
    (report,) = lines.reports()
    assert (report.sink, report.sent, report.lost) == (str(path), 3, 3) and "File too large" in report.problem


def test_a_replay_ends_on_a_full_disk(tmp_path: Path) -> None:
    lines = DecisionLines(tmp_path / "d.jsonl")
    with no_file_larger_than(100), pytest.raises(UsageError, match="File too large"):
        lines.decision(decided(0))
    lines.close()


def test_a_folder_has_a_file_for_each_start_and_keeps_within_its_size(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "decisions"
    (tmp_path / "new").mkdir()

    def run(first: int, count: int, embeddings: bool = False) -> None:
        lines = LiveDecisionLines(OutputFolder(folder, "decisions", ".jsonl", 160_000), embeddings)
        for index in range(first, first + count):
            lines.decision(decided(index))
        lines.close()

    def kept() -> list[list[int]]:
        files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return [[json.loads(line)["index"] for line in path.read_bytes().splitlines()] for path in files]

    run(0, 3)
    run(3, 3)
    assert sorted(kept()) == [[0, 1, 2], [3, 4, 5]], "a second start leaves what the first one wrote"
    (folder / "notes.txt").write_text("mine")
    first = next(folder.glob("decisions-*"))
    assert b'"embedding":[]' in first.read_bytes()
    run(6, 2000)
    sizes = [path.stat().st_size for path in folder.glob("decisions-*")]
    assert sum(sizes) <= 160_000 and len(sizes) > 10 and max(sizes) < 11_000
    assert (folder / "notes.txt").exists()
    (folder / "notes.txt").unlink()
    indices = sorted(index for part in kept() for index in part)
    assert indices == list(range(indices[0], 2006)) and indices[0] > 0, "the oldest went, and none between"
    run(2006, 1, embeddings=True)
    assert any(b"0.123456789" in path.read_bytes() for path in folder.iterdir())


def test_a_folder_that_cannot_be_written_is_said_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make the folder"):
        OutputFolder(tmp_path / "file" / "decisions", "decisions", ".jsonl", 1000)
    folder = OutputFolder(tmp_path / "decisions", "decisions", ".jsonl", 100_000)
    lines = LiveDecisionLines(folder, embeddings=False)
    folder.path.rename(tmp_path / "away")
    lines.decision(decided(0))
    assert "No such file" in lines.news()[0]
    (tmp_path / "away").rename(folder.path)
    lines.decision(decided(1))
    lines.close()
    (report,) = lines.reports()
    assert (report.sent, report.lost) == (1, 1)


def test_what_an_earlier_run_wrote_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    assert set_aside(path) is None
    path.touch()
    assert set_aside(path) is None and set_aside(Path(os.devnull)) is None
    names = []
    for text in ("one", "two"):
        path.write_text(text)
        os.utime(path, (0, 0))
        kept = set_aside(path)
        assert kept is not None and kept.read_text() == text and not path.exists()
        names.append(kept.name)
    assert names == ["d-19700101T000000Z.jsonl", "d-19700101T000000Z-2.jsonl"]


def test_a_recording_in_a_folder_is_in_parts_that_each_replay(opened: Opened, tmp_path: Path) -> None:
    packets = both(60.0)
    folder = OutputFolder(tmp_path / "recordings", "recording", ".mcap", 1_000_000)
    folder.part_bytes = 20_000
    core = LiveCore(opened.model)
    with Recorder() as recorder, Run(opened, core) as run:
        run.add(RecordingOutput(recorder, run, folder))
        run.start_recording(recorder, folder.next_file())
        for packet in packets:
            run.turn([packet], packet.arrival_ns)
        run.finish()
    parts = sorted(folder.path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(parts) >= 3
    recordings = [read_recording(part) for part in parts]
    # No packet of data is in two parts, or in none.
    sent = [packet.data for packet in packets if packet.kind == "data"]
    kept = [packet.data for recording in recordings for packet in recording.packets if packet.kind == "data"]
    assert kept == sent
    for recording in recordings[1:]:
        again = LiveCore(opened.model)
        replayed = [decision for packet in recording.packets for decision in again.packet(packet)]
        assert any(decision.label is not None for decision in replayed), "a later part decodes by itself"
