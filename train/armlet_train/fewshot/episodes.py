"""Episodes of few-shot learning: N classes, K labelled examples of each, and queries to be classified.

Support and queries of an episode come from different people (or, if asked for, different recordings): what is tested is
whether one person's example tells what another person does. Meta-training goes through episodes of the learned classes,
and through made ones (:mod:`armlet_train.fewshot.synthetic_motion`); the classes of the test are in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from armlet_runtime.arrays import Float32, Int64
from armlet_runtime.errors import DataError, RecipeError
from armlet_runtime.windows import Normalisation

from ..data import NO_LABEL, Augment, Corpus, Labelled, Source
from ..engine import checkpoints, train
from ..methods import Objective
from ..models import ArmletModel
from ..recipes import CheckpointRecipe, FewShotRecipe
from .prototypes import PrototypeHead
from .synthetic_motion import made_episodes, splice

STAGE = 4
"""Tells these batches apart from those of other trainings with the same seed; see
:mod:`armlet_train.engine.checkpoints`."""

EXAMPLES = 20
"""Of each class and person, drawn anew for every epoch of meta-training."""

STARTS_EVERY = 16
"""Every how many ticks a window of a meta-training class may begin; a third of a second at 50 Hz."""

DRAWS = 1000
"""Attempts to split the people for an episode before an error is raised."""

NORMAL_95 = 1.96
"""Half the width of the middle 95 % of a normal distribution, in standard deviations."""


class Episodes(NamedTuple):
    """Indices of examples: ``support`` (episodes, ways, shots) and ``queries`` (episodes, ways, queries)."""

    support: Int64
    queries: Int64


class EpisodeScore(msgspec.Struct, frozen=True):
    """Accuracy over episodes.

    Attributes:
        accuracy: Mean over the episodes.
        interval: Half the width of the mean's 95 % confidence interval: 1.96 standard errors over the episodes. It says
            how well the episodes were averaged, not how other people would differ; for that see ``people``.
        episodes: How many.
        people: Query's group (person) to the accuracy on its queries.
    """

    accuracy: float
    interval: float
    episodes: int
    people: dict[str, float]


def check_disjoint(learned: tuple[str, ...], unseen: tuple[str, ...]) -> None:
    """Refuse classes that are learned from and tested as unseen.

    Raises:
        RecipeError: A label is in both.
    """
    both = [name for name in unseen if name in learned]
    if both:
        raise RecipeError(
            f"{', '.join(both)} cannot be learned and unseen; take them out of [data] labels or of hold_out"
        )


def draw(
    truth: Int64, groups: NDArray[np.str_], count: int, ways: int, shots: int, queries: int, rng: np.random.Generator
) -> Episodes:
    """Draw episodes.

    For each one classes are drawn, and the groups are split in two halves at random: support comes from the one,
    queries from the other. Where a class lacks examples on a side, classes and halves are drawn anew.

    Args:
        truth: (n,) class of each example.
        groups: (n,) whose example it is: people, or recordings.
        count: Episodes.
        ways: Classes of an episode.
        shots: Labelled examples of each.
        queries: Queries of each.
        rng: Where chance comes from.

    Raises:
        DataError: There are too few classes, groups or examples.
    """
    classes, (names, owners) = np.unique(truth), np.unique(groups, return_inverse=True)
    if len(classes) < ways:
        raise DataError(f"{ways}-way episodes need {ways} classes, and there are {len(classes)}")
    members = {label: np.flatnonzero(truth == label) for label in classes}
    support = np.zeros((count, ways, shots), np.int64)
    asked = np.zeros((count, ways, queries), np.int64)
    for episode in range(count):
        for _ in range(DRAWS):
            giving = np.zeros(len(names), np.bool_)
            giving[rng.permutation(len(names))[: (len(names) + 1) // 2]] = True
            sides = [
                (members[label][giving[owners[members[label]]]], members[label][~giving[owners[members[label]]]])
                for label in rng.choice(classes, ways, replace=False)
            ]
            if all(len(left) >= shots and len(right) >= queries for left, right in sides):
                break
        else:
            raise DataError(
                f"{ways}-way {shots}-shot episodes with {queries} queries cannot be drawn from {len(truth)} examples "
                f"of {len(names)} people or recordings: support and queries must not share a person or a recording"
            )
        for way, (left, right) in enumerate(sides):
            support[episode, way] = rng.choice(left, shots, replace=False)
            asked[episode, way] = rng.choice(right, queries, replace=False)
    return Episodes(support, asked)


def score(
    embeddings: Float32, episodes: Episodes, groups: NDArray[np.str_], head: PrototypeHead, transductive_steps: int = 0
) -> EpisodeScore:
    """Accuracy of a head on episodes.

    Args:
        embeddings: (n, size) of the examples.
        episodes: Indices of them.
        groups: (n,) whose example each is.
        head: Decides.
        transductive_steps: 0: each query is decided on its own; see
            :class:`armlet_train.fewshot.prototypes.PrototypeHead`.
    """
    ways = episodes.support.shape[1]
    points = torch.from_numpy(embeddings)
    with torch.no_grad():
        support, queries = points[episodes.support], points[episodes.queries].flatten(1, 2)
        decided = head(queries, support, transductive_steps).argmax(dim=2).numpy()
    truth = np.repeat(np.arange(ways), episodes.queries.shape[2])
    right = decided == truth
    owners = groups[episodes.queries.reshape(len(right), -1)]
    each = right.mean(axis=1)
    return EpisodeScore(
        accuracy=float(each.mean()),
        interval=float(NORMAL_95 * each.std(ddof=1) / np.sqrt(len(each))),
        episodes=len(each),
        people={str(name): float(right[owners == name].mean()) for name in sorted(set(owners.ravel()))},
    )


class Examples(NamedTuple):
    """Examples of the classes of meta-training: ``first`` and ``second`` starts, (n,) each, ``truth`` and ``people``.

    Learned labels are the first classes, and their two starts are the same; a spliced one goes from a window of one
    label to the same person's window of another.
    """

    first: Int64
    second: Int64
    truth: Int64
    people: NDArray[np.str_]


class Pool:
    """What examples are drawn from.

    Attributes:
        classes: Pairs of learned labels' indices: each with itself, then those that are spliced.
    """

    def __init__(self, corpus: Corpus, unspliced: tuple[str, ...]) -> None:
        """Sort the windows of the learned labels by label and person."""
        starts = corpus.starts(labelled=True, every=STARTS_EVERY)
        truth, people = corpus.labels_of(starts), corpus.people_of(starts)
        self._starts = {
            (label, str(name)): own
            for label in range(len(corpus.labels))
            for name in np.unique(people)
            if len(own := starts[(truth == label) & (people == name)])
        }
        self._people = sorted({name for _, name in self._starts})
        labels = range(len(corpus.labels))
        apart = {corpus.labels.index(name) for name in unspliced}
        spliced = [(a, b) for a in labels for b in labels if a != b and not {a, b} <= apart]
        self.classes = [(label, label) for label in labels] + spliced

    def examples(self, each: int, rng: np.random.Generator) -> Examples:
        """``each`` examples of every class by every person who has windows for it."""
        parts = []
        for number, (a, b) in enumerate(self.classes):
            for name in self._people:
                if (a, name) in self._starts and (b, name) in self._starts:
                    first = rng.choice(self._starts[a, name], each)
                    second = first if a == b else rng.choice(self._starts[b, name], each)
                    parts.append(Examples(first, second, np.full(each, number), np.full(each, name)))
        return Examples(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def alike(self, count: int, each: int, rng: np.random.Generator) -> Int64:
        """(count, each) starts: windows of one label, of different people as far as there are enough."""
        labels = sorted({label for label, _ in self._starts})
        result = np.zeros((count, each), np.int64)
        for row, label in enumerate(rng.choice(labels, count)):
            people = [name for name in self._people if (label, name) in self._starts]
            chosen = rng.choice(people, each, replace=len(people) < each)
            result[row] = [rng.choice(self._starts[label, name]) for name in chosen]
        return result


class Episodic(Objective):
    """A model under a prototype head, trained on episodes.

    The loss is that of Mu-MAE's one-shot stage: all classes of meta-training told apart by a classifier, plus the
    queries of each episode told apart by its supports.

    Attributes:
        model: What learns.
        head: Its scale learns, too.
        classifier: Of the classes of meta-training; thrown away afterwards.
    """

    uses_all = False  # the model's own classifier takes no part

    def __init__(self, model: ArmletModel, recipe: FewShotRecipe, classes: int) -> None:
        """Put a head and a classifier on the model."""
        super().__init__()
        self.model, self.recipe = model, recipe
        self.head = PrototypeHead(recipe.distance, recipe.scale)
        self.classifier = nn.Linear(model.embedding_dim, classes)

    def forward(self, windows: dict[str, Tensor], present: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms of the loss.

        Args:
            windows: Modality name to (episodes * ways * (shots + queries), channels, samples), in this order.
            present: (the same, modalities) bool.
            labels: (the same,) indices of classes, or :data:`armlet_train.data.corpus.NO_LABEL` in made episodes.
        """
        recipe = self.recipe
        _, embedding = self.model(windows, present)
        examples = embedding.float().reshape(-1, recipe.ways, recipe.shots + recipe.queries, embedding.shape[1])
        similar = self.head(examples[:, :, recipe.shots :].flatten(1, 2), examples[:, :, : recipe.shots])
        truth = torch.arange(recipe.ways, device=labels.device).repeat_interleave(recipe.queries)
        episode = F.cross_entropy(similar.flatten(0, 1), truth.repeat(similar.shape[0]))
        logits = self.classifier(torch.relu(embedding)).float()
        wrong = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")
        classification = wrong / (labels != NO_LABEL).sum().clamp_min(1)
        loss = recipe.classification * classification + recipe.episode * episode
        return {"loss": loss, "classification": classification, "episode": episode}


