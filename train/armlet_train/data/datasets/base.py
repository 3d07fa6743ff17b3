"""Data sets: their descriptions, people and recordings, and how these are read.

A data set is a module with a :class:`DataSet` named ``DATA_SET``. Listing its entries is cheap; samples are read one
entry at a time, in any process, so that a corpus larger than memory can be prepared in parallel.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Recording

SPLITS = ("train", "validation", "test")

KNOWN = {
    "hapt": "armlet_train.data.datasets.hapt",
    "pamap2": "armlet_train.data.datasets.pamap2",
    "wesad": "armlet_train.data.datasets.wesad",
    "mmact": "armlet_train.data.datasets.mmact",
    "dreamer": "armlet_train.data.datasets.dreamer",
    "sleep-edf": "armlet_train.data.datasets.sleep_edf",
    "ptb-xl": "armlet_train.data.datasets.ptb_xl",
    "made": "armlet_train.data.datasets.simulated",
    "made-quick": "armlet_train.data.datasets.simulated:QUICK",
}
"""Name to the module that knows the data set, and its :class:`DataSet` there if it is not ``DATA_SET``."""


@dataclass(frozen=True)
class Entry:
    """One recording of a data set, not yet read.

    Attributes:
        name: Unique within the data set.
        person: Who wore it.
        split: ``train``, ``validation`` or ``test``; the same for all recordings of a person.
        read: Reads it; can be pickled.
    """

    name: str
    person: str
    split: str
    read: Callable[[], Recording]


@dataclass(frozen=True)
class DataSet:
    """The description of a data set.

    Attributes:
        name: As recipes and commands call it.
        title: One line for people: what was measured, on whom.
        modalities: With the rates that its recordings have.
        labels: All that occur.
        entries: From the folder or file that holds it to its recordings, in a fixed order; reads no samples.
        bring: Where a person gets it and which files are wanted, for sets that cannot be fetched.
        fetch: Brings it into the cache and returns where it is; None where a person must bring it.
    """

    name: str
    title: str
    modalities: tuple[Modality, ...]
    labels: tuple[str, ...]
    entries: Callable[[Path], list[Entry]]
    bring: str = ""
    fetch: Callable[[], Path] | None = None


def known_data_set(name: str) -> DataSet:
    """A data set by its name in :data:`KNOWN`."""
    module, _, attribute = KNOWN[name].partition(":")
    data_set = getattr(import_module(module), attribute or "DATA_SET")
    assert isinstance(data_set, DataSet)
    return data_set


def open_data_set(name: str, path: str | Path | None = None) -> tuple[DataSet, list[Entry]]:
    """A data set and its recordings, not yet read.

    Args:
        name: One of :data:`KNOWN`.
        path: Where a person keeps it; needed where it cannot be fetched.

    Raises:
        DataError: There is no such data set, it is not there, or its people are in two splits.
    """
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(KNOWN)}, and folders"
        raise DataError(f"there is no data set '{name}'; {hint}")
    data_set = known_data_set(name)
    if path is not None:
        root = Path(path)
        if not root.exists():
            raise DataError(f"there is nothing at {root}, where {name} should be")
    elif data_set.fetch is not None:
        root = data_set.fetch()
    else:
        raise DataError(f"{name} must be brought by you: {data_set.bring}; then give its place as [data] path")
    entries = data_set.entries(root)
    check_splits(name, entries)
    return data_set, entries


def check_splits(name: str, entries: list[Entry]) -> None:
    """Refuse a person who is in two splits.

    Raises:
        DataError: A person is in two splits.
    """
    split_of: dict[str, str] = {}
    for entry in entries:
        if split_of.setdefault(entry.person, entry.split) != entry.split:
            raise DataError(
                f"{name}: person {entry.person} is in '{split_of[entry.person]}' and in '{entry.split}'; "
                "a person belongs to one split"
            )
