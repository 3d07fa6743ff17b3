"""The evaluation suite: every method on the same people, windows and labels, trained as the commands do.

For each method: fine-tuning with all labels on every subset of the modalities and for every person, linear probes on
the pretrained, frozen model with all labels and with few, and beside each subset a *specialist*: the same model trained
from scratch on that subset alone, for as long as the other was fine-tuned. Logistic regression on hand features stands
beside them all.

A suite's folder holds a folder a method, with ordinary runs in it (any of them can be exported) and its figures. A
second start goes on where the first one stopped.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tomli_w
import tomllib
import torch
from rich.console import Console

from armlet_runtime.arrays import Float32
from armlet_runtime.errors import UsageError
from armlet_runtime.files import write_atomic
from armlet_runtime.machine import Machine, describe
from armlet_runtime.modalities import subset_name, subsets
from armlet_runtime.windows import Normalisation

from ..data import Scored, load_corpus, score_windows
from ..engine import finetune, run_finetuning, run_folder, run_pretraining
from ..recipes import Recipe, find_recipe, load_recipe
from . import scores
from .grid import Advance, Cell, Table, run_grid
from .hand_features import hand_features
from .scores import FewLabelScore, People, SubsetScore

METHODS = {
    "crossl": "hapt",
    "crossl-faithful": "hapt-crossl",
    "mumae": "hapt-mumae",
    "dual": "hapt-dual",
    "supervised": "hapt-supervised",
}
"""Method to recipe. All are of one data set, with the same windows and labels."""

HAND = "hand features"


class Figures(msgspec.Struct, frozen=True):
    """What one method reached with one training seed.

    Attributes:
        method: Its name in :data:`METHODS`, or :data:`HAND`.
        recipe: The recipe's name.
        seed: Of its training.
        parameters: Of the model.
        seconds: What pretraining and fine-tuning took.
        finetuned: With all labels, a row a subset; none for hand features.
        specialists: A row a subset, each from a model of its own that learned that subset and no smaller one.
        probe: Linear probe with all labels, a row a subset.
        few_label: Linear probe with few labels on all modalities.
    """

    method: str
    recipe: str
    seed: int = 0
    parameters: int = 0
    seconds: dict[str, float] = {}
    finetuned: list[SubsetScore] = []
    specialists: list[SubsetScore] = []
    probe: list[SubsetScore] = []
    few_label: list[FewLabelScore] = []


class SuiteReport(msgspec.Struct, frozen=True):
    """What ``armlet evaluate --suite hapt --json`` writes. ``methods``: a row a method and training seed."""

    suite: str
    quick: bool
    split: str
    labels: tuple[str, ...]
    windows: int
    methods: list[Figures]
    machine: Machine


@dataclass(frozen=True)
class Suite:
    """One suite in one folder.

    Attributes:
        folder: For runs and figures.
        split: People to score on, ``validation`` or ``test``.
        quick: One epoch each and two draws, for tests of the path.
        device: CPU or GPU.
        console: Where the stages are named.
        progress: As in :func:`armlet_train.engine.pretrain.run_pretraining`.
    """

    folder: Path
    split: str
    quick: bool
    device: torch.device
    console: Console
    progress: Callable[[str], AbstractContextManager[Callable[[int, int], None]]]

    def run(self, methods: list[str], seeds: int) -> SuiteReport:
        """Train and score what has no figures yet.

        Args:
            methods: Names in :data:`METHODS`.
            seeds: Trainings of each, with the recipe's seed and those that follow it.

        Raises:
            UsageError: A method is not known.
        """
        unknown = [method for method in methods if method not in METHODS]
        if unknown:
            raise UsageError(f"the suite has no method '{unknown[0]}'; it has {', '.join(METHODS)}")
        recipe = load_recipe(find_recipe(METHODS[methods[0]]))
        cells = [self._hand_features_cell(recipe, METHODS[methods[0]])]
        cells += [self._cell(method, number) for method in methods for number in range(seeds)]
        figures = run_grid(cells, Figures, self.folder)
        windows = int(np.sum(figures[0].probe[0].confusion))
        return SuiteReport("hapt", self.quick, self.split, recipe.data.labels, windows, figures, describe())

    def _cell(self, method: str, number: int) -> Cell[Figures]:
        """A method with the seed of its recipe, or one of those that follow it."""
        table = tomllib.loads(find_recipe(METHODS[method]).read_text())
        for stage in ("pretrain", "finetune"):
            table[stage]["seed"] += number
            if self.quick and "epochs" in table[stage]:
                table[stage]["epochs"] = 1
        folder = Path(method) / str(number)
        file = folder / f"figures-{self.split}-{_digest(table, self.quick)[:12]}.json"
        return Cell(str(file), lambda _: self._train_and_score(method, table, self.folder / folder))

    def _train_and_score(self, method: str, table: Mapping[str, Any], folder: Path) -> Figures:
        seed = table["pretrain"]["seed"]
        self.console.rule(f"{method}, training seed {seed}")
        tuned = self._trained(folder, table)
        specialists = [self._specialist(table, subset) for subset in subsets(table["data"]["modalities"])]
        pretrained = run_folder.load_run(folder / "pretrain", "pretrain")
        people = _people(pretrained.recipe, self.split, pretrained.normalisation)
        features = scores.model_features(pretrained.model)
        probe, few = self._probes(features, people, tuned.model.modalities, tuned.labels)
        return Figures(
            method=method,
            recipe=METHODS[method],
            seed=seed,
            parameters=tuned.info.parameters,
            seconds={"pretrain": pretrained.info.seconds, "finetune": tuned.info.seconds},
            finetuned=score_run(tuned, self.split),
            specialists=[score_run(run, self.split)[0] for run in specialists],
            probe=probe,
            few_label=few,
        )

    def _trained(self, folder: Path, table: Mapping[str, Any]) -> run_folder.TrainedRun:
        """Pretrain and fine-tune, as far as that has not been done."""
        text = tomli_w.dumps(table).encode()
        recipe = folder / "recipe.toml"
        if recipe.exists() and recipe.read_bytes() != text:
            shutil.rmtree(folder)  # of an earlier version of the recipe, or of --quick
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(recipe, text)
        pretrained, tuned = folder / "pretrain", folder / "finetune"
        if not (pretrained / "run.json").exists():
            self.console.print(f"[dim]pretraining {pretrained}[/dim]", highlight=False, soft_wrap=True)
            run_pretraining(recipe, pretrained, self.device, self.progress)
        if not (tuned / "run.json").exists():
            self.console.print(f"[dim]fine-tuning {tuned}[/dim]", highlight=False, soft_wrap=True)
            run_finetuning(recipe, pretrained, tuned, self.device, self.progress)
        return run_folder.load_run(tuned, "finetune")

    def _specialist(self, table: Mapping[str, Any], subset: tuple[str, ...]) -> run_folder.TrainedRun:
        """The same model from scratch on a subset alone. Methods with the same model have the same specialists."""
        cut = dict(table["data"], modalities=list(subset))
        for key in ("knee", "scale"):
            cut[key] = {name: value for name, value in cut.get(key, {}).items() if name in subset}
        no_pretraining = {"method": "none", "seed": table["finetune"]["seed"]}
        specialist = dict(table, data=cut, pretrain=no_pretraining, finetune=dict(table["finetune"], subsets="whole"))
        folder = f"{subset_name(subset)}-{_digest(specialist)[:12]}"
        return self._trained(self.folder / "specialists" / folder, specialist)

    def _hand_features_cell(self, recipe: Recipe, name: str) -> Cell[Figures]:
        """Logistic regression on hand features, of windows in their units."""

        def features(windows: Scored, subset: tuple[str, ...]) -> Float32:
            return hand_features({modality: windows.windows[modality] for modality in subset})

        def score(_: Advance) -> Figures:
            self.console.rule(HAND)
            people = _people(recipe, self.split, None)
            probe, few = self._probes(features, people, recipe.data.modalities, recipe.data.labels)
            return Figures(HAND, name, probe=probe, few_label=few)

        return Cell(f"hand-features-{self.split}-{_digest(recipe.data, self.quick)[:12]}.json", score)

    def _probes(
        self, features: scores.Features, people: People, names: Sequence[str], labels: Sequence[str]
    ) -> tuple[list[SubsetScore], list[FewLabelScore]]:
        """Linear probes with all labels on every subset, and with few labels on all modalities."""
        self.console.print("linear probes", style="dim")
        probes, few = [], []
        for subset in subsets(names):
            cut = scores.standardise(features, people, subset)
            predicted = scores.fit(cut.labelled, people.labelled.truth).predict(cut.scored)
            probes.append(scores.score_subset(subset, predicted, people.scored, labels))
            if len(subset) == len(names):
                draws = 2 if self.quick else scores.SEEDS
                few = scores.few_label(cut, people.labelled.truth, people.scored.truth, labels, draws)
        return probes, few


def _people(recipe: Recipe, split: str, normalisation: dict[str, Normalisation] | None) -> People:
    train = load_corpus(recipe.data, "train", recipe.presence)
    scored = load_corpus(recipe.data, split, recipe.presence)
    return scores.probe_people(train, scored, normalisation)


def score_run(run: run_folder.TrainedRun, split: str) -> list[SubsetScore]:
    """Figures of a fine-tuned run on every subset."""
    corpus = load_corpus(run.recipe.data, split, run.recipe.presence)
    scored = score_windows(corpus, run.normalisation)
    predictions = finetune.all_logits(run.model, scored.windows, scored.present).argmax(axis=2)
    return scores.score(predictions, run.model.modalities, scored, run.labels)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(msgspec.json.encode((version("armlet"), *parts))).hexdigest()


def tables(report: SuiteReport) -> list[Table]:
    """The tables of a report: fine-tuned, by person, and with few labels."""
    methods = {
        figures.method: [row for row in report.methods if row.method == figures.method] for figures in report.methods
    }
    trained = {method: seeds for method, seeds in methods.items() if seeds[0].finetuned}
    where = f"macro-F1 on {report.windows} windows of {report.split} people"
    made = []
    if trained:
        names = [score.subset for score in next(iter(trained.values()))[0].finetuned]
        made.append(Table(
            f"Fine-tuned with all labels, {where}; in brackets the specialist of that subset",
            ["method", "parameters", "seeds", *names],
            [[method, f"{seeds[0].parameters:,}", str(len(seeds)), *_with_specialists(seeds)]
             for method, seeds in trained.items()],
        ))  # fmt: skip
        people = list(next(iter(trained.values()))[0].finetuned[0].people)
        made.append(Table(
            f"The same by person ({names[0]})",
            ["method", *people],
            [[method, *(_mean([seed.finetuned[0].people[person] for seed in seeds]) for person in people)]
             for method, seeds in trained.items()],
        ))  # fmt: skip
    few = report.methods[0].few_label
    made.append(Table(
        f"Linear probe with k labelled windows of each class, mean and deviation of {few[0].seeds} draws, {where}",
        ["method", *(f"k = {score.k}" for score in few), "all labels"],
        [[method, *_few(seeds), _mean([seed.probe[0].macro_f1 for seed in seeds])]
         for method, seeds in methods.items()],
    ))  # fmt: skip
    return made


def _with_specialists(seeds: list[Figures]) -> list[str]:
    cells = []
    for number in range(len(seeds[0].finetuned)):
        one_model = _mean([seed.finetuned[number].macro_f1 for seed in seeds])
        specialist = _mean([seed.specialists[number].macro_f1 for seed in seeds])
        cells.append(f"{one_model} ({specialist})")
    return cells


def _few(seeds: list[Figures]) -> list[str]:
    cells = []
    for place in range(len(seeds[0].few_label)):
        scores = [seed.few_label[place] for seed in seeds]
        cells.append(f"{_mean([score.macro_f1 for score in scores])} ± {_mean([score.deviation for score in scores])}")
    return cells


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}"