def meta_train(
    model: ArmletModel,
    corpus: Corpus,
    normalisation: Mapping[str, Normalisation],
    recipe: FewShotRecipe,
    keeping: CheckpointRecipe,
    device: torch.device,
    folder: Path,
    advance: Callable[[int, int], None],
) -> PrototypeHead:
    """Train ``model`` on episodes, in place; a second call with the same arguments goes on from the last checkpoint.

    Args:
        model: Pretrained, or fresh; afterwards on the CPU, in evaluation mode.
        corpus: Training people's recordings, with the learned classes as labels.
        normalisation: Theirs.
        recipe: Numbers.
        keeping: When to write checkpoints.
        device: CPU or GPU.
        folder: For checkpoints.
        advance: Called after each step with steps done and steps in all.

    Returns:
        The head with its learned scale.

    Raises:
        DataError: Episodes cannot be drawn from the recordings.
        RecipeError: Made episodes are asked for, and the modalities are not those of an IMU; or a label is unknown.
        RunError: The loss is not finite.
    """
    rates = {modality.rate_hz for modality in corpus.modalities}
    if recipe.made and not ({"acc", "gyro"} <= set(model.modalities) and len(rates) == 1):
        raise RecipeError("[fewshot] made episodes need the modalities acc and gyro of one rate; set made = 0")
    if strange := set(recipe.unspliced) - set(corpus.labels):
        raise RecipeError(f"[fewshot] unspliced names {', '.join(sorted(strange))}, which is not among [data] labels")
    source, augment = Source(corpus, device), Augment(recipe.augment, normalisation, device)
    pool = Pool(corpus, recipe.unspliced)
    made = round(recipe.made * recipe.batch)
    each = recipe.shots + recipe.queries

    def batches(order: np.random.Generator, first: int) -> Iterator[Labelled]:
        real = pool.examples(EXAMPLES, order)
        drawn = draw(
            real.truth,
            real.people,
            recipe.steps * (recipe.batch - made),
            recipe.ways,
            recipe.shots,
            recipe.queries,
            order,
        )
        chosen = np.concatenate(drawn, axis=2).reshape(recipe.steps, -1)
        alike = pool.alike(recipe.steps * made * recipe.ways, each, order).reshape(recipe.steps, -1)
        plan = np.concatenate([real.first[chosen], real.second[chosen], alike], axis=1)[first:]
        labels = torch.from_numpy(np.pad(real.truth[chosen], ((0, 0), (0, alike.shape[1])), constant_values=NO_LABEL))
        count = chosen.shape[1]
        for batch, truth in zip(source.batches(plan), labels[first:].to(device), strict=True):
            # Side by side: windows that a class begins with, those that it ends with, and those of made episodes.
            begin, end, still = (
                {name: window[part] for name, window in batch.windows.items()}
                for part in (slice(count), slice(count, 2 * count), slice(2 * count, None))
            )
            if made:
                turned = made_episodes(still["acc"], still["gyro"], made, recipe.ways, corpus.tick_hz)
                still["acc"], still["gyro"] = turned
            windows = {name: torch.cat([window, still[name]]) for name, window in splice(begin, end).items()}
            present = batch.present[:count] & batch.present[count : 2 * count]
            yield Labelled(augment(windows), torch.cat([present, batch.present[2 * count :]]), truth)

    torch.manual_seed(recipe.seed)
    objective = Episodic(model, recipe, len(pool.classes))
    expected = checkpoints.fingerprint(recipe, corpus.wearers, checkpoints.state_digest(model))
    keeper = checkpoints.Keeper(folder, "fewshot", expected, keeping)
    train(objective, batches, recipe.steps, recipe, STAGE, device, keeper, lambda epoch, terms: None, advance)
    model.to("cpu").eval()
    return objective.head.to("cpu")
