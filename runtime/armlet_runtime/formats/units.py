"""Units: what files call them, and the factor to those that models are trained in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from ..signals import Stream
from ..wearables import UNITS

STANDARD_GRAVITY = 9.80665
"""m/s2 in one g (ISO 80000-3)."""

ASSUMED = "assumed_units"
"""Key of a recording's meta: modalities whose unit was assumed."""

# Spelling to what it measures and how many of the first unit of its kind it is.
_SPELLINGS: dict[str, tuple[str, float]] = {
    "g": ("acceleration", 1.0),
    "mg": ("acceleration", 1e-3),
    "m/s2": ("acceleration", 1 / STANDARD_GRAVITY),
    "m/s^2": ("acceleration", 1 / STANDARD_GRAVITY),
    "m/s²": ("acceleration", 1 / STANDARD_GRAVITY),
    "rad/s": ("turning", 1.0),
    "deg/s": ("turning", math.pi / 180),
    "°/s": ("turning", math.pi / 180),
    "dps": ("turning", math.pi / 180),
    "ut": ("flux density", 1.0),
    "µt": ("flux density", 1.0),
    "gauss": ("flux density", 100.0),
    "t": ("flux density", 1e6),
    "v": ("voltage", 1.0),
    "mv": ("voltage", 1e-3),
    "uv": ("voltage", 1e-6),
    "µv": ("voltage", 1e-6),
    "us": ("conductance", 1.0),
    "µs": ("conductance", 1.0),
    "s": ("time", 1.0),
    "ms": ("time", 1e-3),
    "degc": ("temperature", 1.0),
    "°c": ("temperature", 1.0),
    "c": ("temperature", 1.0),
    "bpm": ("beats", 1.0),
    "%": ("share", 1.0),
}


def split_unit(title: str) -> tuple[str, str]:
    """``acc_x [mg]`` or ``acc_x (mg)`` as name and unit; the unit is empty if there is none."""
    found = re.fullmatch(r"(.*?)\s*[\[(]\s*([^\[\]()]*?)\s*[\])]\s*", title)
    return (found[1].strip(), found[2]) if found else (title.strip(), "")


def canonical(modality: str, unit: str) -> tuple[str, float]:
    """The unit that models are trained in, and the factor to it.

    A unit that is not of the kind that :data:`armlet_runtime.wearables.UNITS` has for the modality stays as it is.
    """
    want = UNITS.get(modality)
    if not unit:
        return want or "", 1.0
    have, wanted = _SPELLINGS.get(unit.lower()), _SPELLINGS.get((want or "").lower())
    if want is None or have is None or wanted is None or have[0] != wanted[0]:
        return unit, 1.0
    return want, have[1] / wanted[1]


def assumed(streams: Iterable[Stream]) -> dict[str, str]:
    """For a recording's meta: which units nothing in the file told, and :func:`canonical` therefore assumed."""
    told = ", ".join(f"{one.modality.name} in {one.modality.unit}" for one in streams if one.modality.unit)
    return {ASSUMED: told} if told else {}
