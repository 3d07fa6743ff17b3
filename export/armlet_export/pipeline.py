"""The export: a trained float model becomes a signed bundle, and nothing is written before all of it was proven.

Quantisation-aware training, lowering for each engine, a draft, the gate on validation people in processes without
torch, golden outputs and certificate from those same runs, the bundle, and a last run of the finished bundle.
"""

from __future__ import annotations

import itertools
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

from armlet_runtime.arrays import Float32
from armlet_runtime.bundle import AGGREGATOR, Certificate, ProgramRow, key_id, write_bundle
from armlet_runtime.checks import ProofReport
from armlet_runtime.errors import ExportError
from armlet_runtime.files import write_atomic
from armlet_runtime.model import FLOAT_TOLERANCE
from armlet_train.data import Labelled, Scored
from armlet_train.engine import all_logits
from armlet_train.models import ArmletModel
from armlet_train.recipes import QatRecipe

from . import choose_precision as precision_of_parts
from . import streaming as incremental
from .backends import BACKENDS, Lowered, Part, lower_part
from .bundle import Description, Draft, make_draft
from .proof import GateRow, Proof, check, compare, make_certificate, program_rows, run_engine
from .proof import calibration as calibrate
from .quantise import EpochReport, output_range, prepare_model, train

GOLDEN_PER_LABEL = 2
"""Golden windows of each label: enough that every label and both ends of every subset are seen, and quick to run."""

