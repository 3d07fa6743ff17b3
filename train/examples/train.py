"""Pretrain and fine-tune a model in ten lines.

Usage: ``python train.py RECIPE OUT``; RECIPE is a TOML file, or the name of a recipe of armlet such as ``hapt``. Leaves
the runs OUT/pretrain and OUT/finetune; a second start goes on from the last checkpoint.
"""

import sys
from pathlib import Path

from armlet_train.engine import run_finetuning, run_folder, run_pretraining
from armlet_train.recipes import find_recipe

if __name__ == "__main__":
    recipe, out = find_recipe(sys.argv[1]), Path(sys.argv[2])
    device = run_folder.pick_device("auto")
    run_pretraining(recipe, out / "pretrain", device)
    run_finetuning(recipe, out / "pretrain", out / "finetune", device)
    trained = run_folder.load_run(out / "finetune")
    print(f"{trained.info.parameters} parameters for {', '.join(trained.labels)}")
