"""Units: what files call them, and the factor to those that models are trained in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from ..signals import Stream
from ..wearables import UNITS
from .cell_table import mistake

STANDARD_GRAVITY = 9.80665
"""m/s2 in one g (ISO 80000-3)."""

ASSUMED = "assumed_units"
"""Key of a recording's meta: modalities whose unit was assumed."""

# Acceleration with gravity has a length of 1 g at rest, and on average not much more when its wearer runs.
_ABOUT_1_G = (0.5, 2.0)

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
    """``acc_x [mg]`` or ``acc_x (mg)`` as name and unit; the unit is empty if the name has none."""
    match = re.fullmatch(r"(.*?)\s*[\[(]\s*([^\[\]()]*?)\s*[\])]\s*", title)
    return (match[1].strip(), match[2]) if match else (title.strip(), "")


def canonical(modality: str, unit: str) -> tuple[str, float]:
    """The unit that models are trained in, and the factor to it.

    A unit that is not of the kind that :data:`armlet_runtime.wearables.UNITS` has for the modality is kept.
    """
    want = UNITS.get(modality)
    if not unit:
        return want or "", 1.0
    if part := re.fullmatch(r"1/(\d{1,9}) ?(\S+)", unit):  # as wearables count: 1/64 g
        name, factor = canonical(modality, part[2])
        return name, factor / max(int(part[1]), 1)
    have, wanted = _SPELLINGS.get(unit.lower()), _SPELLINGS.get((want or "").lower())
    if want is None or have is None or wanted is None or have[0] != wanted[0]:
        return unit, 1.0
    return want, have[1] / wanted[1]


def assumed(file: str, streams: Iterable[Stream]) -> dict[str, str]:
    """For a recording's meta: the units that the file lacks, and that :func:`canonical` therefore assumed.

    Raises:
        DataError: The values of an acceleration are not of the unit that would be assumed.
    """
    streams = list(streams)
    for stream in streams:
        if stream.modality.name == "acc" and len(stream.modality.channels) == 3:
            _check_gravity(file, stream)
    units = ", ".join(f"{stream.modality.name} in {stream.modality.unit}" for stream in streams if stream.modality.unit)
    return {ASSUMED: units} if units else {}


def _check_gravity(file: str, stream: Stream) -> None:
    """Refuse acceleration in an unknown unit whose usual length is not that of gravity in g."""
    lengths = np.sqrt(np.square(stream.values.astype(np.float64)).sum(axis=1))
    usual = float(np.nanmedian(lengths)) if np.isfinite(lengths).any() else 1.0
    if _ABOUT_1_G[0] <= usual <= _ABOUT_1_G[1]:
        return
    hint = next(
        (
            f"; in {unit} that would be 1 g"
            for unit in ("m/s2", "mg", "1/64 g")
            if _ABOUT_1_G[0] <= usual * canonical("acc", unit)[1] <= _ABOUT_1_G[1]
        ),
        "",
    )
    raise mistake(
        file,
        f"does not tell the unit of 'acc', whose usual length is {usual:.3g} and not near 1 as it is in g{hint}; say "
        "the unit in the columns' names or with --stream, as in --stream 'acc[m/s2]=x,y,z' (or [mg], or [1/64 g])",
    )
