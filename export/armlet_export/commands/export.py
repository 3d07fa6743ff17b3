"""``armlet export``: a fine-tuned run becomes a signed bundle of programs that were all proven."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ..pipeline import ExportReport, Material, ProgramReport

NAME = "export"
HELP = "Quantise a fine-tuned run, make programs for the engines, prove each one, and sign them as a bundle."
EXAMPLE = """armlet export runs/finetune --out model.armlet --json export.json
  armlet export runs/finetune --explain
  armlet export model.armlet --explain
  armlet export runs/finetune --out small.armlet --precision auto
  armlet export runs/finetune --out steps.armlet --incremental"""
EXTRA = "export"

ENGINES = "litert,executorch,onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "run",
        metavar="RUN",
        help="folder of a fine-tuned run; begun again, it goes on (with --explain also a bundle, or file:SLOT)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.armlet", help="the bundle to write")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="write no bundle, but list for each program its operators inside and outside of the delegate, its share "
        "of int8 weights, size, operations and memory; of a run without training it first",
    )
    parser.add_argument(
        "--precision",
        metavar="P",
        help="int8, dynamic, fp16 or fp32 for all parts, or auto: the smallest of each with which no subset loses more "
        "than [export] max_auto_loss on validation people (default: the recipe's [export] precision)",
    )
    parser.add_argument(
        "--incremental",
        action="store_true",
        help="besides each encoder, a program that goes on from what was computed for the window before and reads only "
        'the ends of the next one; for kind = "conv". It pays for windows much longer than the hop (1000 samples every '
        "32: 2 to 6 times as fast), and not for 128 samples every 16 (default: the recipe's [export] incremental)",
    )
    parser.add_argument("--engine", default=ENGINES, metavar="E,E", help=f"engines to make programs for ({ENGINES})")
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="private key to sign with; default: this home's own (with --explain: a public key to trust)",
    )
    parser.add_argument(
        "--certify-split",
        choices=["validation", "test"],
        default="validation",
        help="people of the certificate's figures (validation); nothing is selected on them but on validation people",
    )
    parser.add_argument(
        "--board",
        dest="boards",
        action="append",
        default=[],
        metavar="CLASS",
        help="class of boards that it is made for, such as raspberry-pi-5 (repeatable; default: any)",
    )
    parser.add_argument(
        "--expires-days", type=int, metavar="N", help="let no board take it after so many days (default: never)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was made and measured")


def run(args: argparse.Namespace) -> int:
    """Export, or explain; the tool chains' own words go to ``RUN/export/tools.log``."""
    from armlet_runtime.errors import UsageError
    from armlet_train.engine import run_folder as runs

    if args.out is None and not args.explain:
        raise UsageError("give the bundle to write with --out, or --explain")
    if args.expires_days is not None and args.expires_days < 1:
        raise UsageError(f"--expires-days {args.expires_days}: give at least 1")
    if args.out is not None and args.explain:
        raise UsageError("--explain writes no bundle: leave out --out")
    if args.explain and not Path(args.run).is_dir():
        return _explain_bundle(args)
    runs.pick_device("cpu")  # graphs are captured, trained and lowered there, on one thread
    trained = runs.load_run(Path(args.run), "finetune")
    return _explain_run(args, trained) if args.explain else _export(args, trained)


def _export(args: argparse.Namespace, trained: Any) -> int:
    from armlet_runtime.files import write_json

    key = _signing_key(args.key)
    with _tools(Path(args.run) / "export") as (work, terminal):
        from ..pipeline import export_model

        material = _material(
            trained, args.certify_split, args.precision, args.incremental, args.boards, args.expires_days
        )
        report = export_model(material, args.engine.split(","), key, work, args.out, _Progress(terminal))
    _show(report)
    if args.json:
        write_json(args.json, report)
    return 0