BANK_PER_LABEL = 128
"""Windows of each label that new classes are held against on the board. With half as many, an enrolled class takes
twice as many windows of old classes (HAPT's validation people)."""


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
        precision: Part to one of :data:`armlet_export.backends.PRECISIONS`, or ``auto`` for all.
        max_auto_loss: What ``auto`` may lose in macro-F1 in any subset on validation people.
        batches: Epoch number to training batches, always the same ones for the same number.
        batch_count: Batches in an epoch.
        validation: People on whom epochs are selected and the gate measures.
        certify: People of the certificate; usually the same.
        certify_name: What the certificate calls them, such as ``hapt validation``.
        qat: How to train, and what rounding may cost.
        max_unknown: Share of right decisions on validation people that may become unknown; 0 for none.
    """

    model: ArmletModel
    description: Description
    precision: Mapping[str, str]
    max_auto_loss: float
    batches: Callable[[int], Iterator[Labelled]]
    batch_count: int
    validation: Scored
    certify: Scored
    certify_name: str
    qat: QatRecipe
    max_unknown: float = 0.0


class ProgramReport(msgspec.Struct, frozen=True):
    """One program: where it lies in the bundle, and what was seen in its file.

    Attributes:
        operators: Operator to how often it occurs inside the delegate.
        outside: Operator outside of the delegate to why it is there.
        operations: Multiplications with additions of one run.
        live_bytes: Largest sum of activations that must be kept at once.
        planned_bytes: Memory that the file plans for, ``.pte`` only; the delegate's own comes on top.
    """

    engine: str
    part: str
    member: str
    bytes: int
    precision: str
    int8_weight_share: float
    delegates: int | None
    operators: dict[str, int]
    outside: dict[str, str]
    operations: int
    live_bytes: int
    planned_bytes: int | None


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
    precision: dict[str, str]
    """Part to what it was lowered in."""
    logit_step: float
    engines_agree: dict[str, float]
    """Two engines to the share of validation windows with the same arg max, in the subset where it is smallest."""
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
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)


def export_model(
    material: Material, engines: Sequence[str], key: Ed25519PrivateKey, work: Path, out: Path, progress: Progress
) -> ExportReport:
    """Make, prove and sign a bundle.

    Args:
        material: What to export.
        engines: Some of :data:`armlet_export.backends.BACKENDS`.
        key: Signing key.
        work: Folder for the checkpoint; a second call goes on from it.
        out: The bundle; written last, and only if everything held.
        progress: Where to say how far it is.

    Raises:
        ExportError: A program could not be made, or failed its proof.
    """
    clock = _Clock()
    unknown = [engine for engine in engines if engine not in BACKENDS]
    if unknown or not engines:
        raise ExportError(
            f"there are no programs for {', '.join(unknown) or 'no engine'}; choose of {', '.join(BACKENDS)}"
        )
    people = material.validation
    floats = all_logits(material.model, people.windows)
    with clock.time("qat"):
        student, epochs = _quantise(material, floats, work, progress)

    programs: dict[str, dict[str, Lowered]] = {}
    wanted = [engine for engine in BACKENDS if engine in engines]
    lowered = _Lowering(material, student, clock)
    precision = _precision(material, lowered, wanted, progress)
    parts = {name: lowered.part(name, kind) for name, kind in precision.items()}
    simulated = precision_of_parts.simulated(material.model, parts)
    quantised = all_logits(simulated, people.windows)
    logit_step = _logit_step(parts[AGGREGATOR], quantised)
    for engine in wanted:
        kinds = precision | {step: precision[name] for step, name in material.description.step_parts.items()}
        with progress.stage(f"Lower for {engine}", len(kinds)) as step:
            programs[engine] = {}
            for name, kind in kinds.items():
                programs[engine][name] = lowered(engine, name, kind)
                step()

    made = make_draft(material.description, programs, material.model.mask_tokens.detach().numpy(), logit_step)
    references = _References(material.model, simulated, precision, logit_step)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        made.write(Path(folder))
        measured = _Measured()
        with clock.time("gate"), progress.stage("Prove on validation people", len(wanted)) as step:
            for engine in wanted:
                rows = measured.add(references, Path(folder), engine, people, floats, quantised)
                check(rows, material.qat, logit_step)
                step()
        certified = measured
        if material.certify is not people:
            certified = _Measured()
            with clock.time("certify"), progress.stage(f"Certify on {material.certify_name}", len(wanted)) as step:
                others = [all_logits(model, material.certify.windows) for model in (material.model, simulated)]
                for engine in wanted:
                    certified.add(references, Path(folder), engine, material.certify, *others)
                    step()
        golden = {name: windows[golden_places(people.truth)] for name, windows in people.windows.items()}
        golden_logits = {
            engine: proof.logits[:, golden_places(people.truth)] for engine, proof in measured.proofs.items()
        }
        modalities = list(people.windows)
        confidence = calibrate.fit(
            modalities, people, [proof.logits for proof in measured.proofs.values()], material.max_unknown
        )
        made.manifest = msgspec.structs.replace(made.manifest, confidence=confidence)
        made.add_bank(bank(people, measured.proofs[wanted[0]].tokens))
        calibrations = {
            engine: calibrate.measure(modalities, material.certify, proof.logits, confidence, certified is measured)
            for engine, proof in certified.proofs.items()
        }
        quality = make_certificate(
            material.certify_name,
            sorted({str(person) for person in material.certify.people}, key=_natural),
            len(material.certify.truth),
            certified.rows,
            certified.programs,
            made.manifest.made_with
            | {f"{engine} here": proof.report.version for engine, proof in measured.proofs.items()},
            calibrations,
            calibrate.LEAVE_ONE_OUT if certified is measured else calibrate.FITTED_ELSEWHERE,
        )
        made.add_proofs(golden, golden_logits, quality)
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
        gate=tuple(measured.rows),
        recipe=material.qat,
        precision=precision,
        logit_step=logit_step,
        engines_agree=engines_agree({engine: proof.logits for engine, proof in measured.proofs.items()}),
        certificate=quality,
        proofs=tuple(proof.report for proof in measured.proofs.values()),
        seconds=clock.seconds,
    )


def _quantise(
    material: Material, floats: Float32, work: Path, progress: Progress
) -> tuple[ArmletModel, list[EpochReport]]:
    """The student, trained if a part of it is to be int8, or may become so."""
    parts = [name for name, kind in material.precision.items() if kind in ("int8", precision_of_parts.AUTO)]
    student = prepare_model(material.model, {part: material.description.signature(part).example() for part in parts})
    epochs: list[EpochReport] = []
    if not parts:
        return student, epochs

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
            floats,
            work,
            report,
            advance,
        )
    return student, epochs


class _Lowering:
    """Lowers parts, each once for an engine and precision."""

    def __init__(self, material: Material, student: ArmletModel, clock: _Clock) -> None:
        self._material, self._student, self._clock = material, student, clock
        self._parts: dict[tuple[str, str], Part] = {}
        self._done: dict[tuple[str, str, str], Lowered] = {}

    def part(self, name: str, kind: str) -> Part:
        """A part of the model in a precision."""
        if (name, kind) not in self._parts:
            self._parts[name, kind] = precision_of_parts.part_of(
                self._material.model, self._student, self._material.description, name, kind
            )
        return self._parts[name, kind]

    def __call__(self, engine: str, name: str, kind: str) -> Lowered:
        """The program of a part, or of an encoder's steps.

        Raises:
            ExportError: There is none; the message names part and engine.
        """
        if (engine, name, kind) not in self._done:
            with self._clock.time(f"lower {engine}"):
                try:
                    self._done[engine, name, kind] = lower_part(
                        engine, program_part(self.part, self._material.description, name, kind)
                    )
                except ExportError as error:
                    raise ExportError(f"{name} for {engine}: {error}") from error
        return self._done[engine, name, kind]


def program_part(make: Callable[[str, str], Part], description: Description, name: str, kind: str) -> Part:
    """What a program is made of: a part as it was trained, or what makes an encoder incremental.

    Args:
        make: Part name and precision to part.
        description: Of the model.
        name: A part, or one of :attr:`Description.step_parts`.
        kind: The precision.

    Raises:
        ExportError: There are no incremental encoders of that precision.
    """
    modality = description.step_parts.get(name, name)
    part, plan = make(modality, kind), description.steps.get(modality)
    if plan is None:
        return part
    build = incremental.windowed if name == modality else incremental.step
    return build(part, plan, description.signature(name))


def _precision(material: Material, lowered: _Lowering, engines: Sequence[str], progress: Progress) -> dict[str, str]:
    """Part to precision, those of ``auto`` chosen."""
    if precision_of_parts.AUTO not in material.precision.values():
        return dict(material.precision)

    def possible(name: str, kind: str) -> str | None:
        try:
            for engine in engines:
                lowered(engine, name, kind)
        except ExportError as error:
            return str(error)
        return None

    chosen = precision_of_parts.choose(
        lowered.part, material.model, material.description.parts, material.validation, material.max_auto_loss, possible
    )
    told = ", ".join(f"{name} {kind}" for name, kind in chosen.items())
    progress.note(f"smallest that loses at most {100 * material.max_auto_loss:g} points of macro-F1: {told}")
    return chosen


def _logit_step(aggregator: Part, logits: Float32) -> float:
    """The step in which the logits are rounded; where they are not, what one in int8 would be."""
    trained = output_range(aggregator.prepared) if aggregator.prepared is not None else None
    return trained.scale if trained is not None else float(np.ptp(logits)) / 255


@dataclass(frozen=True)
class _References:
    """What programs are held against."""

    model: ArmletModel
    simulated: ArmletModel
    precision: Mapping[str, str]
    logit_step: float

    @property
    def kind(self) -> str:
        """The precision of all parts, or ``mixed``."""
        kinds = set(self.precision.values())
        return kinds.pop() if len(kinds) == 1 else "mixed"


@dataclass
class _Measured:
    """What was measured on one set of people."""

    rows: list[GateRow] = field(default_factory=list)
    programs: list[ProgramRow] = field(default_factory=list)
    proofs: dict[str, Proof] = field(default_factory=dict)

    def add(
        self, references: _References, draft: Path, engine: str, people: Scored, floats: Float32, quantised: Float32
    ) -> list[GateRow]:
        """Run an engine, and compare: its rows."""
        proof = self.proofs[engine] = run_engine(draft, people.windows, engine)
        rows = compare(engine, references.kind, list(people.windows), people, proof.logits, floats, quantised)
        self.rows += rows
        self.programs += program_rows(engine, references.precision, people.windows, proof, references.simulated)
        return rows


def engines_agree(logits: Mapping[str, Float32]) -> dict[str, float]:
    """Each two engines to their smallest agreement over the subsets; logits: (subsets, n, labels)."""
    labels = {engine: array.argmax(2) for engine, array in logits.items()}
    return {
        f"{one}, {other}": float((labels[one] == labels[other]).mean(axis=1).min())
        for one, other in itertools.combinations(labels, 2)
    }


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


def bank(people: Scored, tokens: Mapping[str, Float32]) -> Float32:
    """(windows, modalities * token_dim) tokens of up to :data:`BANK_PER_LABEL` windows of each label.

    Of windows with all modalities, spread evenly over the people.

    Args:
        people: Validation people.
        tokens: Modality name to (n, token_dim), in the model's order.
    """
    whole = people.present.all(axis=1)
    chosen: list[NDArray[np.int64]] = []
    for label in np.unique(people.truth):
        places = np.flatnonzero((people.truth == label) & whole)
        count = min(BANK_PER_LABEL, len(places))
        chosen.append(places[np.arange(count) * len(places) // max(count, 1)])
    rows = np.concatenate(chosen)
    return np.concatenate([array[rows] for array in tokens.values()], axis=1)


def _last_run(bundle: Path, key: Path, engine: str, golden: Mapping[str, Float32], expected: Float32) -> None:
    difference = float(np.abs(run_engine(bundle, golden, engine, key).logits - expected).max())
    if not difference <= FLOAT_TOLERANCE:
        raise ExportError(f"the finished bundle gives other logits on {engine} than its draft, by {difference:.2g}")


def _program_reports(made: Draft, programs: Mapping[str, Mapping[str, Lowered]]) -> Iterator[ProgramReport]:
    for engine, lowered in programs.items():
        refs = made.manifest.engines[engine].by_part
        for part, program in lowered.items():
            yield program_report(engine, part, refs[part].member, program)


def program_report(engine: str, part: str, member: str, lowered: Lowered) -> ProgramReport:
    """What was seen in one program's file."""
    seen = lowered.program
    return ProgramReport(
        engine=engine,
        part=part,
        member=member,
        bytes=len(lowered.data),
        precision=lowered.precision,
        int8_weight_share=seen.int8_weight_share,
        delegates=seen.delegates,
        operators=seen.operators,
        outside=seen.outside,
        operations=seen.operations,
        live_bytes=seen.live_bytes,
        planned_bytes=seen.planned_bytes,
    )
