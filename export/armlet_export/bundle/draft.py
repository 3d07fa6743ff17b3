"""Assembly: programs, mask tokens, golden windows, certificate and bill of materials become a draft, then a bundle."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from armlet_runtime.arrays import Float32
from armlet_runtime.bundle import (
    AGGREGATOR,
    MANIFEST,
    MANIFEST_SCHEMA,
    Certificate,
    Confidence,
    EnginePrograms,
    GoldenRef,
    HiddenMarkov,
    Majority,
    Manifest,
    Presence,
    ProgramRef,
    StepProgram,
    encode_manifest,
    seconds_of,
    step_of,
)
from armlet_runtime.files import write_atomic
from armlet_runtime.modalities import Modality
from armlet_runtime.model import FLOAT_TOLERANCE
from armlet_runtime.windows import Normalisation, WindowSpec

from ..backends import BACKENDS, NEXT_STATE, LoweredPart, Signature
from ..streaming import StepPlan
from .sbom import cyclonedx, made_with

MASK_TOKENS, BANK, CERTIFICATE, SBOM = "mask_tokens.npy", "bank.npy", "certificate.json", "sbom.cdx.json"


@dataclass(frozen=True)
class Description:
    """The description of a model in its bundle, besides the programs."""

    name: str
    version: str
    created: str
    modalities: tuple[Modality, ...]
    window: WindowSpec
    normalisation: dict[str, Normalisation]
    labels: tuple[str, ...]
    token_dim: int
    embedding_dim: int
    presence: Presence
    expires: str | None = None
    boards: tuple[str, ...] = ()
    smoothing: Majority | HiddenMarkov | None = None
    steps: Mapping[str, StepPlan] = field(default_factory=dict)
    """Modality name to what its encoder carries from window to window."""

    def signature(self, part: str) -> Signature:
        """Inputs and outputs of the encoder of the modality ``part``, of its step program, or of the ``aggregator``."""
        if part == AGGREGATOR:
            outputs: dict[str, tuple[int, ...]] = {
                "logits": (1, len(self.labels)),
                "embedding": (1, self.embedding_dim),
            }
            return Signature("tokens", (1, len(self.modalities) * self.token_dim), outputs)
        name = self.step_parts.get(part, part)
        (modality,) = (modality for modality in self.modalities if modality.name == name)
        token: dict[str, tuple[int, ...]] = {"token": (1, self.token_dim)}
        channels = len(modality.channels)
        plan = self.steps.get(name)
        if plan is None:
            return Signature("window", (1, channels, self.window.samples(modality)), token)
        made: dict[str, tuple[int, ...]] = {**token, NEXT_STATE: plan.state}
        if part == name:
            return Signature("window", (1, channels, plan.length), made)
        return Signature("window", (1, channels, plan.head + plan.tail), made, plan.state)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the model: the encoders by modality, then the aggregator."""
        return (*(modality.name for modality in self.modalities), AGGREGATOR)

    @property
    def step_parts(self) -> dict[str, str]:
        """The step programs, each to its modality; each engine has them besides those of the parts."""
        return {step_of(name): name for name in self.steps}


