"""Incremental encoders: what is carried, and that the answers are the windowed ones."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from torch import Tensor, nn

from armlet_export.backends.base import NEXT_STATE, STATE, Part, Signature
from armlet_export.backends.registry import BACKENDS, lower_part
from armlet_export.explain import delegated_when_loaded, explain_bundle
from armlet_export.pipeline import ExportReport, Trained, export_model
from armlet_export.proof.gate import run_engine
from armlet_export.streaming import Step, StepPlan, Windowed, plan, plan_of, plans, step, windowed
from armlet_runtime.bundle.container import Bundle, open_bundle
from armlet_runtime.bundle.trust import trusted_keys
from armlet_runtime.checks.bench import cases
from armlet_runtime.commands import inspect
from armlet_runtime.decisions import Decision
from armlet_runtime.engines.registry import get_engine
from armlet_runtime.errors import DataError, ExportError, NotANumberError
from armlet_runtime.live.core import LiveCore
from armlet_runtime.modalities import Modality
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.golden_run import STEPS_HOLD, golden_windows, run_golden, step_difference
from armlet_train.models.base import ArmletModel, fold_batchnorm
from armlet_train.models.build import build_model
from armlet_train.models.conv import ConvEncoder
from armlet_train.recipes import ConvModel, CrosslModel

from .conftest import Recorder

ENGINES = ("litert", "executorch", "onnx")

HAPT = ((9, 2, 4), (5, 2, 2), (5, 2, 2))


def columns_of(layers: tuple[tuple[int, int, int], ...], signal: Tensor) -> Tensor:
    """The last layer's columns for (samples,) float64; whole numbers, so that no order of sums makes a difference."""
    generator = torch.Generator().manual_seed(0)
    values = signal[None, None]
    for kernel, stride, padding in layers:
        weight = torch.randint(1, 100, (1, 1, kernel), generator=generator).double()
        values = nn.functional.conv1d(values, weight, torch.ones(1, dtype=torch.float64), stride, padding)
    return values[0, 0]


def test_what_the_recipe_hapt_carries() -> None:
    found = plan(HAPT, 96, 128, 16)
    assert found == StepPlan(128, 16, 96, 16, left=2, right=4, moved=2, head=32, tail=48, rests_on=(16, 121))
    assert found.carried == 10 and found.kept == (4, 14) and found.state == (1, 96, 1, 10)


