"""What incremental encoders gain: ``python -m benchmarks.studies.incremental FOLDER``; needs the export side.

An encoder of the recipe ``hapt`` (random weights: speed does not hang on them), as a bundle has it without steps and as
one has it with them, in one process, in turns. A call is what the live loop does for one modality in one hop: normalise
the samples, run the program, and, with steps, look whether the state still holds and keep what the next hop needs.
Shown are medians, and how many times as fast as the plain encoder: a ``step``, and a ``whole`` window of an incremental
encoder, which is what a hop costs where nothing can be carried.

``--count`` counts the instructions of a call on emulated boards instead (by QEMU; see ``tests/test_aarch64.py``), where
a multiplication that is saved is worth more. ``FOLDER`` gets the programs (in a process of its own, because of torch),
and is used again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from armlet_runtime.checks import Draft
from armlet_runtime.model import BundleModel
from benchmarks.turns import Call, median, medians_us, ratio

if TYPE_CHECKING:
    from armlet_export.backends import Part


PRECISIONS = ("fp32", "int8")
KINDS = ("plain", "incremental")
ENGINES = ("litert", "executorch", "onnx")


class Shape(NamedTuple):
    """Windows and widths of an encoder of three channels."""

    length_s: float
    hop_s: float
    rate_hz: float
    width: int
    """How many times the channels of the recipe."""


SHAPES = {
    "128 samples, hop 16": Shape(2.56, 0.32, 50.0, 1),
    "256 samples, hop 16": Shape(5.12, 0.32, 50.0, 1),
    "1000 samples, hop 32": Shape(10.0, 0.32, 100.0, 1),
    "1000 samples, hop 32, twice as wide": Shape(10.0, 0.32, 100.0, 2),
}
OPERATIONS = "operations.json"


def folder_of(folder: Path, shape: str, precision: str, kind: str) -> Path:
    return folder / f"{shape.replace(', ', '_').replace(' ', '-')}_{precision}_{kind}"


def make(folder: Path) -> None:
    """Write a draft of each."""
    import msgspec
    import torch

    from armlet_export.backends import LoweredPart, Part, lower_part
    from armlet_export.bundle import Description, make_draft
    from armlet_export.pipeline import program_part
    from armlet_export.quantise import learn_ranges, prepare
    from armlet_export.streaming import plans
    from armlet_runtime.bundle import AGGREGATOR, Presence
    from armlet_runtime.modalities import Modality
    from armlet_runtime.windows import Normalisation, WindowSpec
    from armlet_train.models import build_model, fold_batchnorm
    from armlet_train.recipes import ConvModel, find_recipe, load_recipe

    torch.manual_seed(0)
    torch.set_num_threads(1)
    recipe = load_recipe(find_recipe("hapt")).model
    assert isinstance(recipe, ConvModel)
    operations: dict[str, dict[str, int]] = {}
    aggregators: dict[str, LoweredPart] = {}
    for name, shape in SHAPES.items():
        modality, window = Modality("acc", ("x", "y", "z"), "g", shape.rate_hz), WindowSpec(shape.length_s, shape.hop_s)
        length = window.samples(modality)
        wide = msgspec.structs.replace(recipe, channels=tuple(shape.width * size for size in recipe.channels))
        model = fold_batchnorm(build_model(wide, (modality,), {"acc": length}, 6).eval())
        trained = prepare(model.encoders["acc"], torch.zeros(1, 3, length))
        with torch.no_grad():
            for _ in range(5):
                trained(torch.randn(16, 3, length))
        learn_ranges(trained, False)
        plain = Description(
            name="steps", version="1", created="2026-01-01T00:00:00Z", modalities=(modality,), window=window,
            normalisation={"acc": Normalisation((0.0, 0.1, 0.9), (1.0, 0.9, 1.1))}, labels=tuple("abcdef"),
            token_dim=model.token_dim, embedding_dim=model.embedding_dim, presence=Presence(),
        )  # fmt: skip
        incremental = dataclasses.replace(plain, steps=plans(model.encoders, (modality,), window))
        for precision, (kind, description) in itertools.product(
            PRECISIONS, zip(KINDS, (plain, incremental), strict=True)
        ):
            prepared = trained if precision == "int8" else None
            part = Part(model.encoders["acc"], plain.signature("acc"), precision, prepared)
            made: dict[str, dict[str, LoweredPart]] = {}
            for engine in ENGINES:
                if engine not in aggregators:
                    aggregators[engine] = lower_part(
                        engine, Part(model.aggregator, plain.signature(AGGREGATOR), "fp32")
                    )
                made[engine] = {AGGREGATOR: aggregators[engine]}
                for program in ("acc", *description.step_parts):
                    wanted = program_part(partial(_same, part), description, program, precision)
                    made[engine][program] = lower_part(engine, wanted)
            counts = {program: lowered.program.operations for program, lowered in made["onnx"].items()}
            operations.setdefault(name, {}).update(counts)
            masks = model.mask_tokens.detach().numpy()
            make_draft(description, made, masks, 1.0).write(folder_of(folder, name, precision, kind))
    (folder / OPERATIONS).write_text(json.dumps(operations))


def _same(part: Part, _name: str, _kind: str) -> Part:
    return part


def calls(folder: Path, shape: str, precision: str, engine: str) -> dict[str, Call]:
    """A hop of a plain encoder, of an incremental one that begins anew, and of one that takes a step."""
    plain, other = (
        BundleModel(draft.manifest, draft.read, engine)
        for draft in (Draft(folder_of(folder, shape, precision, kind)) for kind in KINDS)
    )
    step, length = other.steps["acc"], plain.manifest.window.samples(plain.manifest.modalities[0])
    signal = np.random.default_rng(0).standard_normal((3, length + step.hop)).astype(np.float32)
    before, window = signal[:, :length], signal[:, step.hop :]
    _, carried = other.encode_next("acc", before, None)
    token, _ = other.encode_next("acc", window, carried)
    assert other.stepped == 1
    assert np.abs(token - plain.encode("acc", window)).max() <= 1e-5
    return {
        "plain": lambda: plain.encode("acc", window),
        "whole": lambda: other.encode_next("acc", window, None),
        "step": lambda: other.encode_next("acc", window, carried),
    }


def measure(folder: Path) -> Iterator[str]:
    """The rows of a table."""
    operations = json.loads((folder / OPERATIONS).read_text())
    for shape in SHAPES:
        counts = operations[shape]
        fewer = counts["acc"] / counts["step acc"]
        yield f"{shape}: {counts['acc']:,} MACs, a step {counts['step acc']:,}: {fewer:.2f} times fewer"
        for engine in ENGINES:
            for precision in PRECISIONS:
                windows = medians_us(calls(folder, shape, precision, engine))
                yield (
                    f"  {engine:10s} {precision}  plain {median(windows, 'plain'):7.1f} us  "
                    f"step {median(windows, 'step'):7.1f} us, {ratio(windows, 'plain', 'step'):.2f} times as fast  "
                    f"whole {median(windows, 'whole'):7.1f} us, {ratio(windows, 'plain', 'whole'):.2f}"
                )


def count(folder: Path) -> Iterator[str]:
    """The same rows in instructions, on every emulated core."""
    from tests.support.emulated.cores import CORES, make_board

    script, repetitions = Path(__file__).with_name("count_steps.py"), 10
    with tempfile.TemporaryDirectory() as scratch:
        board = make_board(Path(scratch))
        for core, shape in itertools.product(CORES, SHAPES):
            yield f"{core}, {shape}"
            for engine, precision in itertools.product(("litert", "executorch"), PRECISIONS):
                done = board.run(core, script, folder, shape, precision, engine, str(repetitions))
                marks = list(map(int, re.findall(r"instructions (\d+)", done.stderr)))
                if len(marks) != 6:
                    raise SystemExit(f"no instructions were counted: {board.no_plugin or done.stderr[-500:]}")
                plain, whole, step = (
                    (last - first) // repetitions for first, last in zip(marks[::2], marks[1::2], strict=True)
                )
                yield (
                    f"  {engine:10s} {precision}  plain {plain:9,}  step {step:9,}, {plain / step:.2f} times fewer  "
                    f"whole {whole:9,}, {plain / whole:.2f}"
                )


def main(folder: Path, rows: Callable[[Path], Iterator[str]]) -> None:
    if not (folder / OPERATIONS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "benchmarks.studies.incremental", str(folder), "--make"], check=True)
    for line in rows(folder):
        print(line, flush=True)


if __name__ == "__main__":
    if "--make" in sys.argv:
        with contextlib.redirect_stdout(sys.stderr):  # the converters talk
            make(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), count if "--count" in sys.argv else measure)
