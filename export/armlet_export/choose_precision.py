"""Precision: the parts of a model with what each is lowered in, and the choice of the smallest that is good enough."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from armlet_runtime.bundle import AGGREGATOR
from armlet_runtime.errors import ExportError
from armlet_runtime.metrics import macro_f1
from armlet_train.data import Scored
from armlet_train.engine import all_logits
from armlet_train.models import ArmletModel

from .backends import PRECISIONS, Part
from .bundle import Description
from .quantise import is_prepared, prepared_part

AUTO = "auto"


def resolve(recipe: Mapping[str, str], parts: Sequence[str], asked: str | None) -> dict[str, str]:
    """Part to precision, ``auto`` for those to be chosen.

    Args:
        recipe: The recipe's ``[export] precision``.
        parts: The model's modalities and ``aggregator``.
        asked: One precision for all parts, or ``auto``, from the command line; None for the recipe's.

    Raises:
        ExportError: The recipe names a part that the model does not have, or there is no such precision.
    """
    if asked is not None:
        if asked not in (*PRECISIONS, AUTO):
            raise ExportError(f"there is no precision '{asked}'; there are {', '.join(PRECISIONS)} and {AUTO}")
        return dict.fromkeys(parts, asked)
    unknown = [part for part in recipe if part not in parts]
    if unknown:
        raise ExportError(f"[export] precision names '{unknown[0]}'; the model has {', '.join(parts)}")
    return {part: recipe.get(part, "int8") for part in parts}


def part_of(model: ArmletModel, student: ArmletModel, description: Description, name: str, precision: str) -> Part:
    """A part of the model, to be lowered in a precision; ``student``: with the graphs that were trained for int8."""
    module: nn.Module = model.aggregator if name == AGGREGATOR else model.encoders[name]
    prepared = prepared_part(student, name) if precision == "int8" and is_prepared(student, name) else None
    return Part(module, description.signature(name), precision, prepared)


def simulated(model: ArmletModel, parts: Mapping[str, Part]) -> ArmletModel:
    """The model with the rounding of its parts simulated."""
    copied = copy.deepcopy(model)
    for name, part in parts.items():
        if name == AGGREGATOR:
            copied.add_module(AGGREGATOR, part.reference())
        else:
            copied.encoders[name] = part.reference()
    return copied


def choose(
    make: Callable[[str, str], Part],
    model: ArmletModel,
    names: Sequence[str],
    validation: Scored,
    max_loss: float,
    possible: Callable[[str, str], str | None],
) -> dict[str, str]:
    """The smallest precision of each part with which no subset loses more than the bound on validation people.

    All parts begin with the smallest. While a subset loses too much, the part that costs the most when it alone is
    rounded goes on to its next one.

    Args:
        make: Part name and precision to part.
        model: The float model.
        names: The parts.
        validation: Windows of validation people.
        max_loss: Largest loss of macro-F1 in any subset (0.005 is half a point).
        possible: Part name and precision to why there is no program of it for an engine, or None.
    """

    def loss(parts: Mapping[str, Part]) -> float:
        logits = all_logits(simulated(model, parts), validation.windows)
        scores = [macro_f1(validation.truth, part.argmax(1), part.shape[1]) for part in logits]
        return max(whole - score for whole, score in zip(floats, scores, strict=True))

    floats = [
        macro_f1(validation.truth, part.argmax(1), part.shape[1]) for part in all_logits(model, validation.windows)
    ]
    chosen = dict.fromkeys(names, 0)

    def parts() -> dict[str, Part]:
        return {name: make(name, PRECISIONS[place]) for name, place in chosen.items()}

    while loss(parts()) > max_loss:
        alone = {
            name: loss({name: make(name, PRECISIONS[place])}) if PRECISIONS[place] != "fp32" else float("-inf")
            for name, place in chosen.items()
        }
        worst = max(alone, key=lambda name: alone[name])
        chosen[worst] += 1
        while PRECISIONS[chosen[worst]] != "fp32" and possible(worst, PRECISIONS[chosen[worst]]) is not None:
            chosen[worst] += 1
    return {name: PRECISIONS[place] for name, place in chosen.items()}