def _explain_run(args: argparse.Namespace, trained: Any) -> int:
    with _tools(Path(args.run) / "export") as (_, terminal):
        from ..explain import explain_run

        material = _material(trained, "validation", args.precision, args.incremental)
        engines, description = args.engine.split(","), material.description
        count = len(engines) * (len(description.parts) + len(description.step_parts))
        with _Progress(terminal).stage("Lower", count) as step:
            reports = explain_run(material, engines, step)
    _show_programs(args, reports)
    return 0


def _explain_bundle(args: argparse.Namespace) -> int:
    from armlet_runtime.bundle import open_bundle, trusted_keys
    from armlet_runtime.install import bundle_path

    bundle = open_bundle(bundle_path(args.run), trusted_keys([args.key] if args.key else []))
    with tempfile.TemporaryDirectory() as folder, _tools(Path(folder)):
        from ..explain import delegated_when_loaded, explain_bundle

        reports = explain_bundle(bundle)
        taken = delegated_when_loaded(bundle)
    _show_programs(args, reports)
    for part, delegates in taken.items():
        print(f"litert {part} when loaded here: {delegates}")
    return 0


@contextlib.contextmanager
def _tools(work: Path) -> Iterator[tuple[Path, Any]]:
    """The work folder and the terminal, while what the tool chains say goes to a log."""
    from armlet_runtime.errors import ExportError

    from ..quiet import quiet

    log = work / "tools.log"
    try:
        with quiet(log) as terminal:
            yield work, terminal
    except ExportError as error:
        raise ExportError(f"{error} (the tool chains' own words: {log})") from error


def _show_programs(args: argparse.Namespace, reports: Sequence[ProgramReport]) -> None:
    from rich.console import Console

    from armlet_runtime.files import write_json

    from ..explain import lines, table

    console = Console(highlight=False, markup=False)
    console.print(table(reports))
    for line in lines(reports):
        console.print(line, soft_wrap=True)
    if args.json:
        write_json(args.json, {"programs": reports})


def _signing_key(path: Path | None) -> Ed25519PrivateKey:
    from armlet_runtime.bundle import default_signing_key, load_private

    if path is not None:
        return load_private(path)
    key, made = default_signing_key()
    if made is not None:
        print(f"made the signing key {made}; bundles that it signs are trusted here from now on")
    return key


def _material(
    trained: Any,
    certify_split: str,
    precision: str | None,
    is_incremental: bool,
    boards: Sequence[str] = (),
    expires_days: int | None = None,
) -> Material:
    from datetime import datetime, timedelta, timezone

    from armlet_runtime.bundle import AGGREGATOR
    from armlet_train.data import corpus as data
    from armlet_train.data import steps_per_epoch
    from armlet_train.engine import finetune
    from armlet_train.models import fold_batchnorm

    from ..bundle import Description, smoothing_of
    from ..choose_precision import resolve
    from ..pipeline import Material
    from ..quantise import STAGE
    from ..streaming import plans

    recipe = trained.recipe
    corpus = data.load_corpus(recipe.data, "train")
    validation = data.score_windows(data.load_corpus(recipe.data, "validation"), trained.normalisation)
    certify = validation
    if certify_split != "validation":
        certify = data.score_windows(data.load_corpus(recipe.data, certify_split), trained.normalisation)
    now = datetime.now(timezone.utc).replace(microsecond=0)
    model = fold_batchnorm(trained.model)
    steps = {}
    if is_incremental or recipe.export.incremental:
        steps = plans(model.encoders, trained.modalities, trained.window)
    return Material(
        model=model,
        description=Description(
            name=trained.info.recipe,
            version=now.strftime("%Y%m%d.%H%M%S"),
            created=_written(now),
            modalities=trained.modalities,
            window=trained.window,
            normalisation=trained.normalisation,
            labels=trained.labels,
            token_dim=model.token_dim,
            embedding_dim=model.embedding_dim,
            presence=recipe.presence,
            expires=None if expires_days is None else _written(now + timedelta(days=expires_days)),
            boards=tuple(boards),
            smoothing=smoothing_of(recipe.export, corpus, trained.window),
            steps=steps,
        ),
        precision=resolve(
            recipe.export.precision, [*(modality.name for modality in trained.modalities), AGGREGATOR], precision
        ),
        max_auto_loss=recipe.export.max_auto_loss,
        batches=lambda epoch: finetune.batches(corpus, trained.normalisation, recipe.finetune, epoch, stage=STAGE),
        batch_count=steps_per_epoch(corpus, recipe.finetune.batch, labelled=True),
        validation=validation,
        certify=certify,
        certify_name=f"{recipe.data.name} {certify_split}",
        qat=recipe.qat,
        max_unknown=recipe.export.max_unknown,
    )


