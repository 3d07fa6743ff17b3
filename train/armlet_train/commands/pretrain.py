"""``armlet pretrain``: a model on a data set's training people, without labels."""

from __future__ import annotations

import argparse

from .training import add_training_arguments, progress_bar

NAME = "pretrain"
HELP = "Pretrain a model without labels, by the method that the recipe names."
EXAMPLE = """armlet pretrain hapt --out runs/pretrain
  torchrun --standalone --nproc-per-node 2 -m armlet_runtime pretrain hapt --out runs/pretrain"""
EXTRA = "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train until the recipe's last epoch, then write the run."""
    import time

    from .. import distributed as parallel
    from ..data import corpus as data
    from ..engine import RunLog
    from ..engine import pretrain as pretraining
    from ..engine import run_folder as runs
    from ..models import cbramod
    from ..recipes import CBraModModel, NoPretrain, find_recipe, load_recipe

    path = find_recipe(args.recipe)
    recipe = load_recipe(path)
    device = runs.pick_device(args.device)
    with parallel.processes(device):
        runs.start_run(args.out, path, "pretrain")
        began = time.monotonic()
        corpus = data.load_corpus(recipe.data, "train")
        model = runs.build_model(recipe, corpus.modalities)
        if isinstance(recipe.model, CBraModModel):
            cbramod.start_from_weights(model, recipe.model, corpus.modalities)
        if not isinstance(recipe.pretrain, NoPretrain):
            with RunLog(args.out, "pretrain") as report, progress_bar("pretrain") as advance:
                pretraining.pretrain(
                    model, corpus, corpus.normalisation(), recipe.pretrain, recipe.checkpoints, device,
                    args.out / "checkpoints", report, advance,
                )  # fmt: skip
        runs.end_run(args.out, "pretrain", recipe, path.stem, corpus, model, time.monotonic() - began, device)
    return 0
