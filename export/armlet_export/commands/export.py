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
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from armlet_train.engine import run_folder

    from ..pipeline import ProgramReport

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
    """Export, or explain; the output of the tool chains goes to ``RUN/export/tools.log``."""
    from armlet_runtime.errors import UsageError
    from armlet_train.engine import run_folder

    if args.out is None and not args.explain:
        raise UsageError("give the bundle to write with --out, or --explain")
    if args.expires_days is not None and args.expires_days < 1:
        raise UsageError(f"--expires-days {args.expires_days}: give at least 1")
    if args.out is not None and args.explain:
        raise UsageError("--explain writes no bundle: leave out --out")
    if args.explain and not Path(args.run).is_dir():
        return _explain_bundle(args)
    run_folder.pick_device("cpu")  # graphs are captured, trained and lowered there, on one thread
    fine_tuned = run_folder.load_run(Path(args.run), "finetune")
    return _explain_run(args, fine_tuned) if args.explain else _export(args, fine_tuned)


def _export(args: argparse.Namespace, fine_tuned: run_folder.TrainedRun) -> int:
    from armlet_runtime.files import write_json

    from .export_summary import print_summary

    key = _signing_key(args.key)
    with _tools(Path(args.run) / "export") as (work, terminal):
        from ..pipeline import export_model, load_trained

        trained = load_trained(
            fine_tuned, args.certify_split, args.precision, args.incremental, args.boards, args.expires_days
        )
        report = export_model(trained, args.engine.split(","), key, work, args.out, _Progress(terminal))
    print_summary(report)
    if args.json:
        write_json(args.json, report)
    return 0


def _explain_run(args: argparse.Namespace, fine_tuned: run_folder.TrainedRun) -> int:
    with _tools(Path(args.run) / "export") as (_, terminal):
        from ..explain import explain_run
        from ..pipeline import load_trained

        trained = load_trained(fine_tuned, precision=args.precision, is_incremental=args.incremental)
        engines, description = args.engine.split(","), trained.description
        count = len(engines) * (len(description.parts) + len(description.step_parts))
        with _Progress(terminal).stage("Lower", count) as step:
            reports = explain_run(trained, engines, step)
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
    """The work folder and the terminal, while the output of the tool chains goes to a log."""
    from armlet_runtime.errors import ExportError

    from ..tool_log import output_to_log

    log = work / "tools.log"
    try:
        with output_to_log(log) as terminal:
            yield work, terminal
    except ExportError as error:
        raise ExportError(f"{error} (output of the tool chains: {log})") from error


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
