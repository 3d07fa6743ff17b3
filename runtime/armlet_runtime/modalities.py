"""Modalities: what kinds of signal there are, and the non-empty sets of them that a decision can rest on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import msgspec


class Modality(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of signal.

    Attributes:
        name: Short name, such as ``acc``.
        channels: Channel names in order.
        unit: Unit of every channel (``g``, ``rad/s``, ``bpm``, ...).
        rate_hz: Sampling rate that the model sees, in Hz.
    """

    name: str
    channels: tuple[str, ...]
    unit: str
    rate_hz: float


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """All non-empty subsets of ``names``, the whole set first, then by falling size; members keep their order.

    With n modalities there are 2^n - 1.
    """
    return [subset for size in range(len(names), 0, -1) for subset in combinations(names, size)]


def subset_name(subset: Sequence[str]) -> str:
    """The printed name of a subset: its modalities joined by ``+``; ``none`` for the empty one."""
    return "+".join(subset) if subset else "none"