@dataclass(frozen=True)
class Draft:
    """A bundle in the making: its members, and the manifest over them."""

    description: Description
    manifest: Manifest
    members: dict[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the manifest and the members so far, as a draft for the check ``export_proof``."""
        for member, data in ({MANIFEST: encode_manifest(self.manifest)} | self.members).items():
            path = folder / member
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)

    def with_confidence(self, confidence: Confidence) -> Draft:
        """The draft with the temperatures and the threshold of ``unknown``."""
        return replace(self, manifest=msgspec.structs.replace(self.manifest, confidence=confidence))

    def with_proofs(
        self, golden: Mapping[str, Float32], logits: Mapping[str, Float32], certificate: Certificate
    ) -> Draft:
        """The draft with what only a run of the programs can give.

        Args:
            golden: Modality name to golden windows (n, channels, samples), normalised.
            logits: Engine name to its own logits on them, (subsets, n, labels).
            certificate: Figures that were measured on the programs.
        """
        refs = self.manifest.golden
        members = {refs.windows[modality]: npy(windows) for modality, windows in golden.items()}
        members |= {refs.logits[engine]: npy(array) for engine, array in logits.items()}
        members[CERTIFICATE] = msgspec.json.format(msgspec.json.encode(certificate), indent=1) + b"\n"
        return replace(self, members=self.members | members)

    def with_bank(self, tokens: Float32) -> Draft:
        """The draft with the tokens that new classes are held against, (windows, modalities * token_dim).

        Without any window the draft is not changed.
        """
        if not len(tokens):
            return self
        manifest = msgspec.structs.replace(self.manifest, bank=BANK)
        return replace(self, manifest=manifest, members=self.members | {BANK: npy(tokens, np.float16)})


MIXED_STEPS = 4
"""How many steps of the logits' scale an int8 program with float operators inside may be off on another machine: their
last bits differ there, and a value that lies between two steps may fall to the other side (seen: 1)."""


def make_draft(
    description: Description,
    programs: Mapping[str, Mapping[str, LoweredPart]],
    mask_tokens: Float32,
    logit_step: float,
) -> Draft:
    """The draft of a bundle, without what the programs' own runs will add.

    Args:
        description: Of the model.
        programs: Engine name to part (see :attr:`Description.parts`) to program.
        mask_tokens: (modalities, token_dim).
        logit_step: In what steps the logits of rounded programs go.
    """
    members: dict[str, bytes] = {MASK_TOKENS: npy(mask_tokens)}
    engines = {}
    for engine in (engine for engine in BACKENDS if engine in programs):
        refs = {}
        for part in (*description.parts, *description.step_parts):
            lowered, signature = programs[engine][part], description.signature(part)
            member = f"{engine}/{_file_name(description, part)}.{BACKENDS[engine].suffix}"
            members[member] = lowered.data
            refs[part] = ProgramRef(member, signature.inputs, signature.outputs, lowered.precision)
        steps = {}
        for part, name in description.step_parts.items():
            plan = description.steps[name]
            steps[name] = StepProgram(refs.pop(part), plan.hop, plan.head, plan.tail, plan.rests_on)
        aggregator = refs.pop(AGGREGATOR)
        engines[engine] = EnginePrograms(refs, aggregator, steps)
    packages = made_with(engines)
    bill = cyclonedx(
        description.name,
        description.version,
        description.created,
        packages,
        {member: data for member, data in members.items() if member != MASK_TOKENS},
    )
    manifest = Manifest(
        schema=MANIFEST_SCHEMA,
        name=description.name,
        version=description.version,
        created=description.created,
        made_with=packages,
        modalities=description.modalities,
        window=description.window,
        normalisation=description.normalisation,
        labels=description.labels,
        token_dim=description.token_dim,
        embedding_dim=description.embedding_dim,
        engines=engines,
        mask_tokens=MASK_TOKENS,
        golden=GoldenRef(
            windows={modality.name: f"golden/windows_{modality.name}.npy" for modality in description.modalities},
            logits={engine: f"golden/logits_{engine}.npy" for engine in engines},
            tolerance={engine: _tolerance(programs[engine].values(), logit_step) for engine in engines},
        ),
        certificate=CERTIFICATE,
        sbom=SBOM,
        presence=description.presence,
        release=int(seconds_of(description.created)),
        expires=description.expires,
        boards=description.boards,
        smoothing=description.smoothing,
    )
    return Draft(description, manifest, members | {SBOM: bill})


def _file_name(description: Description, part: str) -> str:
    if part in description.step_parts:
        return f"step_{description.step_parts[part]}"
    return part if part == AGGREGATOR else f"encoder_{part}"


def _tolerance(programs: Iterable[LoweredPart], logit_step: float) -> float:
    """How far the golden logits may be off on another machine."""
    if not any(lowered.program.float_nodes() for lowered in programs):
        return 0.0  # integer from end to end
    rounded = any(lowered.precision in ("int8", "dynamic") for lowered in programs)
    return MIXED_STEPS * logit_step if rounded else FLOAT_TOLERANCE


def npy(array: Float32, kind: type = np.float32) -> bytes:
    """The bytes of an ``.npy`` file of float32, or of another kind."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, kind), allow_pickle=False)
    return buffer.getvalue()
