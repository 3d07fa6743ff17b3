"""Training: the loop, its checkpoints, its log, its folder, and the two stages that use it.

Imports the root, the data, the models and the methods.
"""

from . import checkpoints, finetune, pretrain, run_folder, trainer
from .finetune import all_logits, run_finetuning, subset_logits
from .pretrain import run_pretraining
from .run_log import RunLog
from .trainer import train

__all__ = [
    "RunLog",
    "all_logits",
    "checkpoints",
    "finetune",
    "pretrain",
    "run_finetuning",
    "run_folder",
    "run_pretraining",
    "subset_logits",
    "train",
    "trainer",
]
