"""Use armlet's windows in a training loop of your own.

Usage: ``python windows.py RECIPE``. Cuts and normalises the labelled windows of the recipe's training people, and fits
scikit-learn's logistic regression on the mean and the deviation of each channel. Prints its macro-F1 on the validation
people.
"""

import sys

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from armlet_train.data import Scored, load_corpus, score_windows
from armlet_train.recipes import find_recipe, load_recipe


def features(people: Scored) -> np.ndarray:
    """(n, features): mean and standard deviation of each channel (zeros where a modality is absent)."""
    windows = people.windows.values()
    return np.concatenate([part for each in windows for part in (each.mean(axis=2), each.std(axis=2))], axis=1)


def main(recipe_name: str) -> None:
    """Fit and score."""
    recipe = load_recipe(find_recipe(recipe_name)).data
    training = load_corpus(recipe, "train")
    normalisation = training.normalisation()
    learning = score_windows(training, normalisation)
    held_out = score_windows(load_corpus(recipe, "validation"), normalisation)
    classifier = LogisticRegression(max_iter=1000).fit(features(learning), learning.truth)
    score = f1_score(held_out.truth, classifier.predict(features(held_out)), average="macro")
    print(f"{len(learning.truth)} windows to learn from, {len(held_out.truth)} held out: macro-F1 {score:.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
