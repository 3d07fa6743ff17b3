"""The export: a trained float model becomes a signed bundle, and nothing is written before all of it was proven.

Quantisation-aware training, lowering for each engine, a draft, the gate on validation people in processes without
torch, golden outputs and certificate from those same runs, the bundle, and a last run of the finished bundle.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray

from armlet_runtime.bundle import write_bundle
from armlet_runtime.errors import ExportError
from armlet_runtime.files import write_atomic
from armlet_runtime.golden import FLOAT_TOLERANCE
from armlet_runtime.keys import key_id
from armlet_runtime.manifest import Certificate
from armlet_runtime.prove import ProofReport
from armlet_train.batches import Labelled
from armlet_train.data import Scored
from armlet_train.finetune import all_logits
from armlet_train.models import ArmletModel
from armlet_train.recipes import QatRecipe

from . import lower
from .assemble import SUFFIX, Description, Draft, draft
from .certificate import certificate
from .gate import Float32, GateRow, Proof, check, compare, run_engine
from .graphs import AGGREGATOR
from .qat import EpochReport, prepare_model, prepared_part, train
from .quantise import layer_ranges

GOLDEN_PER_LABEL = 2
"""Golden windows of each label: enough that every label and both ends of every subset are seen, and quick to run."""


class Progress(Protocol):
    """Where the export says how far it is."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """A stage of ``total`` steps; the function in the block is called after each."""

    def note(self, text: str) -> None:
        """One line about what was found."""


@dataclass(frozen=True)
class Material:
    """What an export starts from.

    Attributes:
        model: Float model in evaluation, without batch normalisation.
        description: What the bundle will say of it.
        batches: Epoch number to training batches, always the same ones for the same number.
        batch_count: Batches in an epoch.
        validation: People on whom epochs are selected and the gate measures.
        certify: People of the certificate; usually the same.
        certify_name: What the certificate calls them, such as ``hapt validation``.
        qat: How to train, and what int8 may cost.
    """

    model: ArmletModel
    description: Description
    batches: Callable[[int], Iterator[Labelled]]
    batch_count: int
    validation: Scored
    certify: Scored
    certify_name: str
    qat: QatRecipe


class ProgramReport(msgspec.Struct, frozen=True):
    """One program: where it lies in the bundle, and what was seen in its file."""

    engine: str
    part: str
    member: str
    bytes: int
    precision: str
    int8_weight_share: float
    delegates: int | None
    operators: dict[str, int]


class ExportReport(msgspec.Struct, frozen=True):
    """What ``armlet export --json`` writes."""

    bundle: str
    bytes: int
    digest: str
    key_id: str
    programs: tuple[ProgramReport, ...]
    epochs: tuple[EpochReport, ...]
    gate: tuple[GateRow, ...]
    recipe: QatRecipe
    logit_step: float
    certificate: Certificate
    proofs: tuple[ProofReport, ...]
    seconds: dict[str, float]


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def export_model(
    material: Material, engines: Sequence[str], key: Ed25519PrivateKey, work: Path, out: Path, progress: Progress
) -> ExportReport:
    """Make, prove and sign a bundle.

    Args:
        material: What to export.
        engines: Some of :data:`armlet_export.assemble.SUFFIX`.
        key: Signing key.
        work: Folder for the checkpoint; a second call goes on from it.
        out: The bundle; written last, and only if everything held.
        progress: Where to say how far it is.

    Raises:
        ExportError: A program could not be made, or failed its proof.
    """
    clock = _Clock()
    unknown = [engine for engine in engines if engine not in SUFFIX]
    if unknown or not engines:
        raise ExportError(
            f"there are no programs for {', '.join(unknown) or 'no engine'}; choose of {', '.join(SUFFIX)}"
        )
    with clock.time("qat"):
        student, epochs = _quantise(material, work, progress)
    logit_step = layer_ranges(prepared_part(student, AGGREGATOR))[-1].output.scale

    programs: dict[str, dict[str, lower.Lowered]] = {}
    for engine in (engine for engine in SUFFIX if engine in engines):
        with (
            clock.time(f"lower {engine}"),
            progress.stage(f"Lower for {engine}", len(material.description.parts)) as step,
        ):
            programs[engine] = {}
            for part in material.description.parts:
                programs[engine][part] = _lower(engine, part, material, student)
                step()

    made = draft(material.description, programs, material.model.mask_tokens.detach().numpy())
    with tempfile.TemporaryDirectory(dir=work) as folder:
        made.write(Path(folder))
        rows, proofs = _gate(material, made, Path(folder), student, logit_step, clock, progress)
        measured, golden, golden_logits = _measure(material, made, Path(folder), student, rows, proofs, clock, progress)
        made.add_proofs(golden, golden_logits, measured)
        with clock.time("sign"):
            finished, public = Path(folder) / "finished.armlet", Path(folder) / "signer.pub"
            digest = write_bundle(finished, made.manifest, made.members, [key])
            public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        with clock.time("last run"), progress.stage("Run the finished bundle", len(programs)) as step:
            for engine in programs:
                _last_run(finished, public, engine, golden, golden_logits[engine])
                step()
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, finished.read_bytes())

    return ExportReport(
        bundle=str(out),
        bytes=out.stat().st_size,
        digest=digest,
        key_id=key_id(key.public_key()),
        programs=tuple(_program_reports(made, programs)),
        epochs=tuple(epochs),
        gate=tuple(rows),
        recipe=material.qat,
        logit_step=logit_step,
        certificate=measured,
        proofs=tuple(proof.report for proof in proofs.values()),
        seconds=clock.seconds,
    )


def _quantise(material: Material, work: Path, progress: Progress) -> tuple[ArmletModel, list[EpochReport]]:
    parts = material.description.parts
    student = prepare_model(material.model, {part: material.description.signature(part).example() for part in parts})
    epochs: list[EpochReport] = []

    def report(epoch: EpochReport) -> None:
        epochs.append(epoch)
        scores = ", ".join(f"{score:.3f}" for score in epoch.macro_f1)
        nearest = ", nearest so far" if epoch.best else ""
        progress.note(
            f"epoch {epoch.epoch + 1}: loss {epoch.loss:.4f}; validation: divergence {epoch.divergence:.4f}{nearest}; "
            f"macro-F1 {scores}"
        )

    with progress.stage("Quantisation-aware training", material.qat.epochs * material.batch_count) as advance:
        train(
            material.model,
            student,
            material.qat,
            material.batches,
            material.batch_count,
            material.validation,
            work,
            report,
            advance,
        )
    return student, epochs


def _lower(engine: str, part: str, material: Material, student: ArmletModel) -> lower.Lowered:
    signature = material.description.signature(part)
    module = material.model.aggregator if part == AGGREGATOR else material.model.encoders[part]
    try:
        if engine == "executorch":
            return lower.to_executorch(prepared_part(student, part), signature)
        if engine == "litert":
            return lower.to_litert(module, prepared_part(student, part), signature)
        return lower.to_onnx(module, signature)
    except ExportError as error:
        raise ExportError(f"{part} for {engine}: {error}") from error


def _gate(
    material: Material,
    made: Draft,
    folder: Path,
    student: ArmletModel,
    logit_step: float,
    clock: _Clock,
    progress: Progress,
) -> tuple[list[GateRow], dict[str, Proof]]:
    people = material.validation
    rows: list[GateRow] = []
    proofs: dict[str, Proof] = {}
    with clock.time("gate"), progress.stage("Prove on validation people", len(made.manifest.engines)) as step:
        float_logits, quantised = (
            all_logits(material.model, people.windows),
            all_logits(student, people.windows),
        )
        for engine in made.manifest.engines:
            proofs[engine] = run_engine(folder, people.windows, engine)
            found = _compare(made, engine, people, proofs[engine].logits, float_logits, quantised)
            check(found, material.qat, logit_step)
            rows += found
            step()
    return rows, proofs


def _compare(
    made: Draft, engine: str, people: Scored, logits: Float32, float_logits: Float32, quantised: Float32
) -> list[GateRow]:
    precision = made.manifest.engines[engine].aggregator.precision
    return compare(engine, precision, list(people.windows), people.truth, logits, float_logits, quantised)


def _measure(
    material: Material,
    made: Draft,
    folder: Path,
    student: ArmletModel,
    rows: list[GateRow],
    proofs: Mapping[str, Proof],
    clock: _Clock,
    progress: Progress,
) -> tuple[Certificate, dict[str, Float32], dict[str, Float32]]:
    """Certificate, golden windows, and each engine's logits on these."""
    people = material.certify
    if people is not material.validation:
        with clock.time("certify"), progress.stage(f"Certify on {material.certify_name}", len(proofs)) as step:
            float_logits = all_logits(material.model, people.windows)
            quantised = all_logits(student, people.windows)
            rows = []
            for engine in proofs:
                proof = run_engine(folder, people.windows, engine)
                rows += _compare(made, engine, people, proof.logits, float_logits, quantised)
                step()
    names = sorted({str(person) for person in people.people}, key=_natural)
    chosen = golden_places(material.validation.truth)
    return (
        certificate(material.certify_name, names, len(people.truth), rows),
        {name: windows[chosen] for name, windows in material.validation.windows.items()},
        {engine: proof.logits[:, chosen] for engine, proof in proofs.items()},
    )


