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
    from ..engine import run_folder, run_pretraining
    from ..recipes import find_recipe

    run_pretraining(find_recipe(args.recipe), args.out, run_folder.pick_device(args.device), progress_bar)
    return 0