def test_plans_hold_for_any_sizes() -> None:
    """Against the columns themselves: carried ones are the same numbers, and one more on either side would not be."""
    rng = np.random.default_rng(0)
    kernels, strides, seen = (1, 3, 4, 5, 9), (1, 2, 3), 0
    for _ in range(300):
        layers = tuple(
            (kernel := int(rng.choice(kernels)), int(rng.choice(strides)), int(rng.choice((0, kernel // 2))))
            for _ in range(int(rng.integers(1, 4)))
        )
        strides_together = int(np.prod([stride for _, stride, _ in layers]))
        length, hop = int(rng.integers(30, 200)), strides_together * int(rng.integers(1, 4))
        found = plan(layers, 1, length, hop)
        if found is None:
            continue
        seen += 1
        signal = torch.from_numpy(rng.integers(-1000, 1000, length + hop)).double()
        before, after = columns_of(layers, signal[:length]), columns_of(layers, signal[hop:])
        first, end = found.kept
        state = before[first:end]
        assert torch.equal(state, after[found.left : found.left + found.carried])
        window = signal[hop:]
        short = columns_of(layers, torch.cat([window[: found.head], window[length - found.tail :]]))
        anew = [short[: found.left], state, short[len(short) - found.right :]]
        assert torch.equal(torch.cat(anew), after)
        # Nothing is left out that could be carried, and the state rests on the samples that are named, on all of them.
        moved = before[found.moved :]
        assert found.left == 0 or moved[found.left - 1] != after[found.left - 1]
        assert found.left + found.carried == len(moved) or moved[found.left + found.carried] != after[end - found.moved]
        oldest, newest = found.rests_on
        for sample, same in ((oldest - 1, True), (oldest, False), (newest - 1, False), (newest, True)):
            if 0 <= sample < length:
                other = signal[:length].clone()
                other[sample] += 1
                assert torch.equal(columns_of(layers, other)[first:end], state) is same
        # Every sample of a window is read, or the state rests on it.
        assert oldest - hop <= found.head and newest - hop >= length - found.tail
    assert seen > 100


@pytest.mark.parametrize("layers, length, hop", [(HAPT, 128, 120), (HAPT, 40, 8), (((9, 8, 0),), 16, 8)])
def test_short_windows_carry_nothing(layers: tuple[tuple[int, int, int], ...], length: int, hop: int) -> None:
    assert plan(layers, 1, length, hop) is None


def encoder(mask: str = "token") -> ConvEncoder:
    torch.manual_seed(1)
    recipe = ConvModel(
        channels=(8, 12, 16), kernels=(9, 5, 5), strides=(2, 2, 2), token_dim=16, hidden_dim=16, embedding_dim=8,
        dropout=0.0, mask=mask,  # type: ignore[arg-type]
    )  # fmt: skip
    modality = Modality("acc", ("x", "y", "z"), "g", 50.0)
    model = build_model(recipe, (modality,), {"acc": 128}, 3)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(layer.num_features)
            layer.running_var = 0.5 + torch.rand(layer.num_features)
    folded = fold_batchnorm(model).encoders["acc"]
    assert isinstance(folded, ConvEncoder)
    return folded


@pytest.mark.parametrize("mask", ["token", "presence"])
def test_steps_give_the_windows_tokens_hop_after_hop(mask: str) -> None:
    whole = encoder(mask)
    found = plan_of(whole, "acc", 128, 16.0)
    assert found is not None
    begins, steps = Windowed(whole, found), Step(whole, found)
    assert [name for name, _ in steps.named_parameters()] == [name for name, _ in whole.named_parameters()]
    signal = torch.randn(2, 3, 128 + 30 * 16)
    with torch.no_grad():
        _, state = begins(signal[..., :128])
        for hop in range(1, 31):
            window = signal[..., 16 * hop : 16 * hop + 128]
            token, state = steps(torch.cat([window[..., : found.head], window[..., 128 - found.tail :]], 2), state)
            wanted_token, wanted_state = begins(window)
            torch.testing.assert_close(token, whole(window), rtol=0, atol=1e-5)
            torch.testing.assert_close(wanted_token, whole(window), rtol=0, atol=0)
            torch.testing.assert_close(state, wanted_state, rtol=0, atol=1e-5)


def test_what_cannot_be_incremental_is_told() -> None:
    with pytest.raises(ExportError, match=r"one column of 8 samples, and \[data\] hop_s is 20 samples"):
        plan_of(encoder(), "acc", 128, 20.0)
    with pytest.raises(ExportError, match=r"hop_s is 16\.5 samples"):
        plan_of(encoder(), "acc", 128, 16.5)
    recipe = CrosslModel(kernels=(8, 8, 8), token_dim=8)
    other = build_model(recipe, (Modality("acc", ("x",), "g", 50.0),), {"acc": 128}, 3)
    with pytest.raises(ExportError, match=r"it is CrosslEncoder, and only those of kind = \"conv\""):
        plan_of(other.encoders["acc"], "acc", 128, 16.0)


def parts(whole: ConvEncoder, found: StepPlan, precision: str = "fp32") -> tuple[Part, Part]:
    """The encoder with the state to go on from, and its steps."""
    token: dict[str, tuple[int, ...]] = {"token": (1, 16)}
    made = {**token, NEXT_STATE: found.state}
    part = Part(whole, Signature("window", (1, 3, 128), token), precision)
    return (
        windowed(part, found, Signature("window", (1, 3, 128), made)),
        step(part, found, Signature("window", (1, 3, found.head + found.tail), made, found.state)),
    )


@pytest.mark.parametrize("engine", ["litert", "executorch", "onnx"])
def test_programs_of_steps_give_the_windows_tokens(engine: str) -> None:
    """In fp32; int8 ones are those of the bundle below."""
    whole = encoder()
    found = plan_of(whole, "acc", 128, 16.0)
    assert found is not None
    made = parts(whole, found)
    begins, steps = lowered = [lower_part(engine, part) for part in made]
    # What is saved, to the multiplication: the layers see 80 samples in place of 128.
    convolutions, token = 64 * 8 * 27 + 32 * 12 * 40 + 16 * 16 * 60, 16 * 16
    assert begins.program.operations == convolutions + token
    assert steps.program.operations == convolutions * 80 // 128 + token
    assert not steps.program.outside
    load = get_engine(engine).load
    begin, go_on = (
        load(program.data, part.signature.inputs, part.signature.outputs)
        for program, part in zip(lowered, made, strict=True)
    )
    signal = torch.randn(1, 3, 128 + 12 * 16).numpy()
    state = begin({"window": signal[..., :128].copy()})[NEXT_STATE]
    for hop in range(1, 13):
        window = signal[..., 16 * hop : 16 * hop + 128].copy()
        ends = np.concatenate([window[..., : found.head], window[..., 128 - found.tail :]], axis=2)
        stepped, wanted = go_on({"window": ends, STATE: state}), begin({"window": window})
        state = stepped[NEXT_STATE]
        np.testing.assert_allclose(stepped["token"], wanted["token"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(state, wanted[NEXT_STATE], rtol=0, atol=1e-5)
        with torch.no_grad():
            np.testing.assert_allclose(stepped["token"], whole(torch.from_numpy(window)), rtol=0, atol=1e-5)
    begin.close()
    go_on.close()


def test_there_are_no_steps_in_dynamic_int8() -> None:
    whole = encoder()
    found = plan_of(whole, "acc", 128, 16.0)
    assert found is not None
    with pytest.raises(ExportError, match="take int8, fp16 or fp32"):
        parts(whole, found, "dynamic")


# ------------------------------------------------------------------------------------------------ a whole bundle


@dataclasses.dataclass(frozen=True)
class Made:
    report: ExportReport
    bundle: Bundle
    file: Path
    key: Path
    material: Trained


@pytest.fixture(scope="module")
def made(material: Trained, student: ArmletModel, work: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An export with steps for the accelerometer's encoder alone; its training is found in ``student``'s checkpoint."""
    folder, key = tmp_path_factory.mktemp("incremental"), Ed25519PrivateKey.generate()
    shutil.copy(work / "qat.pt", folder)
    acc = material.description.modalities[0]
    steps = plans(material.model.encoders, (acc,), material.description.window)
    description = dataclasses.replace(material.description, steps=steps)
    with_steps = dataclasses.replace(material, description=description)
    report = export_model(with_steps, ENGINES, key, folder, folder / "made.armlet", Recorder())
    (folder / "key.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    bundle = open_bundle(folder / "made.armlet", trusted_keys([folder / "key.pub"]))
    return Made(report, bundle, folder / "made.armlet", folder / "key.pub", with_steps)


def test_a_bundle_holds_steps_for_every_engine(made: Made) -> None:
    manifest = made.bundle.manifest
    parts = ["acc", "gyro", "aggregator", "step acc"]
    assert [(row.engine, row.part) for row in made.report.programs] == [(e, p) for e in ENGINES for p in parts]
    for engine in ENGINES:
        step = manifest.engines[engine].steps["acc"]
        # Kernels of 5 and 3, strides of 2 and 2: a column sees 9 samples, and a hop is 4 columns.
        assert (step.hop, step.head + step.tail, step.rests_on) == (16, 32, (16, 61))
        assert step.program.inputs == {"window": (1, 3, 32), "state": (1, 12, 1, 10)}
        assert step.program.precision == "int8"
        assert step.program.member == f"{engine}/step_acc.{BACKENDS[engine].suffix}"
    macs = {row.part: row.operations for row in made.report.programs if row.engine == "litert"}
    assert macs["step acc"] < 0.6 * macs["acc"]
    assert {report.steps for report in made.report.proofs} == {0.0}  # int8: the very same numbers


@pytest.mark.parametrize("engine", ENGINES)
def test_golden_runs_look_at_steps(made: Made, engine: str) -> None:
    model = BundleModel.from_bundle(made.bundle, engine)
    result = run_golden(model, made.bundle.read)
    model.close()
    assert result.passed and result.steps == 0.0


def test_a_step_program_that_goes_wrong_after_some_hops_is_refused(made: Made, tmp_path: Path) -> None:
    """Its state is off by one column: its first token is right, as the state before came from a whole window."""
    description, plan = made.material.description, made.material.description.steps["acc"]
    wrong = dataclasses.replace(plan, moved=plan.moved - 1)
    part = Part(made.material.model.encoders["acc"], description.signature("acc"), "fp32")
    member = made.bundle.manifest.engines["onnx"].steps["acc"].program.member
    replaced = {member: lower_part("onnx", step(part, wrong, description.signature("step acc"))).data}
    right = {member: lower_part("onnx", step(part, plan, description.signature("step acc"))).data}
    for name in made.bundle.sizes:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(replaced.get(name) or made.bundle.read(name))
    with pytest.raises(ExportError, match="failed robustness checks: step programs give the scores of whole windows"):
        run_engine(tmp_path, {name: array[:4] for name, array in made.material.validation.windows.items()}, "onnx")
    model = BundleModel(made.bundle.manifest, lambda name: replaced.get(name) or made.bundle.read(name), "onnx")
    result = run_golden(model, made.bundle.read)
    assert not result.passed and result.max_difference <= result.tolerance and result.failed == (STEPS_HOLD,)
    model.close()
    # One in float beside an encoder in int8 is off by the rounding alone, and is refused as well.
    model = BundleModel(made.bundle.manifest, lambda name: right.get(name) or made.bundle.read(name), "onnx")
    assert result.steps is not None
    assert 1e-5 < (step_difference(model, golden_windows(made.bundle.manifest, made.bundle.read)) or 0) < result.steps
    model.close()


def test_what_is_said_of_steps(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    operations = {(row.engine, row.part): row.operations for row in made.report.programs}
    assert {(row.engine, row.part): row.operations for row in explain_bundle(made.bundle)} == operations
    assert delegated_when_loaded(made.bundle)["step acc"] == "1 delegate"
    model = BundleModel.from_bundle(made.bundle, "litert")
    timed = cases(made.bundle, model)
    assert list(timed) == ["encoder acc", "encoder gyro", "step acc", "aggregator", "decision"]
    for window in range(6):
        timed["step acc"](window)
    assert model.stepped == 6  # each of them was a step
    model.close()
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    inspect.run(parser.parse_args([str(made.file), "--key", str(made.key)]))
    shown = capsys.readouterr().out
    assert "acc reads 32 of 64 samples a hop" in shown and "litert/step_acc.tflite" in shown


def test_live_decisions_are_those_without_steps(made: Made) -> None:
    """A signal with a gap, and another model in between: steps are taken where the samples are the same."""
    wave = np.concatenate(list(made.material.validation.windows["acc"][:12]), axis=1).T
    turn = np.concatenate(list(made.material.validation.windows["gyro"][:12]), axis=1).T

    def decisions(with_steps: bool) -> tuple[list[Decision], list[int]]:
        models = [BundleModel.from_bundle(made.bundle, "litert") for _ in range(2)]
        for model in models:
            model.steps = model.steps if with_steps else {}
        core, decided = LiveCore(models[0]), []
        for start in range(0, len(wave) - 4, 4):
            if 300 <= start < 340:  # the accelerometer's samples are lost
                continue
            times = 1_000_000_000 + (start + np.arange(4)) * 20_000_000
            for modality, values in zip(made.material.description.modalities, (wave, turn), strict=True):
                decided += core.samples(int(times[-1]), modality, times, values[start : start + 4])
            if start == 500:
                core.become(models[1])
        return decided, [model.stepped for model in models]

    stepped, counts = decisions(True)
    whole, none = decisions(False)
    assert stepped == whole and none == [0, 0]
    assert sum(decision.label is not None for decision in whole) > 30
    # 28 windows until the other model, the first of them without a step, and those in which the gap lies at first.
    assert counts[0] > 10 and counts[1] > 8


def test_what_is_carried_is_used_for_the_same_samples_only(made: Made) -> None:
    model = BundleModel.from_bundle(made.bundle, "litert")
    signal = made.material.description.normalisation["acc"].undo(
        np.concatenate(list(made.material.validation.windows["acc"][:3]), axis=1)
    )
    first, later = signal[:, :64], signal[:, 16:80]
    _, carried = model.encode_next("acc", first, None)
    assert carried is not None and model.stepped == 0
    token, _ = model.encode_next("acc", later, carried)
    assert model.stepped == 1
    np.testing.assert_array_equal(token, model.encode("acc", later))
    one_off = later.copy()
    one_off[1, 20] = np.nextafter(one_off[1, 20], np.float32(np.inf))
    for window in (first, signal[:, 32:96], one_off):
        token, _ = model.encode_next("acc", window, carried)
        np.testing.assert_array_equal(token, model.encode("acc", window))
    assert model.stepped == 1
    other, nothing = model.encode_next("gyro", later[:2], None)
    assert nothing is None
    np.testing.assert_array_equal(other, model.encode("gyro", later[:2]))
    later = later.copy()
    later[0, 63] = np.inf
    with pytest.raises(NotANumberError):
        model.encode_next("acc", later, carried)
    with pytest.raises(DataError, match="must have the shape"):
        model.encode_next("acc", later[:, :63], carried)
    model.close()
