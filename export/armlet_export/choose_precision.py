"""Precision: what each part of a model is lowered in, and the choice of the smallest that is good enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from armlet_runtime.arrays import Float32
from armlet_runtime.bundle import AGGREGATOR
from armlet_runtime.errors import ExportError
from armlet_runtime.metrics import macro_f1
from armlet_train.models import ArmletModel

from .backends import PRECISIONS, Part
from .bundle import Description
from .proof import Reference
from .quantise import is_prepared, prepared_part

AUTO = "auto"


def resolve(recipe: Mapping[str, str], parts: Sequence[str], choice: str | None) -> dict[str, str]:
    """Part to precision, ``auto`` for those to be chosen.

    Args:
        recipe: The recipe's ``[export] precision``.
        parts: The model's modalities and ``aggregator``.
        choice: One precision for all parts, or ``auto``, from the command line; None for the recipe's.

    Raises:
        ExportError: The recipe names a part that the model does not have, or the precision does not exist.
    """
    if choice is not None:
        if choice not in (*PRECISIONS, AUTO):
            raise ExportError(f"there is no precision '{choice}'; choose {', '.join(PRECISIONS)} or {AUTO}")
        return dict.fromkeys(parts, choice)
    unknown = [part for part in recipe if part not in parts]
    if unknown:
        raise ExportError(f"[export] precision names '{unknown[0]}'; the model has {', '.join(parts)}")
    return {part: recipe.get(part, "int8") for part in parts}


def part_of(model: ArmletModel, student: ArmletModel, description: Description, name: str, precision: str) -> Part:
    """A part of the model, to be lowered in a precision; ``student``: with the graphs that were trained for int8."""
    module: nn.Module = model.aggregator if name == AGGREGATOR else model.encoders[name]
    prepared = prepared_part(student, name) if precision == "int8" and is_prepared(student, name) else None
    return Part(module, description.signature(name), precision, prepared)


def choose(
    make: Callable[[str, str], Part],
    names: Sequence[str],
    validation: Reference,
    max_loss: float,
    obstacle: Callable[[str, str], str | None],
) -> dict[str, str]:
    """The smallest precision of each part with which no subset loses more than the bound on validation people.

    All parts begin with the smallest. While a subset loses too much, the part that costs the most when it alone is
    rounded takes its next precision.

    Args:
        make: Part name and precision to part.
        names: The parts.
        validation: PyTorch's answers to validation people's windows.
        max_loss: Largest loss of macro-F1 in any subset (0.005 is half a point).
        obstacle: Part name and precision to why there is no program of it for an engine, or None.
    """
    truth = validation.people.truth

    def scores(logits: Float32) -> list[float]:
        return [macro_f1(truth, subset.argmax(1), subset.shape[1]) for subset in logits]

    float_scores = scores(validation.float_logits)

    def loss(parts: Mapping[str, Part]) -> float:
        rounded_scores = scores(validation.simulated_logits(parts))
        return max(whole - rounded for whole, rounded in zip(float_scores, rounded_scores, strict=True))

    places = dict.fromkeys(names, 0)

    def parts() -> dict[str, Part]:
        return {name: make(name, PRECISIONS[place]) for name, place in places.items()}

    while loss(parts()) > max_loss:
        alone = {
            name: loss({name: make(name, PRECISIONS[place])}) if PRECISIONS[place] != "fp32" else float("-inf")
            for name, place in places.items()
        }
        worst = max(alone, key=lambda name: alone[name])
        places[worst] += 1
        while PRECISIONS[places[worst]] != "fp32" and obstacle(worst, PRECISIONS[places[worst]]) is not None:
            places[worst] += 1
    return {name: PRECISIONS[place] for name, place in places.items()}
