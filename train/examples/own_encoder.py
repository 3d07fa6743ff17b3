"""Put an encoder of your own into a model, and fine-tune it on every subset of the sensors.

Usage: ``python own_encoder.py RECIPE OUT``. A temporal convolutional network takes the place of each encoder of the
recipe's model. Prints macro-F1 of each subset on the validation people, a line each epoch. Only models that a recipe
describes can be exported; this one cannot.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from armlet_train.data import load_corpus, score_windows
from armlet_train.engine import finetune, run_folder
from armlet_train.models import Encoder, build_model
from armlet_train.recipes import find_recipe, load_recipe


class TemporalConvolution(Encoder):
    """Dilated convolutions, the mean over time, and a linear layer to the token."""

    def __init__(self, channels: int, token_dim: int, width: int = 32) -> None:
        """Three layers, with dilations of 1, 2 and 4 samples."""
        super().__init__()
        layers: list[nn.Module] = []
        for before, dilation in ((channels, 1), (width, 2), (width, 4)):
            layers += [nn.Conv1d(before, width, 5, dilation=dilation, padding="same"), nn.BatchNorm1d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.project = nn.Linear(width, token_dim)

    def features(self, window: Tensor) -> Tensor:
        """(B, width) of (B, channels, samples): what a linear probe looks at."""
        pooled: Tensor = self.layers(window).mean(dim=2)
        return pooled

    def forward(self, window: Tensor) -> Tensor:
        """The token (B, token_dim)."""
        token: Tensor = self.project(self.features(window))
        return token


def main(recipe_name: str, out: str) -> None:
    """Build, fine-tune, and print a line each epoch."""
    recipe = load_recipe(find_recipe(recipe_name))
    device = run_folder.pick_device("cpu")
    training = load_corpus(recipe.data, "train")
    normalisation = training.normalisation()
    held_out = score_windows(load_corpus(recipe.data, "validation"), normalisation)
    torch.manual_seed(recipe.finetune.seed)
    model = build_model(recipe.model, training.modalities, training.lengths, len(training.labels))
    for modality in training.modalities:
        model.encoders[modality.name] = TemporalConvolution(len(modality.channels), model.token_dim)
    finetune.finetune(
        model, training, normalisation, held_out, recipe.finetune, recipe.checkpoints, device, Path(out),
        report=lambda epoch: print(epoch.epoch, {name: round(score, 3) for name, score in epoch.macro_f1.items()}),
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
