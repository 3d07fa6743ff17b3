"""``armlet evaluate``: figures of a run, of a bundle's own programs, or of all methods, on every subset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armlet_runtime.commands import add_engine_option, add_key_option

if TYPE_CHECKING:
    from ..evaluation import Evaluation, SubsetScore

NAME = "evaluate"
HELP = "Score a run, the programs of a bundle, or all methods (--suite), on every subset of the modalities."
EXAMPLE = """armlet evaluate model.armlet --engine litert --split test --json figures.json
  armlet evaluate runs/pretrain --few-label
  armlet evaluate --suite hapt --out suite --split validation --methods crossl,supervised"""
EXTRA = "train"

SUITES = ("hapt", "masking", "one-shot", "made")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("bundle", nargs="?", metavar="RUN|BUNDLE", help="a run's folder, a bundle file, or file:SLOT")
    add_key_option(parser)
    add_engine_option(parser)
    parser.add_argument(
        "--split", choices=["validation", "test"], default="validation", help="people to score on (validation)"
    )
    parser.add_argument(
        "--few-label", action="store_true", help="linear probe on a run's encoders with 1, 5, 10, 20 labels a class"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    suite = parser.add_argument_group("suites", "train and score from recipes; a second start goes on")
    suite.add_argument("--suite", choices=SUITES, help="all methods; ways of masking; unseen movements; 31 subsets")
    suite.add_argument("--out", type=Path, default=Path("suite"), metavar="FOLDER", help="the suite's folder (suite)")
    suite.add_argument("--methods", metavar="NAME,NAME", help="only these methods of the suite hapt")
    suite.add_argument("--seeds", type=int, default=1, help="trainings of each method of the suite hapt (1)")
    suite.add_argument("--quick", action="store_true", help="minutes of training become seconds; the figures are void")
    suite.add_argument("--tables", type=Path, metavar="FILE", help="put the suite's tables into a Markdown file")
    suite.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one"
    )


def run(args: argparse.Namespace) -> int:
    """Score, print a table, write the figures."""
    from armlet_runtime.errors import UsageError
    from armlet_runtime.files import write_json

    if args.suite:
        return _suite(args)
    if args.bundle is None:
        raise UsageError("give a run's folder or a bundle, or --suite")
    if Path(args.bundle).is_dir():
        if args.engine:
            raise UsageError(f"{args.bundle} is a run, which PyTorch scores; --engine is for bundles")
        evaluation = _few_label(args) if args.few_label else _run(args)
    else:
        if args.few_label:
            raise UsageError("--few-label needs a run's folder: a bundle has no encoders that PyTorch can probe")
        evaluation = _bundle(args)
    _show(evaluation)
    if args.json:
        write_json(args.json, evaluation)
    return 0


def _suite(args: argparse.Namespace) -> int:
    from rich.console import Console

    from armlet_runtime.errors import UsageError
    from armlet_runtime.files import write_json

    from ..engine import run_folder
    from ..evaluation import bench_masking, bench_methods, bench_one_shot, bench_specialists, tables
    from .training import progress_bar

    if args.bundle is not None or args.engine or args.few_label:
        raise UsageError("--suite trains its own models: give no run, bundle, --engine or --few-label with it")
    if args.seeds < 1:
        raise UsageError("--seeds must be at least 1")
    console, device, folder = Console(), run_folder.pick_device(args.device), args.out / args.suite
    report: Any
    if args.suite == "masking":
        with progress_bar("masking", console) as advance:
            report = bench_masking.run(folder, args.quick, device, advance)
    elif args.suite == "one-shot":
        with progress_bar("one-shot", console) as advance:
            report = bench_one_shot.run(folder, args.quick, device, advance, args.split)
    elif args.suite == "made":
        with progress_bar("MADE data", console) as advance:
            report = bench_specialists.run(folder, args.quick, device, advance)
    else:
        methods = args.methods.split(",") if args.methods else list(bench_methods.METHODS)
        report = bench_methods.Suite(folder, args.split, args.quick, device, console, progress_bar).run(
            methods, args.seeds
        )
    tables.show(report, console)
    if args.json:
        write_json(args.json, report)
    if args.tables:
        tables.insert(args.tables, report)
    return 0


def _run(args: argparse.Namespace) -> Evaluation:
    from ..engine import run_folder
    from ..evaluation import bench_methods

    trained = run_folder.load_run(Path(args.bundle), "finetune")
    scores = bench_methods.score_run(trained, args.split)
    return _evaluation(args, "pytorch", trained.labels, scores)


def _few_label(args: argparse.Namespace) -> Evaluation:
    from ..data import load_corpus
    from ..engine import run_folder
    from ..evaluation import scores

    trained = run_folder.load_run(Path(args.bundle))
    recipe = trained.recipe
    train, scored = (load_corpus(recipe.data, split, recipe.presence) for split in ("train", args.split))
    people = scores.probe_people(train, scored, trained.normalisation)
    features = scores.standardise(scores.model_features(trained.model), people, tuple(trained.model.modalities))
    truth = people.scored.truth
    few = scores.few_label(features, people.labelled.truth, truth, trained.labels)
    return scores.Evaluation(args.bundle, "pytorch", args.split, trained.labels, len(truth), few_label=few)


def _bundle(args: argparse.Namespace) -> Evaluation:
    from armlet_runtime.commands import load_model
    from armlet_runtime.errors import BundleError
    from armlet_runtime.model import run_subsets

    from ..data import load_corpus, score_windows
    from ..evaluation import scores
    from ..recipes import DataRecipe

    model = load_model(args)
    manifest = model.manifest
    names = tuple(modality.name for modality in manifest.modalities)
    # Windows are scored a half window apart, as in the recipes; the manifest's hop is that of the live loop.
    length = manifest.window.length_s
    recipe = DataRecipe("hapt", names, manifest.labels, length, length / 2, manifest.window.hop_s)
    corpus = load_corpus(recipe, args.split)
    if [modality.rate_hz for modality in corpus.modalities] != [modality.rate_hz for modality in manifest.modalities]:
        raise BundleError(f"{args.bundle} was made for other sampling rates than the data have; nothing was scored")
    scored = score_windows(corpus, dict(manifest.normalisation))
    logits, _ = run_subsets(model, scored.windows)
    figures = scores.score(logits.argmax(axis=2), names, scored, manifest.labels)
    engine = f"{model.engine.name} {model.engine.version} ({model.engine.detail})"
    return _evaluation(args, engine, manifest.labels, figures)


def _evaluation(
    args: argparse.Namespace, engine: str, labels: tuple[str, ...], scores: list[SubsetScore]
) -> Evaluation:
    import numpy as np

    from ..evaluation import Evaluation

    windows = int(np.sum(scores[0].confusion))
    return Evaluation(args.bundle, engine, args.split, labels, windows, scores)


def _show(evaluation: Evaluation) -> None:
    from rich.console import Console

    from armlet_runtime.views import SubsetCell, figures_table

    title = f"{evaluation.source} on {evaluation.engine}, {evaluation.split} people, {evaluation.windows} windows"
    if evaluation.few_label:
        table = figures_table(
            "labelled windows a class", "macro-F1", "deviation over seeds", title=title, aligned_left=0
        )
        for few in evaluation.few_label:
            table.add_row(str(few.k), f"{few.macro_f1:.3f}", f"{few.deviation:.3f}")
    else:
        headings = ("subset", "macro-F1", "lowest person", "median person", "highest person")
        table = figures_table(*headings, title=title, aligned_left=1)
        for score in evaluation.subsets:
            people = sorted((value, person) for person, value in score.people.items())
            low, median, high = people[0], people[len(people) // 2], people[-1]
            shown = [f"{value:.3f} ({person})" for value, person in (low, median, high)]
            table.add_row(SubsetCell(score.subset), f"{score.macro_f1:.4f}", *shown)
    Console().print(table)
