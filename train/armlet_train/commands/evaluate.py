"""``armlet evaluate``: figures of a run or of a bundle's own programs, on every subset and for every person."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from armlet_runtime.commands.model_arguments import add_engine_option, add_key_option

if TYPE_CHECKING:
    from ..evaluate import Evaluation, SubsetScore

NAME = "evaluate"
HELP = "Score a run, or the programs of a bundle, on every subset of the modalities."
EXAMPLE = """armlet evaluate model.armlet --engine litert --split test --json figures.json
  armlet evaluate runs/pretrain --few-label"""
EXTRA = "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("bundle", metavar="RUN|BUNDLE", help="a run's folder, a bundle file, or file:SLOT")
    add_key_option(parser)
    add_engine_option(parser)
    parser.add_argument("--split", choices=["validation", "test"], default="test", help="people to score on (test)")
    parser.add_argument(
        "--few-label", action="store_true", help="linear probe on a run's encoders with 1, 5, 10, 20 labels a class"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")


def run(args: argparse.Namespace) -> int:
    """Score, print a table, write the figures."""
    from armlet_runtime.errors import UsageError
    from armlet_runtime.outputs import write_json

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


def _run(args: argparse.Namespace) -> Evaluation:
    from .. import data, evaluate, runs
    from ..finetune import all_logits

    trained = runs.load_run(Path(args.bundle), "finetune")
    scored = data.score_windows(data.load_corpus(trained.recipe.data, args.split), trained.normalisation)
    predictions = all_logits(trained.model, scored.windows, scored.present).argmax(axis=2)
    scores = evaluate.score(predictions, trained.model.modalities, scored, trained.labels)
    return _evaluation(args, "pytorch", trained.labels, len(scored.truth), scores)


def _few_label(args: argparse.Namespace) -> Evaluation:
    from .. import data, evaluate, runs

    trained = runs.load_run(Path(args.bundle))
    recipe, normalisation = trained.recipe.data, trained.normalisation
    corpus = data.load_corpus(recipe, "train")
    raw = corpus.windows(corpus.starts(labelled=False, every=corpus.stride))
    unlabelled = {name: normalisation[name].apply(windows) for name, windows in raw.items()}
    train = data.score_windows(corpus, normalisation)
    scored = data.score_windows(data.load_corpus(recipe, args.split), normalisation)
    few = evaluate.few_label(trained.model, unlabelled, train, scored, len(trained.labels))
    return evaluate.Evaluation(args.bundle, "pytorch", args.split, trained.labels, len(scored.truth), few_label=few)


def _bundle(args: argparse.Namespace) -> Evaluation:
    from armlet_runtime.commands.model_arguments import load_model
    from armlet_runtime.errors import BundleError
    from armlet_runtime.golden import run_subsets

    from .. import data, evaluate
    from ..recipes import DataRecipe

    model, _ = load_model(args)
    manifest = model.manifest
    names = tuple(modality.name for modality in manifest.modalities)
    # Windows are scored a half window apart, as in the recipes; the manifest's hop is that of the live loop.
    length = manifest.window.length_s
    recipe = DataRecipe("hapt", names, manifest.labels, length, length / 2, manifest.window.hop_s)
    corpus = data.load_corpus(recipe, args.split)
    if [modality.rate_hz for modality in corpus.modalities] != [modality.rate_hz for modality in manifest.modalities]:
        raise BundleError(f"{args.bundle} was made for other sampling rates than the data have; nothing was scored")
    scored = data.score_windows(corpus, dict(manifest.normalisation))
    logits, _ = run_subsets(model, scored.windows)
    scores = evaluate.score(logits.argmax(axis=2), names, scored, manifest.labels)
    engine = f"{model.engine.name} {model.engine.version} ({model.engine.detail})"
    return _evaluation(args, engine, manifest.labels, len(scored.truth), scores)


def _evaluation(
    args: argparse.Namespace, engine: str, labels: tuple[str, ...], windows: int, scores: list[SubsetScore]
) -> Evaluation:
    from ..evaluate import Evaluation

    return Evaluation(args.bundle, engine, args.split, labels, windows, scores)


def _show(evaluation: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{evaluation.source} on {evaluation.engine}, {evaluation.split} people, {evaluation.windows} windows"
    )
    if evaluation.few_label:
        for heading in ("labelled windows a class", "macro-F1", "deviation over seeds"):
            table.add_column(heading, justify="right")
        for few in evaluation.few_label:
            table.add_row(str(few.k), f"{few.macro_f1:.3f}", f"{few.deviation:.3f}")
    else:
        for heading in ("subset", "macro-F1", "lowest person", "median person", "highest person"):
            table.add_column(heading, justify="left" if heading == "subset" else "right")
        for score in evaluation.subsets:
            people = sorted((value, person) for person, value in score.people.items())
            low, median, high = people[0], people[len(people) // 2], people[-1]
            shown = [f"{value:.3f} ({person})" for value, person in (low, median, high)]
            table.add_row(score.subset, f"{score.macro_f1:.4f}", *shown)
    Console().print(table)
