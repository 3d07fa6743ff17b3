"""The one-shot table: what one example of a movement is worth that was kept out of all training.

Every row is pretrained without labels, meta-trained on the learned classes and on made episodes, and tested on the
held-out ones, whose windows are centred on each occurrence (a window that would leave its recording is moved inside).
Support and queries of a test episode come from different people; beside it stands the easier test in which they come
from different recordings. No window of training people that touches a held-out label takes part in any training (the
normalisation's mean and deviation are those of all samples).
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from armlet_runtime.arrays import Float32
from armlet_runtime.errors import RecipeError, RunError
from armlet_runtime.machine import Machine, describe
from armlet_runtime.windows import Normalisation

from ..data import Corpus, in_batches, load_corpus
from ..engine import checkpoints, pretrain
from ..fewshot import Distance, EpisodeScore, PrototypeHead, episodes
from ..models import ArmletModel, build_model
from ..recipes import FewShotRecipe, Fusion, Masking, MuMaeModel, MuMaePretrain, Recipe, find_recipe, load_recipe
from .grid import Advance, Cell, Table, run_grid

SUITE = "one-shot"
RECIPE, QUICK_RECIPE = "hapt-mumae-oneshot", "hapt-mumae-tiny"

EPISODE_SEED = 20_000
"""Of the test episodes; the same ones for every row and seed."""

HAND = "gravity at both ends, no training"

ROWS: dict[str, tuple[Masking | None, Fusion]] = {
    "synchronised, cross-attention": ("synchronised", "cross-attention"),
    "synchronised, concatenation": ("synchronised", "concatenation"),
    "independent, cross-attention": ("independent", "cross-attention"),
    "independent, concatenation": ("independent", "concatenation"),
    "no pretraining, cross-attention": (None, "cross-attention"),
}
"""Row to how spans were masked in pretraining (None: no pretraining), and how streams are fused."""


class Row(msgspec.Struct, frozen=True):
    """One row of the table.

    Attributes:
        name: Of the method.
        seeds: Accuracy of each training seed.
        accuracy: Mean over episodes and seeds, support and queries of different people.
        interval: Half the width of its 95 % confidence interval over the episodes.
        people: Accuracy on each person's queries, mean over the seeds.
        recordings_accuracy: Support and queries of different recordings, which may be of the same person.
        recordings_interval: Of that.
    """

    name: str
    seeds: list[float]
    accuracy: float
    interval: float
    people: dict[str, float]
    recordings_accuracy: float
    recordings_interval: float


class OneShotReport(msgspec.Struct, frozen=True):
    """The table, and what it was made of. ``examples``: label to how many there are of it."""

    suite: str
    quick: bool
    machine: Machine
    recipe: str
    split: str
    ways: int
    shots: int
    episodes: int
    learned: tuple[str, ...]
    examples: dict[str, int]
    people: tuple[str, ...]
    rows: list[Row]


class _Trained(msgspec.Struct, frozen=True):
    """What is kept of one row's training with one seed."""

    people: EpisodeScore
    recordings: EpisodeScore


class _Unseen(msgspec.Struct, frozen=True):
    """The examples of the held-out labels.

    Attributes:
        crops: Raw windows by modality and which are there, (n, ...) each; the crops of an example, around its middle.
        truth: (n,) index in the held-out labels.
        people: (n,) whose they are.
        recordings: (n,) which recordings they are in.
    """

    crops: list[tuple[dict[str, Float32], NDArray[np.bool_]]]
    truth: NDArray[np.int64]
    people: NDArray[np.str_]
    recordings: NDArray[np.str_]


def run(
    folder: Path,
    quick: bool,
    device: torch.device,
    advance: Advance,
    split: str = "test",
) -> OneShotReport:
    """Make the table; begun again in the same folder, it goes on where it stopped.

    Args:
        folder: For checkpoints and finished rows.
        quick: Seconds of training, for tests of the path; its figures mean nothing.
        device: CPU or GPU.
        advance: Called with parts done and parts in all.
        split: Whose movements are tested; ``validation`` while something is still being chosen.

    Raises:
        DataError: The data cannot be had.
    """
    recipe = load_recipe(find_recipe(QUICK_RECIPE if quick else RECIPE))
    few = _few(recipe)
    episodes.check_disjoint(recipe.data.labels, recipe.data.hold_out)
    corpus = load_corpus(recipe.data, "train", recipe.presence)
    unseen = _unseen(recipe, split)
    rows = [_hand_row(unseen, few)]
    plan = [(name, seed) for seed in range(few.seeds) for name in ROWS]
    cells = [_cell(_variant(recipe, *ROWS[name], seed), ROWS[name][0], corpus, unseen, folder, device, split)
             for name, seed in plan]  # fmt: skip
    trained = run_grid(cells, _Trained, folder, advance)
    rows += [_row(name, [scores for (row, _), scores in zip(plan, trained, strict=True) if row == name])
             for name in ROWS]  # fmt: skip
    labels, counts = np.unique(unseen.truth, return_counts=True)
    return OneShotReport(
        suite=SUITE,
        quick=quick,
        machine=describe(),
        recipe=QUICK_RECIPE if quick else RECIPE,
        split=split,
        ways=few.ways,
        shots=few.shots,
        episodes=few.test_episodes,
        learned=recipe.data.labels,
        examples={recipe.data.hold_out[label]: int(count) for label, count in zip(labels, counts, strict=True)},
        people=tuple(sorted(set(unseen.people.tolist()), key=int)),
        rows=rows,
    )


