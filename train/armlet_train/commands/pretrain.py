"""``armlet pretrain``: CroSSL on a data set's training people, without labels."""

from __future__ import annotations

import argparse

from .training import add_training_arguments, progress_bar

NAME = "pretrain"
HELP = "Pretrain a model without labels (CroSSL): whole modalities are hidden in latent space."
EXAMPLE = "armlet pretrain hapt --out runs/pretrain"
EXTRA = "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train until the recipe's last epoch, then write the run."""
    import time

    from .. import crossl, data, runs
    from ..recipes import find_recipe, load_recipe

    path = find_recipe(args.recipe)
    recipe = load_recipe(path)
    device = runs.pick_device(args.device)
    runs.start_run(args.out, path, "pretrain")
    began = time.monotonic()
    corpus = data.load_corpus(recipe.data, "train")
    model = runs.build_model(recipe, corpus.modalities)
    with progress_bar("pretrain") as advance:
        crossl.pretrain(
            model, corpus, corpus.normalisation(), recipe.pretrain, recipe.model, device, args.out / "checkpoints",
            lambda report: runs.add_metrics(args.out, report.epoch, report), advance,
        )  # fmt: skip
    runs.end_run(args.out, "pretrain", recipe, path.stem, corpus, model, time.monotonic() - began)
    print(f"pretrained run: {args.out}")
    return 0
