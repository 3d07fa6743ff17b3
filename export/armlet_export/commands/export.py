"""``armlet export``: a fine-tuned run becomes a signed bundle of programs that were all proven."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ..pipeline import ExportReport, Material

NAME = "export"
HELP = "Quantise a fine-tuned run, make programs for the engines, prove each one, and sign them as a bundle."
EXAMPLE = "armlet export runs/finetune --out model.armlet --json export.json"
EXTRA = "export"

ENGINES = "litert,executorch,onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a fine-tuned run; begun again, it goes on")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.armlet", help="the bundle to write")
    parser.add_argument("--engine", default=ENGINES, metavar="E,E", help=f"engines to make programs for ({ENGINES})")
    parser.add_argument("--key", type=Path, metavar="FILE", help="private key to sign with; default: this home's own")
    parser.add_argument(
        "--certify-split",
        choices=["validation", "test"],
        default="validation",
        help="people of the certificate's figures (validation); nothing is selected on them but on validation people",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was made and measured")


def run(args: argparse.Namespace) -> int:
    """Export; the tool chains' own words go to ``RUN/export/tools.log``."""
    import msgspec

    from armlet_runtime.errors import ExportError
    from armlet_runtime.files import write_atomic
    from armlet_train import runs

    from ..quiet import quiet

    runs.pick_device("cpu")  # graphs are captured, trained and lowered there, on one thread
    trained = runs.load_run(args.run, "finetune")
    key = _signing_key(args.key)
    work = args.run / "export"
    log = work / "tools.log"
    try:
        with quiet(log) as terminal:
            from ..pipeline import export_model

            material = _material(trained, args.certify_split)
            report = export_model(material, args.engine.split(","), key, work, args.out, _Progress(terminal))
    except ExportError as error:
        raise ExportError(f"{error} (the tool chains' own words: {log})") from error
    _show(report)
    if args.json:
        write_atomic(args.json, msgspec.json.format(msgspec.json.encode(report), indent=2))
    return 0


def _signing_key(path: Path | None) -> Ed25519PrivateKey:
    from armlet_runtime.keys import default_signing_key, load_private

    if path is not None:
        return load_private(path)
    key, made = default_signing_key()
    if made is not None:
        print(f"made the signing key {made}; bundles that it signs are trusted here from now on")
    return key


def _material(trained: Any, certify_split: str) -> Material:
    from datetime import datetime, timezone

    from armlet_train import data, finetune
    from armlet_train.batches import steps_per_epoch
    from armlet_train.models import fold_batchnorm

    from ..assemble import Description
    from ..pipeline import Material
    from ..qat import STAGE

    recipe = trained.recipe
    corpus = data.load_corpus(recipe.data, "train")
    validation = data.score_windows(data.load_corpus(recipe.data, "validation"), trained.normalisation)
    certify = validation
    if certify_split != "validation":
        certify = data.score_windows(data.load_corpus(recipe.data, certify_split), trained.normalisation)
    now = datetime.now(timezone.utc).replace(microsecond=0)
    return Material(
        model=fold_batchnorm(trained.model),
        description=Description(
            name=trained.info.recipe,
            version=now.strftime("%Y%m%d.%H%M%S"),
            created=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            modalities=trained.modalities,
            window=trained.window,
            normalisation=trained.normalisation,
            labels=trained.labels,
            token_dim=trained.model.token_dim,
            embedding_dim=trained.model.embedding_dim,
            presence=recipe.presence,
        ),
        batches=lambda epoch: finetune.batches(corpus, trained.normalisation, recipe.finetune, epoch, stage=STAGE),
        batch_count=steps_per_epoch(corpus, recipe.finetune.batch, labelled=True),
        validation=validation,
        certify=certify,
        certify_name=f"{recipe.data.name} {certify_split}",
        qat=recipe.qat,
    )


class _Progress:
    """Bars and notes on the terminal; :class:`armlet_export.pipeline.Progress`."""

    def __init__(self, terminal: Any) -> None:
        from rich.console import Console

        self._console = Console(file=terminal)

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar."""
        from armlet_train.commands.training import progress_bar

        with progress_bar(title, self._console) as update:
            update(0, total)
            done = itertools.count(1)
            yield lambda: update(next(done), total)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, highlight=False)


def _show(report: ExportReport) -> None:
    from rich.console import Console
    from rich.table import Table

    sizes: dict[str, int] = {}
    for program in report.programs:
        sizes[program.engine] = sizes.get(program.engine, 0) + program.bytes
    table = Table(title=f"Proven on {report.certificate.windows} windows of {report.certificate.data}")
    for heading in ("engine", "programs", "subset", "macro-F1", "PyTorch", "agree", "distance"):
        table.add_column(heading, justify="left" if heading in ("engine", "subset") else "right")
    precision = {program.engine: program.precision for program in report.programs}
    shown = ""
    for row in report.certificate.rows:
        first = row.engine != shown
        shown = row.engine
        table.add_row(
            f"{row.engine} {precision[row.engine]}" if first else "",
            f"{sizes[row.engine] / 1000:.0f} kB" if first else "",
            row.subset,
            f"{row.macro_f1:.4f}",
            f"{row.macro_f1_pytorch:.4f}",
            f"{row.agreement:.2%}",
            f"{row.mean_distance:.2g}",
        )
    console = Console()
    console.print(table)
    made = f"bundle: {report.bundle} ({report.bytes / 1000:.0f} kB), signed by {report.key_id}"
    console.print(made, highlight=False, soft_wrap=True)
