"""The gate: a program counts as made once it ran.

Each engine runs the draft of a bundle in a fresh process without torch, on validation windows in every subset, and on
odd inputs (:data:`armlet_runtime.model.golden_run.ODD_INPUTS`). Its logits are compared with those of two PyTorch
models on the same windows:

- the float model, for the quality that was lost;
- the model with the rounding of its parts simulated (for int8 the fake-quantised graphs that training ended with),
  from which the programs may differ by rounding only. A wrong kernel, zero point or weight shows here even where the
  quality would hide it.

Macro-F1 and confusion matrices are the runtime's and not scikit-learn's: a board scores with the same code, and the
bootstrap sums the people's matrices a thousand times.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from armlet_runtime.arrays import Float32
from armlet_runtime.bundle import AGGREGATOR, ProgramRow
from armlet_runtime.checks import ProofReport
from armlet_runtime.errors import ExportError
from armlet_runtime.install import check_command, reason_of
from armlet_runtime.metrics import confusion_matrix, f1_per_class, macro_f1
from armlet_runtime.modalities import subset_name, subsets
from armlet_train.data import Scored
from armlet_train.recipes import QatRecipe

from ..backends import Part
from .reference import Reference

FLOAT_DISTANCE = 1e-4
"""Largest difference of a logit of an fp32 program from PyTorch: float32 sums in another order (seen: 2e-6)."""

QUANTISED_STEPS = 1.0
"""Largest mean difference of a rounded program's logits from the simulated model, in steps of the logits' scale.
PyTorch rounds sums that were made in float, an engine has exact integer sums: one step now and then (seen: 0.1)."""

DRAWS = 1000
INTERVAL = f"95 % bootstrap over people, {DRAWS} draws"
"""People, not windows, are drawn again: windows of one person are alike, and the next wearer is another person."""


class GateRow(msgspec.Struct, frozen=True):
    """One subset on one engine. Distances are differences of logits.

    ``quantised_*`` compare with the model whose rounding is simulated, the others with the float model.
    """

    engine: str
    subset: str
    precision: str
    macro_f1: float
    macro_f1_low: float
    macro_f1_high: float
    macro_f1_pytorch: float
    max_distance: float
    mean_distance: float
    rmse: float
    cosine: float
    agreement: float
    quantised_max_distance: float
    quantised_mean_distance: float
    quantised_rmse: float
    quantised_cosine: float
    quantised_agreement: float


@dataclass(frozen=True)
class Proof:
    """The answers of an engine in its own process.

    Attributes:
        logits: (subsets, n, labels).
        tokens: Modality name to (n, token_dim).
        report: Of the process, on the engine.
    """

    logits: Float32
    tokens: dict[str, Float32]
    report: ProofReport


def run_engine(source: Path, windows: Mapping[str, Float32], engine: str, key: Path | None = None) -> Proof:
    """Run a draft or bundle on an engine in a fresh process.

    Args:
        source: Draft folder, or bundle.
        windows: Modality name to (n, channels, samples), normalised.
        engine: Engine name.
        key: Public key file, for a bundle.

    Raises:
        ExportError: The process failed, or the programs failed robustness checks.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "windows.npz", Path(folder) / "logits.npz"
        np.savez(inputs, **{name: np.ascontiguousarray(array, np.float32) for name, array in windows.items()})  # type: ignore[arg-type]
        command = check_command(
            "export_proof", source, inputs, outputs, "--engine", engine, *(("--key", key) if key else ())
        )
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode != 0 or not outputs.exists():
            raise ExportError(f"the programs for {engine} failed in a process of their own: {reason_of(process)}")
        with np.load(outputs, allow_pickle=False) as result:
            report = msgspec.json.decode(str(result["report"]), type=ProofReport)
            proof = Proof(result["logits"], {name: result[f"tokens_{name}"] for name in windows}, report)
    if report.failed:
        raise ExportError(f"the programs for {engine} failed robustness checks: {'; '.join(report.failed)}")
    return proof


def compare(
    engine: str,
    precision: str,
    names: Sequence[str],
    scored: Scored,
    logits: Float32,
    float_logits: Float32,
    quantised_logits: Float32,
) -> list[GateRow]:
    """One row for each subset of which there are windows. All logits: (subsets, n, labels)."""
    classes = logits.shape[2]
    rows = []
    for place, subset in enumerate(subsets(names)):
        present = scored.having(names, subset)
        if not present.any():
            continue
        mine, reference = logits[place][present], float_logits[place][present]
        quantised = quantised_logits[place][present]
        truth = scored.truth[present]
        low, high = interval(truth, mine.argmax(1), scored.people[present], classes)
        rows.append(
            GateRow(
                engine=engine,
                subset=subset_name(subset),
                precision=precision,
                macro_f1=macro_f1(truth, mine.argmax(1), classes),
                macro_f1_low=low,
                macro_f1_high=high,
                macro_f1_pytorch=macro_f1(truth, reference.argmax(1), classes),
                max_distance=float(np.abs(mine - reference).max()),
                mean_distance=float(np.abs(mine - reference).mean()),
                rmse=rmse(mine, reference),
                cosine=cosine(mine, reference),
                agreement=float(np.mean(mine.argmax(1) == reference.argmax(1))),
                quantised_max_distance=float(np.abs(mine - quantised).max()),
                quantised_mean_distance=float(np.abs(mine - quantised).mean()),
                quantised_rmse=rmse(mine, quantised),
                quantised_cosine=cosine(mine, quantised),
                quantised_agreement=float(np.mean(mine.argmax(1) == quantised.argmax(1))),
            )
        )
    return rows


