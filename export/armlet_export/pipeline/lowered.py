"""The third stage: programs of all parts for all engines, none of which has run yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from armlet_runtime.arrays import Float32
from armlet_runtime.bundle import AGGREGATOR
from armlet_runtime.errors import ExportError
from armlet_train.models import ArmletModel

from .. import streaming
from ..backends import BACKENDS, LoweredPart, Part, lower_part
from ..bundle import Description, Draft, make_draft
from ..choose_precision import AUTO, choose, part_of
from ..quantise import output_range
from .quantised import Quantised
from .trained import Journal, Trained


@dataclass(frozen=True)
class Lowered:
    """A model as programs.

    Attributes:
        quantised: The stage before.
        parts: Part name to what its programs were made of, and must agree with.
        programs: Engine to part, or step program, to program.
        logit_step: The step in which the logits of rounded programs go.
        draft: The bundle so far.
    """

    quantised: Quantised
    parts: Mapping[str, Part]
    programs: Mapping[str, Mapping[str, LoweredPart]]
    logit_step: float
    draft: Draft

    @property
    def precision(self) -> dict[str, str]:
        """Part to its precision."""
        return {name: part.precision for name, part in self.parts.items()}


def lower(quantised: Quantised, engines: Sequence[str], journal: Journal) -> Lowered:
    """Choose the precision of each part, and lower all parts for all engines.

    Args:
        quantised: The stage before.
        engines: Some of :data:`armlet_export.backends.BACKENDS`.
        journal: Gets the choice of precision, and the seconds of each engine.

    Raises:
        ExportError: A program cannot be made; the message names part and engine.
    """
    trained = quantised.trained
    description = trained.description
    ordered = [engine for engine in BACKENDS if engine in engines]
    part_programs = PartPrograms(trained, quantised.student, journal)
    precision = _precision(quantised, part_programs, ordered, journal)
    parts = {name: part_programs.part(name, kind) for name, kind in precision.items()}
    logit_step = _logit_step(parts[AGGREGATOR], quantised.validation.simulated_logits(parts))
    programs: dict[str, dict[str, LoweredPart]] = {}
    kinds = precision | {step: precision[name] for step, name in description.step_parts.items()}
    for engine in ordered:
        with journal.progress.stage(f"Lower for {engine}", len(kinds)) as advance:
            programs[engine] = {}
            for name, kind in kinds.items():
                programs[engine][name] = part_programs.lower(engine, name, kind)
                advance()
    draft = make_draft(description, programs, trained.model.mask_tokens.detach().numpy(), logit_step)
    return Lowered(quantised, parts, programs, logit_step, draft)


class PartPrograms:
    """Makes parts and their programs, each once for an engine and precision."""

    def __init__(self, trained: Trained, student: ArmletModel, journal: Journal) -> None:
        self._trained, self._student, self._journal = trained, student, journal
        self._parts: dict[tuple[str, str], Part] = {}
        self._programs: dict[tuple[str, str, str], LoweredPart] = {}

    def part(self, name: str, kind: str) -> Part:
        """A part of the model in a precision."""
        if (name, kind) not in self._parts:
            trained = self._trained
            self._parts[name, kind] = part_of(trained.model, self._student, trained.description, name, kind)
        return self._parts[name, kind]

    def lower(self, engine: str, name: str, kind: str) -> LoweredPart:
        """The program of a part, or of an encoder's steps.

        Raises:
            ExportError: It cannot be made; the message names part and engine.
        """
        if (engine, name, kind) not in self._programs:
            with self._journal.time(f"lower {engine}"):
                try:
                    part = program_part(self.part, self._trained.description, name, kind)
                    self._programs[engine, name, kind] = lower_part(engine, part)
                except ExportError as error:
                    raise ExportError(f"{name} for {engine}: {error}") from error
        return self._programs[engine, name, kind]


def program_part(make: Callable[[str, str], Part], description: Description, name: str, kind: str) -> Part:
    """The part that a program is made of: the trained part, or with the state of an incremental encoder.

    Args:
        make: Part name and precision to part.
        description: Of the model.
        name: A part, or one of :attr:`Description.step_parts`.
        kind: The precision.

    Raises:
        ExportError: There are no incremental encoders of that precision.
    """
    modality = description.step_parts.get(name, name)
    part, plan = make(modality, kind), description.steps.get(modality)
    if plan is None:
        return part
    build = streaming.windowed if name == modality else streaming.step
    return build(part, plan, description.signature(name))


def _precision(
    quantised: Quantised, part_programs: PartPrograms, engines: Sequence[str], journal: Journal
) -> dict[str, str]:
    """Part to precision, those of ``auto`` chosen."""
    trained = quantised.trained
    if AUTO not in trained.precision.values():
        return dict(trained.precision)

    def obstacle(name: str, kind: str) -> str | None:
        try:
            for engine in engines:
                part_programs.lower(engine, name, kind)
        except ExportError as error:
            return str(error)
        return None

    parts, max_loss = trained.description.parts, trained.max_auto_loss
    precision = choose(part_programs.part, parts, quantised.validation, max_loss, obstacle)
    choice = ", ".join(f"{name} {kind}" for name, kind in precision.items())
    journal.progress.note(f"smallest that loses at most {100 * max_loss:g} points of macro-F1: {choice}")
    return precision


def _logit_step(aggregator: Part, logits: Float32) -> float:
    """The step by which the logits are rounded; for float logits, the step that int8 would have."""
    trained = output_range(aggregator.prepared) if aggregator.prepared is not None else None
    return trained.scale if trained is not None else float(np.ptp(logits)) / 255