def _written(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


class _Progress:
    """Bars and notes on the terminal; :class:`armlet_export.pipeline.Progress`."""

    def __init__(self, terminal: Any) -> None:
        from rich.console import Console

        self._console = Console(file=terminal)

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar."""
        from armlet_train.commands import progress_bar

        with progress_bar(title, self._console) as update:
            update(0, total)
            done = itertools.count(1)
            yield lambda: update(next(done), total)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, highlight=False)


def _show(report: ExportReport) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from armlet_runtime.bundle import AGGREGATOR, step_of

    sizes: dict[str, int] = {}
    for program in report.programs:
        sizes[program.engine] = sizes.get(program.engine, 0) + program.bytes
    table = Table(
        "engine", "subset", "macro-F1", "interval", "PyTorch", "agree", "QAT", "RMSE",
        title=f"Proven on {report.certificate.windows} windows of {report.certificate.data}",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    for column in table.columns[2:]:
        column.justify = "right"
    kinds: dict[str, set[str]] = {program.engine: set() for program in report.programs}
    for program in report.programs:
        kinds[program.engine].add(program.precision)
    shown = ""
    for row in report.certificate.rows:
        first = row.engine != shown
        shown = row.engine
        table.add_row(
            row.engine if first else "",
            row.subset,
            f"{row.macro_f1:.4f}",
            f"{row.macro_f1_low:.2f}-{row.macro_f1_high:.2f}",
            f"{row.macro_f1_pytorch:.4f}",
            f"{row.agreement:.2%}",
            f"{row.quantised_agreement:.2%}",
            f"{row.quantised_rmse:.2g}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"interval: {report.certificate.interval}; agree: same label as the float model; QAT, RMSE: "
        "against the model with its rounding simulated",
        highlight=False,
        soft_wrap=True,
    )
    programs = ", ".join(
        f"{engine} {'/'.join(sorted(kinds[engine]))} {size / 1000:.0f} kB" for engine, size in sizes.items()
    )
    console.print(f"programs: {programs}", highlight=False, soft_wrap=True)
    if report.engines_agree:
        pairs = "; ".join(f"{pair} {share:.2%}" for pair, share in report.engines_agree.items())
        console.print(f"same label in the worst subset: {pairs}", highlight=False, soft_wrap=True)
    if any(proof.steps is not None for proof in report.proofs):
        parts = dict.fromkeys(program.part for program in report.programs)
        steps = [part for part in parts if step_of(part) in parts]
        short = [part for part in parts if part not in (AGGREGATOR, *steps, *map(step_of, steps))]
        apart = ", ".join(f"{proof.engine} {proof.steps:.2g}" for proof in report.proofs)
        left = f"; windows too short for steps: {', '.join(short)}" if short else ""
        console.print(
            f"incremental: {', '.join(steps)}{left}; largest difference from whole windows: {apart}",
            highlight=False,
            soft_wrap=True,
        )
    engine = report.certificate.rows[0].engine
    errors = ", ".join(
        f"{row.subset} {row.ece_uncalibrated:.3f} -> {row.ece:.3f}"
        for row in report.certificate.rows
        if row.engine == engine
    )
    console.print(f"calibration error on {engine}: {errors}", highlight=False, soft_wrap=True)
    made = f"bundle: {report.bundle} ({report.bytes / 1000:.0f} kB), signed by {report.key_id}"
    console.print(made, highlight=False, soft_wrap=True)
