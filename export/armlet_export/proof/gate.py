"""The gate: a program exists when it ran (rule 1 of the house).

Each engine runs the draft of a bundle in a fresh process without torch, on validation windows in every subset, and on
odd inputs (:data:`armlet_runtime.model.golden_run.ODD_INPUTS`). It is held against two PyTorch models on the same
windows:

- the float model, which says what quality was lost;
- the model with the rounding of its parts simulated (for int8 the fake-quantised one that training ended with): there
  the programs may differ by rounding only. A wrong kernel, zero point or weight shows here even where the quality would
  hide it.
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
from armlet_train.models import ArmletModel
from armlet_train.recipes import QatRecipe

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
    """What an engine gave in its own process, and what it said of itself.

    Attributes:
        logits: (subsets, n, labels).
        tokens: Modality name to (n, token_dim).
        report: Of the process.
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
        given, got = Path(folder) / "windows.npz", Path(folder) / "logits.npz"
        np.savez(given, **{name: np.ascontiguousarray(array, np.float32) for name, array in windows.items()})  # type: ignore[arg-type]
        command = check_command(
            "export_proof", source, given, got, "--engine", engine, *(("--key", key) if key else ())
        )
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0 or not got.exists():
            raise ExportError(f"the programs for {engine} failed in a process of their own: {reason_of(done)}")
        with np.load(got, allow_pickle=False) as result:
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
        there = scored.having(names, subset)
        if not there.any():
            continue
        mine, reference, quantised = logits[place][there], float_logits[place][there], quantised_logits[place][there]
        truth = scored.truth[there]
        low, high = interval(truth, mine.argmax(1), scored.people[there], classes)
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


def rmse(mine: Float32, reference: Float32) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean(np.square(mine.astype(np.float64) - reference))))


def cosine(mine: Float32, reference: Float32) -> float:
    """Cosine of the angle between two arrays, each seen as one vector; 1 for two that are zero."""
    one, other = mine.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else float(np.array_equal(one, other))


def program_rows(
    engine: str, precisions: Mapping[str, str], windows: Mapping[str, Float32], proof: Proof, simulated: ArmletModel
) -> list[ProgramRow]:
    """Each program of an engine against its own PyTorch module with the rounding simulated, on the same inputs.

    Args:
        engine: Engine name.
        precisions: Part to precision.
        windows: Modality name to (n, channels, samples), normalised.
        proof: What the engine made of them.
        simulated: The model with the rounding of its parts simulated.
    """
    rows = []
    names = list(windows)
    with torch.no_grad():
        for name in names:
            wanted = simulated.encoders[name](torch.from_numpy(windows[name])).numpy()
            rows.append(_program_row(engine, name, precisions[name], proof.tokens[name], wanted))
        masks = simulated.mask_tokens.detach().numpy()
        made = []
        for subset in subsets(names):
            parts = [
                proof.tokens[name] if name in subset else np.broadcast_to(masks[place], proof.tokens[name].shape)
                for place, name in enumerate(names)
            ]
            made.append(simulated.aggregator(torch.from_numpy(np.concatenate(parts, axis=1)))[0].numpy())
    wanted = np.stack(made)
    row = _program_row(engine, AGGREGATOR, precisions[AGGREGATOR], proof.logits, wanted)
    agreement = float(np.mean(proof.logits.argmax(2) == wanted.argmax(2)))
    return [*rows, msgspec.structs.replace(row, agreement=agreement)]


def _program_row(engine: str, part: str, precision: str, mine: Float32, wanted: Float32) -> ProgramRow:
    return ProgramRow(
        engine=engine,
        part=part,
        precision=precision,
        cosine=cosine(mine, wanted),
        rmse=rmse(mine, wanted),
        max_distance=float(np.abs(mine - wanted).max()),
    )


def check(rows: Sequence[GateRow], recipe: QatRecipe, logit_step: float) -> None:
    """Let pass what keeps the recipe.

    Args:
        rows: From :func:`compare`.
        recipe: What int8 may cost.
        logit_step: Scale of the logits of the rounded programs.

    Raises:
        ExportError: A row breaks a bound; the message names the first.
    """
    for row in rows:
        where = f"{row.engine} ({row.precision}), subset {row.subset}"
        if row.precision == "fp32":
            if not row.max_distance <= FLOAT_DISTANCE:
                raise ExportError(
                    f"{where}: a logit is {row.max_distance:.2g} away from PyTorch, and {FLOAT_DISTANCE:g} is allowed"
                )
            continue
        steps = row.quantised_mean_distance / logit_step
        if not steps <= QUANTISED_STEPS:
            raise ExportError(
                f"{where}: the program is not the model that was trained: its logits are {steps:.2f} steps from it "
                f"in the mean ({QUANTISED_STEPS:g} allowed)"
            )
        loss = row.macro_f1_pytorch - row.macro_f1
        if not loss <= recipe.max_f1_loss:
            raise ExportError(
                f"{where}: {row.precision} costs {100 * loss:.2f} points of macro-F1, and "
                f"{100 * recipe.max_f1_loss:g} are allowed; train longer with [qat] epochs in the recipe, or take "
                "--precision auto"
            )
        if not row.agreement >= recipe.min_agreement:
            raise ExportError(
                f"{where}: {row.precision} decides as the float model on {row.agreement:.2%} of the windows, "
                f"and {recipe.min_agreement:.2%} are asked for; train longer with [qat] epochs in the recipe, or take "
                "--precision auto"
            )
