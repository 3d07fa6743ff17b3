"""From the recordings of a data set to a corpus: by split, from recordings at hand, and as windows to score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.arrays import Bool, Float32, Int64
from armlet_runtime.bundle import Presence
from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Recording
from armlet_runtime.windows import Normalisation, WindowSpec

from ..recipes import DataRecipe
from .arrow_store import is_store, open_store, read_pieces
from .corpus import Corpus
from .datasets import KNOWN, DataSet, Entry, open_data_set
from .grid import Piece, on_grid
from .user_folder import open_folder


@dataclass(frozen=True)
class Scored:
    """Windows to score: at regular distances, with one label each, of some people.

    Attributes:
        windows: Modality name to (n, channels, samples) normalised float32; anything where it is not present.
        truth: (n,) label indices.
        people: (n,) wearers.
        present: (n, modalities) which modalities each window really has.
    """

    windows: dict[str, Float32]
    truth: Int64
    people: NDArray[np.str_]
    present: Bool

    def having(self, names: Sequence[str], subset: Sequence[str]) -> Bool:
        """(n,) which windows have every modality of a subset; ``names``: of all modalities, in their order."""
        return np.asarray(self.present[:, [names.index(name) for name in subset]].all(axis=1))


def window_spec(recipe: DataRecipe) -> WindowSpec:
    """The windows of the live loop."""
    return WindowSpec(recipe.window_s, recipe.hop_s)


def load_corpus(recipe: DataRecipe, split: str, presence: Presence | None = None) -> Corpus:
    """The recordings of one split (``train``, ``validation`` or ``test``) of the recipe's data set.

    Args:
        recipe: What to learn from.
        split: Whose recordings.
        presence: When a modality counts as present; the default rules if not given.

    Raises:
        DataError: The data cannot be had, or lack one of the recipe's modalities or labels.
    """
    hold_out = recipe.hold_out if split == "train" else ()
    if is_store(Path(recipe.name)):
        prepared = Path(recipe.name)
        modalities = _pick(recipe, *open_store(prepared))
        mapped = read_pieces(prepared, split, modalities)
        return assemble(mapped, modalities, recipe, presence, hold_out, in_memory=False)
    data_set, entries = find_data_set(recipe.name, recipe.path)
    modalities = _pick(recipe, data_set.name, data_set.modalities, data_set.labels)
    recordings = (entry.read() for entry in entries if entry.split == split)
    pieces = [on_grid(recording, modalities) for recording in recordings]
    return assemble(pieces, modalities, recipe, presence, hold_out)


def find_data_set(name: str, path: str | Path | None = None) -> tuple[DataSet, list[Entry]]:
    """A data set that armlet knows, or a folder in armlet's format, and its recordings, not yet read.

    Raises:
        DataError: There is no such data set, or its description has a mistake.
    """
    if name not in KNOWN and Path(name).is_dir():
        if path is not None:
            raise DataError(f"{name} is a folder: it needs no [data] path")
        return open_folder(Path(name))
    return open_data_set(name, path)


def join_recordings(recordings: Sequence[Recording], recipe: DataRecipe, presence: Presence | None = None) -> Corpus:
    """Bring recordings that are at hand onto the model's grid.

    Raises:
        DataError: There is no recording, or none has one of the modalities.
    """
    known = {name: stream.modality for recording in recordings for name, stream in recording.streams.items()}
    modalities = _pick(recipe, recipe.name, tuple(known.values()), (*recipe.labels, *recipe.hold_out))
    return assemble([on_grid(recording, modalities) for recording in recordings], modalities, recipe, presence)


def assemble(
    pieces: Iterable[Piece | None],
    modalities: tuple[Modality, ...],
    recipe: DataRecipe,
    presence: Presence | None = None,
    hold_out: tuple[str, ...] = (),
    in_memory: bool = True,
) -> Corpus:
    """A corpus of pieces, less those that have none of the modalities.

    Raises:
        DataError: None is left.
    """
    kept = tuple(piece for piece in pieces if piece is not None)
    if not kept:
        raise DataError(f"{recipe.name} has no recordings of the people asked for")
    return Corpus(
        kept, modalities, recipe.labels, recipe.window_s, recipe.stride_s,
        (presence or Presence()).min_coverage, dict(recipe.knee), dict(recipe.scale), hold_out, in_memory,
    )  # fmt: skip


def score_windows(corpus: Corpus, normalisation: dict[str, Normalisation]) -> Scored:
    """The windows that figures are computed on."""
    starts = corpus.starts(labelled=True, every=corpus.stride)
    windows = {name: normalisation[name].apply(raw) for name, raw in corpus.windows(starts).items()}
    return Scored(windows, corpus.labels_of(starts), corpus.people_of(starts), corpus.present(starts))


def _pick(
    recipe: DataRecipe, name: str, modalities: tuple[Modality, ...], labels: tuple[str, ...]
) -> tuple[Modality, ...]:
    """The recipe's modalities, in its order, out of what the data have."""
    for key, table in (("knee", recipe.knee), ("scale", recipe.scale)):
        strange = set(table) - set(recipe.modalities)
        if strange:
            raise DataError(f"[data] {key} names {', '.join(sorted(strange))}, which is not among [data] modalities")
    known = {modality.name: modality for modality in modalities}
    for wanted in recipe.modalities:
        if wanted not in known:
            raise DataError(f"{name} has no modality '{wanted}' (it has {', '.join(known)}); correct [data] modalities")
    unknown = [label for label in (*recipe.labels, *recipe.hold_out) if label not in labels]
    if unknown:
        raise DataError(f"{name} has no label {', '.join(unknown)}; it has {', '.join(labels)}")
    return tuple(known[wanted] for wanted in recipe.modalities)
