"""The gate: a program exists when it ran (rule 1 of the house).

Each engine runs the draft of a bundle in a fresh process without torch, on validation windows in every subset, and is
held against two PyTorch models on the same windows:

- the float model, which says what quality was lost;
- for int8, the fake-quantised model that training ended with: there the programs may differ by rounding only. A wrong
  kernel, zero point or weight shows here even where the quality would hide it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from armlet_runtime.errors import ExportError
from armlet_runtime.metrics import macro_f1
from armlet_runtime.modalities import subset_name, subsets
from armlet_runtime.prove import ProofReport
from armlet_train.recipes import QatRecipe

Float32 = NDArray[np.float32]

FLOAT_DISTANCE = 1e-4
"""Largest difference of a logit of an fp32 program from PyTorch: float32 sums in another order (seen: 2e-6)."""

QUANTISED_STEPS = 1.0
"""Largest mean difference of an int8 program's logits from the fake-quantised model, in steps of the logits' scale.
PyTorch rounds sums that were made in float, an engine has exact integer sums: one step now and then (seen: 0.1)."""


class GateRow(msgspec.Struct, frozen=True):
    """One subset on one engine. Distances are absolute differences of logits; ``quantised_*`` are null for fp32.

    ``quantised_*`` compare with the fake-quantised model, the others with the float model.
    """

    engine: str
    subset: str
    precision: str
    macro_f1: float
    macro_f1_pytorch: float
    max_distance: float
    mean_distance: float
    agreement: float
    quantised_mean_distance: float | None = None
    quantised_agreement: float | None = None


class Proof(msgspec.Struct, frozen=True):
    """What an engine gave in its own process: logits (subsets, n, labels), and what it said of itself."""

    logits: Float32
    report: ProofReport


def run_engine(source: Path, windows: Mapping[str, Float32], engine: str, key: Path | None = None) -> Proof:
    """Run a draft or bundle on an engine in a fresh process.

    Args:
        source: Draft folder, or bundle.
        windows: Modality name to (n, channels, samples), normalised.
        engine: Engine name.
        key: Public key file, for a bundle.

    Raises:
        ExportError: The process failed, or a logit is not a number.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder) / "windows.npz", Path(folder) / "logits.npz"
        np.savez(given, **{name: np.ascontiguousarray(array, np.float32) for name, array in windows.items()})  # type: ignore[arg-type]
        command = [sys.executable, "-m", "armlet_runtime.prove", str(source), str(given), str(got), "--engine", engine]
        done = subprocess.run([*command, *(["--key", str(key)] if key else [])], capture_output=True, text=True)
        if done.returncode != 0 or not got.exists():
            said = done.stderr.strip().splitlines()
            why = said[-1].removeprefix("armlet: ") if said else f"exit status {done.returncode}"
            raise ExportError(f"the programs for {engine} failed in a process of their own: {why}")
        with np.load(got, allow_pickle=False) as result:
            logits, report = result["logits"], msgspec.json.decode(str(result["report"]), type=ProofReport)
    if not np.isfinite(logits).all():
        raise ExportError(
            f"the programs for {engine} gave {np.count_nonzero(~np.isfinite(logits))} logits that are no numbers"
        )
    return Proof(logits, report)


def compare(
    engine: str,
    precision: str,
    names: Sequence[str],
    truth: NDArray[np.int64],
    logits: Float32,
    float_logits: Float32,
    quantised_logits: Float32,
) -> list[GateRow]:
    """One row for each subset. All logits: (subsets, n, labels); ``truth``: (n,) label indices."""
    classes, int8 = logits.shape[2], precision == "int8"
    rows = []
    for place, subset in enumerate(subsets(names)):
        mine, reference, quantised = logits[place], float_logits[place], quantised_logits[place]
        distance = np.abs(mine - reference)
        rows.append(
            GateRow(
                engine=engine,
                subset=subset_name(subset),
                precision=precision,
                macro_f1=macro_f1(truth, mine.argmax(1), classes),
                macro_f1_pytorch=macro_f1(truth, reference.argmax(1), classes),
                max_distance=float(distance.max()),
                mean_distance=float(distance.mean()),
                agreement=float(np.mean(mine.argmax(1) == reference.argmax(1))),
                quantised_mean_distance=float(np.abs(mine - quantised).mean()) if int8 else None,
                quantised_agreement=float(np.mean(mine.argmax(1) == quantised.argmax(1))) if int8 else None,
            )
        )
    return rows


def check(rows: Sequence[GateRow], recipe: QatRecipe, logit_step: float) -> None:
    """Let pass what keeps the recipe.

    Args:
        rows: From :func:`compare`.
        recipe: What int8 may cost.
        logit_step: Scale of the logits of the int8 programs.

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
        assert row.quantised_mean_distance is not None
        steps = row.quantised_mean_distance / logit_step
        if not steps <= QUANTISED_STEPS:
            raise ExportError(
                f"{where}: the program is not the model that was trained: its logits are {steps:.2f} steps from it "
                f"in the mean ({QUANTISED_STEPS:g} allowed)"
            )
        loss = row.macro_f1_pytorch - row.macro_f1
        if not loss <= recipe.max_f1_loss:
            raise ExportError(
                f"{where}: int8 costs {100 * loss:.2f} points of macro-F1, and "
                f"{100 * recipe.max_f1_loss:g} are allowed; train longer with [qat] epochs in the recipe"
            )
        if not row.agreement >= recipe.min_agreement:
            raise ExportError(
                f"{where}: int8 decides as the float model on {row.agreement:.2%} of the windows, "
                f"and {recipe.min_agreement:.2%} are asked for; train longer with [qat] epochs in the recipe"
            )