def tables(report: OneShotReport) -> list[Table]:
    """The table of a report."""
    title = (
        f"{report.ways}-way {report.shots}-shot on {', '.join(report.examples)}, none of them in training: accuracy "
        f"and 95 % confidence interval over {report.episodes:,} episodes, {len(report.people)} {report.split} people"
    )
    columns = ["method", "different people", "each seed", "lowest to highest person", "different recordings"]
    rows = []
    for row in report.rows:
        people = sorted((value, name) for name, value in row.people.items())
        rows.append([
            row.name,
            f"{row.accuracy:.3f} ± {row.interval:.3f}",
            " ".join(f"{value:.3f}" for value in row.seeds),
            f"{people[0][0]:.2f} ({people[0][1]}) to {people[-1][0]:.2f} ({people[-1][1]})",
            f"{row.recordings_accuracy:.3f} ± {row.recordings_interval:.3f}",
        ])  # fmt: skip
    return [Table(title, columns, rows)]


def _cell(
    recipe: Recipe,
    masking: Masking | None,
    corpus: Corpus,
    unseen: _Unseen,
    folder: Path,
    device: torch.device,
    split: str,
) -> Cell[_Trained]:
    def train_and_score(advance: Advance) -> _Trained:
        few = _few(recipe)
        model, head = _train(recipe, masking, corpus, folder, device, advance)
        return _score(_embed(model, unseen, corpus.normalisation(), few.distance), unseen, head, few)

    return Cell(f"{split}-{checkpoints.fingerprint(recipe)[:16]}.json", train_and_score)


def _few(recipe: Recipe) -> FewShotRecipe:
    if recipe.fewshot is None:
        raise RecipeError("the recipe has no [fewshot], which the one-shot table needs")
    return recipe.fewshot


def _variant(recipe: Recipe, masking: Masking | None, fusion: Fusion, seed: int) -> Recipe:
    """The recipe of one row and seed."""
    assert isinstance(recipe.model, MuMaeModel) and isinstance(recipe.pretrain, MuMaePretrain)
    pretraining = msgspec.structs.replace(recipe.pretrain, seed=seed)
    if masking is None:
        pretraining = msgspec.structs.replace(pretraining, epochs=0)
    else:
        pretraining = msgspec.structs.replace(pretraining, masking=masking)
    return msgspec.structs.replace(
        recipe,
        model=msgspec.structs.replace(recipe.model, fusion=fusion),
        pretrain=pretraining,
        fewshot=msgspec.structs.replace(_few(recipe), seed=seed, seeds=1),  # more seeds: more rows, not others
    )


def _train(
    recipe: Recipe,
    masking: Masking | None,
    corpus: Corpus,
    folder: Path,
    device: torch.device,
    advance: Advance,
) -> tuple[ArmletModel, PrototypeHead]:
    """Pretrain and meta-train; what is pretrained does not hang on the fusion, so both fusions share it.

    ``advance`` is called with steps done and steps in all; pretraining counts for the first half of them.
    """
    assert isinstance(recipe.model, MuMaeModel) and isinstance(recipe.pretrain, MuMaePretrain)
    normalisation = corpus.normalisation()
    keep = (recipe.checkpoints, device, folder / "checkpoints")
    model = _build(recipe, corpus)
    if masking is not None:
        plain = msgspec.structs.replace(recipe.model, fusion="concatenation")
        kept = folder / f"pretrained-{checkpoints.fingerprint(recipe.data, plain, recipe.pretrain)[:16]}.pt"
        if not kept.exists():
            first = _build(msgspec.structs.replace(recipe, model=plain), corpus)
            pretrain.pretrain(
                first, corpus, normalisation, recipe.pretrain, *keep,
                advance=lambda done, total: advance(done, 2 * total),
            )  # fmt: skip
            checkpoints.save(kept, _shared(first))
        _load_shared(model, kept)
    head = episodes.meta_train(
        model, corpus, normalisation, _few(recipe), *keep, lambda done, total: advance(total + done, 2 * total)
    )
    return model, head


