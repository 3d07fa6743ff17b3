"""``armlet finetune``: a classifier on a pretrained model, with modalities dropping out."""

from __future__ import annotations

import argparse
from pathlib import Path

from .training import add_training_arguments, progress_bar

NAME = "finetune"
HELP = "Fine-tune a pretrained run with labels, every window seen in every subset of its modalities."
EXAMPLE = "armlet finetune hapt --from runs/pretrain --out runs/finetune"
EXTRA = "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_training_arguments(parser)
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="RUN", help="the pretrained run")


def run(args: argparse.Namespace) -> int:
    """Train until the recipe's last epoch, then write the run."""
    import time

    from armlet_runtime.errors import UsageError

    from .. import distributed as parallel
    from ..data import corpus as data
    from ..engine import RunLog
    from ..engine import finetune as finetuning
    from ..engine import run_folder as runs
    from ..recipes import find_recipe, load_recipe

    path = find_recipe(args.recipe)
    recipe = load_recipe(path)
    device = runs.pick_device(args.device)
    pretrained = runs.load_run(args.source, "pretrain")
    if pretrained.recipe.model != recipe.model or pretrained.recipe.data != recipe.data:
        raise UsageError(f"{args.source} was pretrained with other [data] or [model] values than {path} has")
    with parallel.processes(device):
        runs.start_run(args.out, path, "finetune")
        began = time.monotonic()
        corpus = data.load_corpus(recipe.data, "train")
        normalisation = corpus.normalisation()
        validation = data.score_windows(data.load_corpus(recipe.data, "validation"), normalisation)
        with RunLog(args.out, "finetune") as report, progress_bar("finetune") as advance:
            model = finetuning.finetune(
                pretrained.model, corpus, normalisation, validation, recipe.finetune, recipe.checkpoints, device,
                args.out / "checkpoints", report, advance,
            )  # fmt: skip
        runs.end_run(args.out, "finetune", recipe, path.stem, corpus, model, time.monotonic() - began, device)
    return 0