def _natural(person: str) -> tuple[int, str]:
    return (int(person) if person.isdigit() else 0, person)


def golden_places(truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which windows become the golden ones: of each label the first and others spread evenly."""
    chosen: list[int] = []
    for label in np.unique(truth):
        places = np.flatnonzero(truth == label)
        count = min(GOLDEN_PER_LABEL, len(places))
        chosen += [int(places[index * len(places) // count]) for index in range(count)]
    return np.asarray(sorted(chosen), np.int64)


def _last_run(bundle: Path, key: Path, engine: str, golden: Mapping[str, Float32], expected: Float32) -> None:
    difference = float(np.abs(run_engine(bundle, golden, engine, key).logits - expected).max())
    if not difference <= FLOAT_TOLERANCE:
        raise ExportError(f"the finished bundle gives other logits on {engine} than its draft, by {difference:.2g}")


def _program_reports(made: Draft, programs: Mapping[str, Mapping[str, lower.Lowered]]) -> Iterator[ProgramReport]:
    for engine, lowered in programs.items():
        refs = made.manifest.engines[engine]
        for part, program in lowered.items():
            yield ProgramReport(
                engine=engine,
                part=part,
                member=(refs.aggregator if part == AGGREGATOR else refs.encoders[part]).member,
                bytes=len(program.data),
                precision=program.precision,
                int8_weight_share=program.int8_weight_share,
                delegates=program.delegates,
                operators=program.operators,
            )