def _build(recipe: Recipe, corpus: Corpus) -> ArmletModel:
    torch.manual_seed(recipe.pretrain.seed)
    return build_model(recipe.model, corpus.modalities, corpus.lengths, len(corpus.labels))


def _shared(model: ArmletModel) -> dict[str, torch.Tensor]:
    """What pretraining trains: the encoders and the joint transformer."""
    parts = ("encoders.", "aggregator.joint.")
    return {name: value for name, value in model.state_dict().items() if name.startswith(parts)}


def _load_shared(model: ArmletModel, path: Path) -> None:
    """Load what :func:`_shared` gave; a model with another fusion has further parts, which stay as they are.

    Raises:
        RunError: The file lacks one of the parts, or has another.
    """
    state = checkpoints.load(path)
    wrong = sorted(state.keys() ^ _shared(model).keys())
    if wrong:
        raise RunError(f"{path} lacks or adds weights ({wrong[0]}); delete it, and the suite trains it again")
    model.load_state_dict(state, strict=False)


def _unseen(recipe: Recipe, split: str) -> _Unseen:
    """The windows around each occurrence of a held-out label."""
    few = _few(recipe)
    wanted = msgspec.structs.replace(recipe.data, labels=recipe.data.hold_out, hold_out=())
    corpus = load_corpus(wanted, split, recipe.presence)
    starts = corpus.centred()
    every = corpus.starts(labelled=False, every=1)
    crops = []
    for crop in range(few.test_crops):
        moved = starts + round((crop - (few.test_crops - 1) / 2) * few.test_crop_s * corpus.tick_hz)
        # A crop that would leave its recording stays where the example is.
        inside = np.isin(moved, every) & (
            corpus.recordings_of(moved.clip(0, every[-1])) == corpus.recordings_of(starts)
        )
        moved = np.where(inside, moved, starts)
        crops.append((corpus.windows(moved), corpus.present(moved)))
    return _Unseen(
        crops,
        corpus.labels_of(starts + corpus.length // 2),
        corpus.people_of(starts),
        corpus.recordings_of(starts),
    )


def _embed(model: ArmletModel, unseen: _Unseen, normalisation: dict[str, Normalisation], distance: Distance) -> Float32:
    """(n, size) of the examples: the mean of their crops' embeddings, each of unit length where angles count."""
    parts = []
    for raw, present in unseen.crops:
        windows = {name: normalisation[name].apply(values) for name, values in raw.items()}
        embedded = in_batches(lambda batch, visible: model(batch, visible)[1], windows, present)
        length = np.linalg.norm(embedded, axis=1, keepdims=True) if distance == "cosine" else 1.0
        parts.append(embedded / length)
    mean: Float32 = np.mean(parts, axis=0)
    return mean


def _score(embedded: Float32, unseen: _Unseen, head: PrototypeHead, few: FewShotRecipe) -> _Trained:
    """Both tests, on the same episodes for every row and seed."""
    scores = []
    for groups in (unseen.people, unseen.recordings):
        rng = np.random.default_rng(EPISODE_SEED)
        drawn = episodes.draw(unseen.truth, groups, few.test_episodes, few.ways, few.shots, 1, rng)
        scores.append(episodes.score(embedded, drawn, unseen.people, head))
    return _Trained(*scores)


def _row(name: str, trained: list[_Trained]) -> Row:
    """One row of its seeds. Episodes are the same for each seed, so their intervals are averaged, not narrowed."""
    people = [scores.people for scores in trained]
    return Row(
        name=name,
        seeds=[score.accuracy for score in people],
        accuracy=float(np.mean([score.accuracy for score in people])),
        interval=float(np.mean([score.interval for score in people])),
        people={who: float(np.mean([score.people[who] for score in people])) for who in people[0].people},
        recordings_accuracy=float(np.mean([scores.recordings.accuracy for scores in trained])),
        recordings_interval=float(np.mean([scores.recordings.interval for scores in trained])),
    )


def _hand_row(unseen: _Unseen, few: FewShotRecipe) -> Row:
    """What needs no training: the mean acceleration of the first and of the last tenth of the window."""
    acc = np.mean([windows["acc"] for windows, _ in unseen.crops], axis=0)
    ends = acc.shape[2] // 10
    embedded = np.concatenate([acc[:, :, :ends].mean(axis=2), acc[:, :, -ends:].mean(axis=2)], axis=1)
    return _row(HAND, [_score(embedded, unseen, PrototypeHead("euclidean", 1.0), few)])
