"""From recordings to batches: data sets, the grid, the store, windows, augmentation.

Imports the recipes, the distributed root module and the data sets.
"""

from . import arrow_store, user_folder
from .augment import Augment, random_rotations
from .corpus import NO_LABEL, Corpus
from .corpus_loading import (
    Scored,
    find_data_set,
    join_recordings,
    load_corpus,
    score_windows,
    window_spec,
)
from .grid import Piece, on_grid
from .loader import Labelled, Source, Views, draw_epoch, in_batches, steps_per_epoch

__all__ = [
    "NO_LABEL",
    "Augment",
    "Corpus",
    "Labelled",
    "Piece",
    "Scored",
    "Source",
    "Views",
    "arrow_store",
    "draw_epoch",
    "find_data_set",
    "in_batches",
    "join_recordings",
    "load_corpus",
    "on_grid",
    "random_rotations",
    "score_windows",
    "steps_per_epoch",
    "user_folder",
    "window_spec",
]
