"""A run follows its slot: another bundle is taken up between two windows, and the event loop never waits for it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from armlet_runtime.bundle.bundle_writer import write_bundle
from armlet_runtime.bundle.manifest_file import named_members
from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.live.core import LiveCore
from armlet_runtime.live.open_bundle import Opened, open_model
from armlet_runtime.live.outputs import Output
from armlet_runtime.live.run import Run
from armlet_runtime.live.slot_watch import SlotWatch
from armlet_runtime.signals import Recorder
from tests.support.small_bundle import SmallBundle

PRODUCTS = 16
"""Products of large constant matrices in a program: ONNX Runtime computes them when it loads it, for a second or so."""


class Events(Output):
    """What a run shows."""

    def __init__(self) -> None:
        self.versions: list[str] = []
        self.problems: list[str] = []

    def became(self, opened: Opened) -> None:
        self.versions.append(opened.bundle.manifest.version)

    def problem(self, sentence: str) -> None:
        self.problems.append(sentence)


@pytest.fixture
def slot(small_bundle: SmallBundle, tmp_path: Path) -> Path:
    folder = tmp_path / "slot"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "model.armlet").write_bytes(small_bundle.path.read_bytes())
    (folder / "current").symlink_to("a", target_is_directory=True)
    return folder


@pytest.fixture
def run(slot: Path, small_bundle: SmallBundle) -> Iterator[Run]:
    opened = open_model(f"file:{slot}", (small_bundle.public_key_path,), "onnx")
    with Run(opened, LiveCore(opened.model, time.monotonic_ns, opened.policy)) as run:
        yield run
    run.opened.model.close()


def put_into_use(slot: Path, place: str) -> None:
    link = slot / ".current.test"
    link.symlink_to(place, target_is_directory=True)
    link.replace(slot / "current")


def write(small_bundle: SmallBundle, small_draft: Path, path: Path, version: str, **programs: bytes) -> None:
    """The small bundle as another version, with these programs of ONNX instead of its own."""
    draft = Draft(small_draft)
    members = {name: draft.read(name) for name in named_members(draft.manifest)}
    for part, program in programs.items():
        members[draft.manifest.engines["onnx"].by_part[part].member] = program
    path.parent.mkdir(exist_ok=True)
    write_bundle(path, msgspec.structs.replace(draft.manifest, version=version), members, [small_bundle.key])


def slow_to_load(program: bytes) -> bytes:
    """The same program, which ONNX Runtime takes long to load."""
    model = onnx.load_from_string(program)
    graph, node = model.graph, onnx.helper.make_node
    matrix = np.random.default_rng(1).random((1500, 1500), np.float32) / 1500
    graph.initializer.append(onnx.numpy_helper.from_array(matrix, "matrix"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.float32), "zero"))
    output = graph.output[0].name
    last = next(made for made in graph.node if output in made.output)
    last.output[list(last.output).index(output)] = "quick"
    graph.node.append(node("Identity", ["matrix"], ["product0"]))
    for number in range(PRODUCTS):
        graph.node.append(node("MatMul", [f"product{number}", "matrix"], [f"product{number + 1}"]))
    graph.node.append(node("ReduceMax", [f"product{PRODUCTS}"], ["largest"], keepdims=0))
    graph.node.append(node("Mul", ["largest", "zero"], ["nothing"]))
    graph.node.append(node("Add", ["quick", "nothing"], [output]))
    return bytes(model.SerializeToString())


async def turn_until(run: Run, events: Events, *, versions: int = 0, problems: int = 0) -> float:
    """Turn the run until it has shown so much; the longest time in seconds in which the event loop did nothing else."""
    gap_s, before = 0.0, time.monotonic()
    for _ in range(6000):
        run.turn([], time.monotonic_ns())
        now = time.monotonic()
        gap_s, before = max(gap_s, now - before), now
        if len(events.versions) >= versions and len(events.problems) >= problems:
            return gap_s
        await asyncio.sleep(0.005)
    raise AssertionError(f"nothing came of the slot in 30 s: {events.versions}, {events.problems}")


async def test_a_bundle_is_verified_and_loaded_beside_the_event_loop(
    slot: Path, run: Run, small_bundle: SmallBundle, small_draft: Path
) -> None:
    """Packets get their arrival times on the event loop: with a program that loads slowly, these were late."""
    path, keys = slot / "b" / "model.armlet", (small_bundle.public_key_path,)
    draft = Draft(small_draft)
    write(small_bundle, small_draft, path, "9.9", acc=slow_to_load(draft.read("programs/acc.onnx")))
    began = time.monotonic()
    open_model(str(path), keys, "onnx").model.close()
    takes_s = time.monotonic() - began
    events = run.add(Events())
    run.add(SlotWatch(run, f"file:{slot}", keys, "onnx", Recorder()))
    put_into_use(slot, "b")
    gap_s = await turn_until(run, events, versions=1)
    assert events.versions == ["9.9"] and run.opened.bundle.manifest.version == "9.9" and not events.problems
    assert gap_s < takes_s / 2, f"{gap_s:.3f} s without a turn; verifying and loading takes {takes_s:.3f} s"


async def test_a_bundle_that_cannot_be_loaded_leaves_the_one_before_at_work(
    slot: Path, run: Run, small_bundle: SmallBundle, small_draft: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="armlet_runtime")
    version = run.opened.bundle.manifest.version
    events = run.add(Events())
    run.add(SlotWatch(run, f"file:{slot}", (small_bundle.public_key_path,), "onnx", Recorder()))
    write(small_bundle, small_draft, slot / "b" / "model.armlet", "6.6", acc=os.urandom(1000))
    put_into_use(slot, "b")
    await turn_until(run, events, problems=1)
    assert not events.versions and run.opened.bundle.manifest.version == version
    assert "does not load" in events.problems[0] and events.problems[0].endswith(f"; going on with {version}")
    assert any("6.6 is in use in file:" in record.message for record in caplog.records)
    write(small_bundle, small_draft, slot / "a" / "model.armlet", "7.7")
    put_into_use(slot, "a")
    await turn_until(run, events, versions=1)
    assert events.versions == ["7.7"] and len(events.problems) == 1
