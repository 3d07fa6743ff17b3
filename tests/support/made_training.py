"""Made recordings of two modalities at different rates, one of them lacking for a person; and trainings on them.

A program for one process or for ``torchrun``: ``-m tests.support.made_training compare|endless OUT``, see :func:`main`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import numpy as np
import torch

from armlet_runtime.errors import UsageError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Label, Recording, Stream
from armlet_train import distributed
from armlet_train.data import Corpus, join_recordings, score_windows
from armlet_train.engine import checkpoints, finetune
from armlet_train.engine import pretrain as pretraining
from armlet_train.models.base import ArmletModel
from armlet_train.models.build import build_model
from armlet_train.recipes import AugmentRecipe, CheckpointRecipe, ConvModel, CrosslPretrain, DataRecipe, FinetuneRecipe

CPU = torch.device("cpu")
ACC = Modality("acc", ("x", "y", "z"), "g", 50.0)
PULSE = Modality("pulse", ("green",), "", 32.0)
LABELS = ("still", "slow", "fast")
MODEL = ConvModel(
    channels=(8, 12), kernels=(5, 3), strides=(2, 2), token_dim=16, hidden_dim=24, embedding_dim=16, dropout=0.2
)
AUGMENT = AugmentRecipe(rotation_deg=5.0, scale=0.05, jitter=0.02, gap=0.3, warp=0.2)
PRETRAIN = CrosslPretrain(
    epochs=2, batch=24, learning_rate=2e-3, weight_decay=1e-2, seed=0, augment=AUGMENT, neighbour_s=0.5,
    similarity=25.0, variance=25.0, covariance=1.0, projection_dim=32,
)  # fmt: skip
FINETUNE = FinetuneRecipe(
    epochs=2, batch=24, learning_rate=2e-3, weight_decay=1e-2, seed=0, augment=AUGMENT, label_smoothing=0.1,
    average=0.9,
)  # fmt: skip
DATA = DataRecipe(
    name="made", modalities=("acc", "pulse"), labels=LABELS, window_s=1.28, stride_s=0.5, hop_s=0.32
)  # fmt: skip


def made_recording(person: str, seed: int, lacks: str = "") -> Recording:
    """41 s in three labels, each a frequency in both modalities, in noise."""
    rng = np.random.default_rng(seed)
    streams = {}
    for modality in (ACC, PULSE):
        times = np.arange(int(41 * modality.rate_hz)) / modality.rate_hz
        frequency = np.array([0.0, 2.0, 6.0])[np.minimum(times // 14, 2).astype(int)]
        phase = rng.uniform(0, 6, len(modality.channels))
        wave = np.sin(2 * np.pi * frequency[:, None] * times[:, None] + phase)
        noise = 0.3 * rng.standard_normal((len(times), len(modality.channels)))
        values = (wave + noise).astype(np.float32)
        streams[modality.name] = Stream(modality, np.round(times * 1e9).astype(np.int64), values)
    streams.pop(lacks, None)
    labels = [Label(14 * 10**9 * code, 14 * 10**9 * (code + 1), name) for code, name in enumerate(LABELS)]
    return Recording(f"made-{person}", person, {}, streams, labels)


def made_corpus(seed: int = 1) -> Corpus:
    """Three people; the third has no pulse."""
    recordings = [made_recording("1", seed), made_recording("2", seed + 1), made_recording("3", seed + 2, "pulse")]
    return join_recordings(recordings, DATA)


def made_model() -> ArmletModel:
    """Fresh, always the same."""
    torch.manual_seed(0)
    return build_model(MODEL, (ACC, PULSE), {"acc": 64, "pulse": 41}, len(LABELS))


def pretrain(epochs: int, folder: Path) -> ArmletModel:
    """In double precision.

    VICReg does not depend on where its vectors lie, so some biases have no gradient but rounding errors, and Adam makes
    steps of full size of those, whatever their size: in single precision two orders of summation end in other weights.
    """
    corpus, model = made_corpus(), made_model().double()
    normalisation = corpus.normalisation()
    torch.set_default_dtype(torch.float64)
    for name, signal in corpus.signals.items():
        corpus.signals[name] = signal.astype(np.float64)
    pretraining.pretrain(
        model, corpus, normalisation, msgspec.structs.replace(PRETRAIN, epochs=epochs), CheckpointRecipe(), CPU,
        folder, lambda report: None, lambda done, total: None,
    )  # fmt: skip
    torch.set_default_dtype(torch.float32)
    return model


def tune(folder: Path, steps: list[int]) -> ArmletModel:
    """In single precision; every step is added to ``steps``."""
    corpus = made_corpus()
    normalisation = corpus.normalisation()
    validation = score_windows(made_corpus(9), normalisation)
    return finetune.finetune(
        made_model(), corpus, normalisation, validation, FINETUNE, CheckpointRecipe(), CPU,
        folder, lambda report: None, lambda done, total: steps.append(done),
    )  # fmt: skip


def refusal(batch: int) -> str:
    """What is said of a batch that the processes cannot share."""
    try:
        distributed.share(batch)
    except UsageError as error:
        return str(error)
    return ""


def main(what: str, out: Path) -> None:
    """``compare``: train for 20 steps, and write the weights. ``endless``: write each process's number, and go on."""
    torch.set_num_threads(1)
    steps: list[int] = []
    with distributed.processes(CPU):
        if what == "endless":
            (out / f"rank{distributed.rank()}").write_text(str(os.getpid()))
            pretrain(10**6, out / "checkpoints")
        pretrained = pretrain(2, out.parent / "pretrain")
        tuned = tune(out.parent / "finetune", steps)
        if distributed.is_first():
            state = {"pretrained": pretrained.state_dict(), "tuned": tuned.state_dict()}
            said = refusal(25)
            checkpoints.save(out, {**state, "steps": len(steps), "processes": distributed.world(), "refusal": said})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
