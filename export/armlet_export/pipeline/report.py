"""The report of an export: what was made, and what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import msgspec

from armlet_runtime.arrays import Float32
from armlet_runtime.bundle import Certificate
from armlet_runtime.checks import ProofReport
from armlet_train.recipes import QatRecipe

from ..backends import LoweredPart
from ..proof import GateRow
from ..quantise import EpochReport
from .signed import Bundle


class ProgramReport(msgspec.Struct, frozen=True):
    """One program: where it lies in the bundle, and what was read from its file.

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


def make_report(bundle: Bundle, seconds: Mapping[str, float]) -> ExportReport:
    """The report of a finished bundle; ``seconds``: stage to how long it took."""
    proven = bundle.proven
    lowered = proven.lowered
    proofs = proven.gate.proofs
    engines = proven.draft.manifest.engines
    return ExportReport(
        bundle=str(bundle.path),
        bytes=bundle.bytes,
        digest=bundle.digest,
        key_id=bundle.key_id,
        programs=tuple(
            program_report(engine, part, engines[engine].by_part[part].member, program)
            for engine, programs in lowered.programs.items()
            for part, program in programs.items()
        ),
        epochs=lowered.quantised.epochs,
        gate=proven.gate.rows,
        recipe=lowered.quantised.trained.qat,
        precision=lowered.precision,
        logit_step=lowered.logit_step,
        engines_agree=engines_agree({engine: proof.logits for engine, proof in proofs.items()}),
        certificate=proven.certificate,
        proofs=tuple(proof.report for proof in proofs.values()),
        seconds=dict(seconds),
    )


def program_report(engine: str, part: str, member: str, lowered: LoweredPart) -> ProgramReport:
    """The figures of one program's file."""
    program = lowered.program
    return ProgramReport(
        engine=engine,
        part=part,
        member=member,
        bytes=len(lowered.data),
        precision=lowered.precision,
        int8_weight_share=program.int8_weight_share,
        delegates=program.delegates,
        operators=program.operators,
        outside=program.outside,
        operations=program.operations,
        live_bytes=program.live_bytes,
        planned_bytes=program.planned_bytes,
    )


def engines_agree(logits: Mapping[str, Float32]) -> dict[str, float]:
    """Each two engines to their smallest agreement over the subsets; logits: (subsets, n, labels)."""
    labels = {engine: array.argmax(2) for engine, array in logits.items()}
    return {
        f"{first}, {second}": float((labels[first] == labels[second]).mean(axis=1).min())
        for first, second in itertools.combinations(labels, 2)
    }
