"""The first stage: a trained float model, with the people and the choices that its export needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Protocol

from armlet_runtime.bundle import AGGREGATOR
from armlet_train.data import Labelled, Scored, load_corpus, score_windows, steps_per_epoch
from armlet_train.engine import finetune, run_folder
from armlet_train.models import ArmletModel, fold_batchnorm
from armlet_train.recipes import QatRecipe

from ..bundle import Description, smoothing_of
from ..choose_precision import resolve
from ..quantise import STAGE
from ..streaming import plans


class Progress(Protocol):
    """Where an export shows how far it is."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """A stage of ``total`` steps; the function in the block is called after each."""

    def note(self, text: str) -> None:
        """One line about a result."""


class NoProgress:
    """Shows no progress: what an export reports to by default."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """Count nothing."""
        yield lambda: None

    def note(self, text: str) -> None:
        """Print nothing."""


@dataclass
class Journal:
    """The progress of an export, and the seconds that its stages took."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the duration of the block to the seconds of that name."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)


@dataclass(frozen=True)
class Trained:
    """The input of an export.

    Attributes:
        model: Float model in evaluation mode, without batch normalisation.
        description: Of the model, for the bundle.
        precision: Part to one of :data:`armlet_export.backends.PRECISIONS`, or ``auto`` for all.
        max_auto_loss: What ``auto`` may lose in macro-F1 in any subset on validation people.
        batches: Epoch number to training batches, always the same for the same number.
        batch_count: Batches in an epoch.
        validation: People on whom epochs are selected and the gate measures.
        certify: People of the certificate; usually the same object.
        certify_name: Their name in the certificate, such as ``hapt validation``.
        qat: How to train, and what rounding may cost.
        max_unknown: Share of right decisions on validation people that may become unknown; 0 for none.
    """

    model: ArmletModel
    description: Description
    precision: Mapping[str, str]
    max_auto_loss: float
    batches: Callable[[int], Iterator[Labelled]]
    batch_count: int
    validation: Scored
    certify: Scored
    certify_name: str
    qat: QatRecipe
    max_unknown: float = 0.0


def load_trained(
    run: run_folder.TrainedRun,
    certify_split: str = "validation",
    precision: str | None = None,
    is_incremental: bool = False,
    boards: Sequence[str] = (),
    expires_days: int | None = None,
) -> Trained:
    """A fine-tuned run with the people of its recipe.

    Args:
        run: The run.
        certify_split: People of the certificate, ``validation`` or ``test``.
        precision: For all parts; None for the recipe's.
        is_incremental: Whether encoders get step programs even if the recipe does not ask for them.
        boards: Classes of boards that the bundle is made for; empty for any.
        expires_days: After how many days no board takes the bundle; None for never.

    Raises:
        ExportError: The precision or the step programs are not possible for this model.
        DataError: The data set cannot be read.
    """
    recipe = run.recipe
    training = load_corpus(recipe.data, "train")

    def people(split: str) -> Scored:
        return score_windows(load_corpus(recipe.data, split), run.normalisation)

    validation = people("validation")
    certify = validation if certify_split == "validation" else people(certify_split)
    now = datetime.now(timezone.utc).replace(microsecond=0)
    model = fold_batchnorm(run.model)
    steps = {}
    if is_incremental or recipe.export.incremental:
        steps = plans(model.encoders, run.modalities, run.window)
    description = Description(
        name=run.info.recipe,
        version=now.strftime("%Y%m%d.%H%M%S"),
        created=_iso(now),
        modalities=run.modalities,
        window=run.window,
        normalisation=run.normalisation,
        labels=run.labels,
        token_dim=model.token_dim,
        embedding_dim=model.embedding_dim,
        presence=recipe.presence,
        expires=None if expires_days is None else _iso(now + timedelta(days=expires_days)),
        boards=tuple(boards),
        smoothing=smoothing_of(recipe.export, training, run.window),
        steps=steps,
    )
    parts = [*(modality.name for modality in run.modalities), AGGREGATOR]
    return Trained(
        model=model,
        description=description,
        precision=resolve(recipe.export.precision, parts, precision),
        max_auto_loss=recipe.export.max_auto_loss,
        batches=lambda epoch: finetune.batches(training, run.normalisation, recipe.finetune, epoch, stage=STAGE),
        batch_count=steps_per_epoch(training, recipe.finetune.batch, labelled=True),
        validation=validation,
        certify=certify,
        certify_name=f"{recipe.data.name} {certify_split}",
        qat=recipe.qat,
        max_unknown=recipe.export.max_unknown,
    )


def _iso(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
