"""The smoothing of decisions in a bundle: the recipe's choice, with numbers from the training people's labels."""

from __future__ import annotations

from armlet_runtime.bundle import HiddenMarkov, Majority
from armlet_runtime.windows import WindowSpec
from armlet_train.data import Corpus
from armlet_train.recipes import ExportRecipe

PSEUDO_COUNT = 1.0
"""Added to each count of transitions (Laplace): what was never seen in training is rare, not impossible."""


def smoothing_of(recipe: ExportRecipe, corpus: Corpus, window: WindowSpec) -> Majority | HiddenMarkov | None:
    """The smoothing that a recipe asks for.

    Args:
        recipe: Its ``[export]``.
        corpus: Training people, whose transitions are counted.
        window: Of the live loop.
    """
    if recipe.smoothing == "majority":
        return Majority(recipe.majority_windows)
    if recipe.smoothing == "none":
        return None
    counts = corpus.label_changes(window.hop_s) + PSEUDO_COUNT
    rows = counts / counts.sum(axis=1, keepdims=True)
    prior = counts.sum(axis=1) / counts.sum()
    return HiddenMarkov(
        tuple(map(tuple, rows.tolist())), tuple(prior.tolist()), min(1.0, window.hop_s / window.length_s)
    )
