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
    from ..engine import run_finetuning, run_folder
    from ..recipes import find_recipe

    device = run_folder.pick_device(args.device)
    run_finetuning(find_recipe(args.recipe), args.source, args.out, device, progress_bar)
    return 0
