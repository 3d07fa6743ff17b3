"""The fourth stage: programs that ran in processes without torch, with what was measured on them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.arrays import Float32
from armlet_runtime.bundle import Certificate, Confidence, ProgramRow
from armlet_train.data import Scored

from ..bundle import Draft
from ..proof import GateRow, Proof, Reference, calibration, check, compare, make_certificate, program_rows, run_engine
from .lowered import Lowered
from .trained import Journal

GOLDEN_PER_LABEL = 2
"""Golden windows of each label: enough that every label and both ends of every subset are seen, and quick to run."""

BANK_PER_LABEL = 128
"""Windows of each label that new classes are held against on the board. With half as many, an enrolled class takes
twice as many windows of old classes (HAPT's validation people)."""


@dataclass(frozen=True)
class Measured:
    """Figures of one group of people.

    Attributes:
        rows: Of all engines and subsets.
        programs: Of all engines and parts.
        proofs: Engine to its own answers.
    """

    rows: tuple[GateRow, ...]
    programs: tuple[ProgramRow, ...]
    proofs: dict[str, Proof]


@dataclass(frozen=True)
class Proven:
    """A draft whose programs passed the gate.

    Attributes:
        lowered: The stage before.
        gate: Measured on validation people.
        certificate: Of the certificate's people.
        golden: Modality name to golden windows (n, channels, samples), normalised.
        golden_logits: Engine to its own logits on them, (subsets, n, labels).
        draft: The bundle, complete but for the signature.
    """

    lowered: Lowered
    gate: Measured
    certificate: Certificate
    golden: dict[str, Float32]
    golden_logits: dict[str, Float32]
    draft: Draft


def prove(lowered: Lowered, work: Path, journal: Journal) -> Proven:
    """Run every program in a fresh process without torch, hold it against PyTorch, and certify it.

    Args:
        lowered: The stage before.
        work: Folder for what the processes read.
        journal: Gets the seconds.

    Raises:
        ExportError: A program failed; the message names engine and subset.
    """
    trained = lowered.quantised.trained
    with tempfile.TemporaryDirectory(dir=work) as folder:
        lowered.draft.write(Path(folder))
        with journal.time("gate"):
            gate = _measure(
                lowered, Path(folder), lowered.quantised.validation, journal, "Prove on validation people",
                lambda rows: check(rows, trained.qat, lowered.logit_step),
            )  # fmt: skip
        certified = gate
        if trained.certify is not trained.validation:
            with journal.time("certify"):
                others, title = Reference(trained.model, trained.certify), f"Certify on {trained.certify_name}"
                certified = _measure(lowered, Path(folder), others, journal, title, lambda rows: None)
    people = trained.validation
    places = golden_places(people.truth)
    golden = {name: windows[places] for name, windows in people.windows.items()}
    golden_logits = {engine: proof.logits[:, places] for engine, proof in gate.proofs.items()}
    confidence = calibration.fit(
        list(people.windows), people, [proof.logits for proof in gate.proofs.values()], trained.max_unknown
    )
    certificate = _certificate(lowered, gate, certified, confidence)
    tokens = next(iter(gate.proofs.values())).tokens
    draft = (
        lowered.draft.with_confidence(confidence)
        .with_bank(bank(people, tokens))
        .with_proofs(golden, golden_logits, certificate)
    )
    return Proven(lowered, gate, certificate, golden, golden_logits, draft)


def _measure(
    lowered: Lowered,
    draft: Path,
    reference: Reference,
    journal: Journal,
    title: str,
    gate: Callable[[list[GateRow]], None],
) -> Measured:
    """Run all engines on the reference's windows; ``gate`` sees the rows of each engine before the next runs."""
    precision, parts = lowered.precision, lowered.parts
    kinds = set(precision.values())
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    people = reference.people
    rows: list[GateRow] = []
    programs: list[ProgramRow] = []
    proofs: dict[str, Proof] = {}
    with journal.progress.stage(title, len(lowered.programs)) as advance:
        for engine in lowered.programs:
            proof = proofs[engine] = run_engine(draft, people.windows, engine)
            float_logits, simulated_logits = reference.float_logits, reference.simulated_logits(parts)
            new = compare(engine, kind, list(people.windows), people, proof.logits, float_logits, simulated_logits)
            gate(new)
            rows += new
            programs += program_rows(engine, parts, proof, reference)
            advance()
    return Measured(tuple(rows), tuple(programs), proofs)


def _certificate(lowered: Lowered, gate: Measured, certified: Measured, confidence: Confidence) -> Certificate:
    trained = lowered.quantised.trained
    people = trained.certify
    same_people = certified is gate
    versions = {f"{engine} here": proof.report.version for engine, proof in gate.proofs.items()}
    return make_certificate(
        trained.certify_name,
        sorted({str(person) for person in people.people}, key=_natural),
        len(people.truth),
        certified.rows,
        certified.programs,
        lowered.draft.manifest.made_with | versions,
        {
            engine: calibration.measure(list(people.windows), people, proof.logits, confidence, same_people)
            for engine, proof in certified.proofs.items()
        },
        calibration.LEAVE_ONE_OUT if same_people else calibration.FITTED_ELSEWHERE,
    )


def _natural(person: str) -> tuple[int, str]:
    return (int(person) if person.isdigit() else 0, person)


def golden_places(truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the golden windows: of each label the first, and others spread evenly."""
    chosen: list[int] = []
    for label in np.unique(truth):
        places = np.flatnonzero(truth == label)
        count = min(GOLDEN_PER_LABEL, len(places))
        chosen += [int(places[index * len(places) // count]) for index in range(count)]
    return np.asarray(sorted(chosen), np.int64)


def bank(people: Scored, tokens: dict[str, Float32]) -> Float32:
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