def interval(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], people: NDArray[np.str_], classes: int
) -> tuple[float, float]:
    """The interval of macro-F1 that :data:`INTERVAL` describes; the same numbers give the same interval."""
    each = np.stack(
        [
            confusion_matrix(truth[people == person], predicted[people == person], classes)
            for person in np.unique(people)
        ]
    )
    drawn = np.random.default_rng(0).multinomial(len(each), np.full(len(each), 1 / len(each)), DRAWS)
    scores = [float(np.nanmean(f1_per_class(np.tensordot(counts, each, 1)))) for counts in drawn]
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def rmse(values: Float32, reference: Float32) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64) - reference))))


def cosine(values: Float32, reference: Float32) -> float:
    """Cosine of the angle between two arrays, each seen as one vector; 1 for two that are zero."""
    first, second = values.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / length if length else float(np.array_equal(first, second))


def program_rows(engine: str, parts: Mapping[str, Part], proof: Proof, reference: Reference) -> list[ProgramRow]:
    """Each program of an engine against its own PyTorch module with the rounding simulated, on the same inputs.

    Args:
        engine: Engine name.
        parts: Part name to what its program was made of.
        proof: The engine's answers to the reference's windows.
        reference: PyTorch's answers to them.
    """
    names = list(reference.people.windows)
    tokens = reference.simulated_tokens(parts)
    rows = [_program_row(engine, name, parts[name].precision, proof.tokens[name], tokens[name]) for name in names]
    masks = reference.model.mask_tokens.detach().numpy()
    aggregator = reference.module(AGGREGATOR, parts[AGGREGATOR])
    logits = []
    with torch.no_grad():
        for subset in subsets(names):
            inputs = [
                proof.tokens[name] if name in subset else np.broadcast_to(masks[place], proof.tokens[name].shape)
                for place, name in enumerate(names)
            ]
            logits.append(aggregator(torch.from_numpy(np.concatenate(inputs, axis=1)))[0].numpy())
    simulated = np.stack(logits)
    row = _program_row(engine, AGGREGATOR, parts[AGGREGATOR].precision, proof.logits, simulated)
    agreement = float(np.mean(proof.logits.argmax(2) == simulated.argmax(2)))
    return [*rows, msgspec.structs.replace(row, agreement=agreement)]


def _program_row(engine: str, part: str, precision: str, values: Float32, reference: Float32) -> ProgramRow:
    return ProgramRow(
        engine=engine,
        part=part,
        precision=precision,
        cosine=cosine(values, reference),
        rmse=rmse(values, reference),
        max_distance=float(np.abs(values - reference).max()),
    )


def check(rows: Sequence[GateRow], recipe: QatRecipe, logit_step: float) -> None:
    """Refuse rows that break the recipe's bounds.

    Args:
        rows: From :func:`compare`.
        recipe: The bounds.
        logit_step: Step in which the logits of rounded programs go.

    Raises:
        ExportError: A row breaks a bound; the message names the first.
    """
    for row in rows:
        where = f"{row.engine} ({row.precision}), subset {row.subset}"
        if row.precision == "fp32":
            if not row.max_distance <= FLOAT_DISTANCE:
                raise ExportError(
                    f"{where}: a logit differs from PyTorch by {row.max_distance:.2g}; "
                    f"at most {FLOAT_DISTANCE:g} is allowed"
                )
            continue
        steps = row.quantised_mean_distance / logit_step
        if not steps <= QUANTISED_STEPS:
            raise ExportError(
                f"{where}: the program is not the model that was trained: its logits differ from it by {steps:.2f} "
                f"steps in the mean; at most {QUANTISED_STEPS:g} is allowed"
            )
        loss = row.macro_f1_pytorch - row.macro_f1
        if not loss <= recipe.max_f1_loss:
            raise ExportError(
                f"{where}: {row.precision} costs {100 * loss:.2f} points of macro-F1; at most "
                f"{100 * recipe.max_f1_loss:g} are allowed: train longer with [qat] epochs in the recipe, or use "
                "--precision auto"
            )
        if not row.agreement >= recipe.min_agreement:
            raise ExportError(
                f"{where}: {row.precision} decides as the float model on {row.agreement:.2%} of the windows; at least "
                f"{recipe.min_agreement:.2%} are required: train longer with [qat] epochs in the recipe, or use "
                "--precision auto"
            )
