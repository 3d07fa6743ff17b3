"""A small model of the real kind, fine-tuned for seconds on made signals: all that an export starts from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from torch import Tensor

from armlet_export.backends.base import LoweredPart, Part, Signature
from armlet_export.backends.registry import lower_part
from armlet_export.bundle.draft import Description
from armlet_export.pipeline import ExportReport, Trained, export_model
from armlet_export.quantise.fake_quant import learn_ranges, prepare
from armlet_export.quantise.qat import STAGE, prepare_model, train
from armlet_runtime.bundle.manifest import Presence
from armlet_runtime.engines.registry import get_engine
from armlet_runtime.modalities import Modality
from armlet_runtime.signals.recording import Label, Recording, Stream
from armlet_runtime.windows import WindowSpec
from armlet_train.data import Corpus, join_recordings, score_windows
from armlet_train.data.loader import steps_per_epoch
from armlet_train.engine import finetune
from armlet_train.engine.finetune import all_logits
from armlet_train.models.base import ArmletModel, fold_batchnorm
from armlet_train.models.build import build_model
from armlet_train.recipes import AugmentRecipe, CheckpointRecipe, ConvModel, DataRecipe, FinetuneRecipe, QatRecipe

from . import modules

MODALITIES = (Modality("acc", ("x", "y", "z"), "g", 50.0), Modality("gyro", ("x", "y"), "rad/s", 50.0))
LABELS = ("still", "slow", "fast")
MODEL = ConvModel(
    channels=(8, 12), kernels=(5, 3), strides=(2, 2), token_dim=16, hidden_dim=24, embedding_dim=16, dropout=0.1
)
AUGMENT = AugmentRecipe(rotation_deg=5.0, scale=0.02, jitter=0.02, gap=0.1)
FINETUNE = FinetuneRecipe(
    epochs=15, batch=32, learning_rate=5e-3, weight_decay=0.0, label_smoothing=0.0, average=0.9, seed=0, augment=AUGMENT
)
QAT = QatRecipe(epochs=2, learning_rate=5e-4, distillation=0.9, frozen_epochs=1, max_f1_loss=0.02, min_agreement=0.97)
LENGTH = 64
DATA = DataRecipe("made", ("acc", "gyro"), LABELS, LENGTH / 50.0, LENGTH / 100.0, 0.32)


def made_corpus(people: tuple[str, ...], seed: int) -> Corpus:
    """Each person stays in each label for a while; a label is a frequency, in both modalities, in noise."""
    rng = np.random.default_rng(seed)
    count = 1200
    recordings = []
    for person in people:
        for label, frequency in zip(LABELS, (0.0, 3.0, 9.0), strict=True):
            seconds = np.arange(count) / 50.0
            times_ns = np.arange(count, dtype=np.int64) * 20_000_000
            streams = {}
            for modality in MODALITIES:
                phase = rng.uniform(0, 6, len(modality.channels))
                wave = np.sin(2 * np.pi * frequency * seconds[:, None] + phase) * (frequency > 0)
                noise = 0.3 * rng.standard_normal((count, len(modality.channels)))
                streams[modality.name] = Stream(modality, times_ns, (0.5 + wave + noise).astype(np.float32))
            whole = Label(0, count * 20_000_000, label)
            recordings.append(Recording(f"{person}-{label}", person, {}, streams, [whole]))
    return join_recordings(recordings, DATA)


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.set_num_threads(1)  # as the commands do; sums in another number of threads end in other weights
    torch.manual_seed(0)
    corpus, normalisation = (made := made_corpus(("1", "2"), seed=1)), made.normalisation()
    validation = score_windows(made_corpus(("3", "10"), seed=2), normalisation)
    fresh = build_model(MODEL, MODALITIES, corpus.lengths, len(LABELS))
    model = finetune.finetune(
        fresh, corpus, normalisation, validation, FINETUNE, CheckpointRecipe(), torch.device("cpu"),
        tmp_path_factory.mktemp("finetune"), lambda report: None, lambda done, total: None,
    )  # fmt: skip
    return Trained(
        model=fold_batchnorm(model),
        description=Description(
            name="made",
            version="1",
            created="2026-01-01T00:00:00Z",
            modalities=MODALITIES,
            window=WindowSpec(LENGTH / 50.0, 0.32),
            normalisation=normalisation,
            labels=LABELS,
            token_dim=MODEL.token_dim,
            embedding_dim=MODEL.embedding_dim,
            presence=Presence(),
        ),
        precision=dict.fromkeys(("acc", "gyro", "aggregator"), "int8"),
        max_auto_loss=0.02,
        batches=lambda epoch: finetune.batches(corpus, normalisation, FINETUNE, epoch, stage=STAGE),
        batch_count=steps_per_epoch(corpus, FINETUNE.batch, labelled=True),
        validation=validation,
        certify=validation,
        certify_name="made validation",
        qat=QAT,
        max_unknown=0.02,
    )


def prepared(material: Trained) -> ArmletModel:
    parts = material.description.parts
    return prepare_model(material.model, {part: material.description.signature(part).example() for part in parts})


@pytest.fixture
def fresh_student(material: Trained) -> Callable[[], ArmletModel]:
    """Makes untrained prepared models."""
    return lambda: prepared(material)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="session")
def student(material: Trained, work: Path) -> ArmletModel:
    """Trained to the end, its checkpoint in ``work``."""
    model = prepared(material)
    train(
        material.model, model, material.qat, material.batches, material.batch_count, material.validation,
        all_logits(material.model, material.validation.windows), work, lambda report: None, lambda: None,
    )  # fmt: skip
    return model


@dataclass
class Recorder:
    """A progress that keeps what it is told."""

    stages: list[tuple[str, int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        steps = [0]

        def step() -> None:
            steps[0] += 1

        yield step
        self.stages.append((title, steps[0], total))

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@dataclass(frozen=True)
class Exported:
    report: ExportReport
    bundle: Path
    key: Ed25519PrivateKey
    progress: Recorder


@pytest.fixture(scope="session")
def exported(material: Trained, student: ArmletModel, work: Path) -> Exported:
    """A whole export; its training is found in the checkpoint of ``student``."""
    key, bundle, progress = Ed25519PrivateKey.generate(), work / "made.armlet", Recorder()
    report = export_model(material, ("onnx", "litert", "executorch"), key, work, bundle, progress)
    return Exported(report, bundle, key, progress)


@pytest.fixture(scope="session")
def tiny() -> Callable[[str, str, str], LoweredPart]:
    """Module of :mod:`.modules`, precision and engine to the finished program, each made once."""
    torch.set_num_threads(1)
    return _tiny


@cache
def tiny_part(name: str, precision: str) -> Part:
    """A small module as a part; for int8 with ranges of random inputs."""
    torch.manual_seed(0)
    module = getattr(modules, name)()
    shape = module.shape
    graph = None
    if precision == "int8":
        graph = prepare(module, torch.zeros(shape))
        for _ in range(3):
            graph(torch.randn(32, *shape[1:]))
        learn_ranges(graph, False)
    with torch.no_grad():
        made = module(torch.zeros(shape))
    outputs = made if isinstance(made, tuple) else (made,)
    names = ("logits", "embedding") if len(outputs) == 2 else ("token",)
    signature = Signature(
        "window" if len(shape) == 3 else "tokens",
        shape,
        {name: tuple(output.shape) for name, output in zip(names, outputs, strict=True)},
    )
    return Part(module, signature, precision, graph)


@cache
def _tiny(name: str, precision: str, engine: str) -> LoweredPart:
    return lower_part(engine, tiny_part(name, precision))


def run_tiny(engine: str, program: LoweredPart, part: Part, inputs: Tensor) -> list[NDArray[np.float32]]:
    """The outputs of a finished program for a batch of inputs, in the order of its signature."""
    signature = part.signature
    loaded = get_engine(engine).load(program.data, {signature.input: signature.input_shape}, signature.outputs)
    try:
        rows = [loaded({signature.input: row[None].numpy()}) for row in inputs]
    finally:
        loaded.close()
    return [np.concatenate([row[name] for row in rows]) for name in signature.outputs]
