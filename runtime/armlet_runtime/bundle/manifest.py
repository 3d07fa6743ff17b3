"""The manifest: everything about a model that the board must know and that is not weights.

It is JSON inside the bundle (see :mod:`armlet_runtime.bundle.container`). Export writes it, the runtime reads it; both
through the structs here, so the two sides cannot disagree. Unknown fields are refused: a manifest that an older armlet
would half-understand carries a higher ``schema``.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ..modalities import Modality
from ..windows import Normalisation, WindowSpec

MANIFEST_SCHEMA = 4
"""4 since encoders can be incremental; 3 since scores are calibrated; 2 since programs have precisions other than int8
and fp32, and golden outputs tolerances. Older ones are still read."""

MAX_MAJORITY = 1000
"""Most windows that a majority is taken of."""

UNKNOWN = "unknown"
"""The label of a decision that the model is not sure enough of; no class may have that name where it can be given."""

PRECISIONS = ("int8", "dynamic", "fp16", "fp32")
"""Number format of a program's weights: ``dynamic`` is int8 whose activations are rounded by the range of each call,
``fp16`` computes in float32."""

AGGREGATOR = "aggregator"
"""Name of the aggregator among a model's parts; the encoders go by their modalities."""

MAX_MODALITIES = 12
"""A golden run goes through all 2^n - 1 subsets; a few bytes of manifest must not ask a board for a million runs."""

HOP_SLACK = 1e-6
"""Samples by which a hop may be off a whole number of them, for the rounding of seconds."""

MAX_RELEASE = (1 << 53) - 1
"""Largest release: what every JSON reader keeps exactly."""


def step_of(modality: str) -> str:
    """Name of an encoder's step program among a model's parts."""
    return f"step {modality}"


class ProgramRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a program lies in the bundle, and its promised inputs and outputs (name to shape)."""

    member: str
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    precision: str
    """One of :data:`PRECISIONS`."""


class StepProgram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An encoder's next window from the state that the window before left, and from few samples.

    Attributes:
        program: Inputs ``window`` (1, channels, head + tail) float32, normalised, and ``state`` (1, features, 1,
            columns); outputs ``token`` (1, token_dim) and ``next_state``, which the encoder gives as well.
        hop: Samples from one window to the next.
        head: First samples of the window that it reads.
        tail: Last samples of the window that it reads, joined to the first samples.
        rests_on: First sample of a window that its state rests on, and the one after the last. The state is right for a
            next window that has the same samples ``hop`` earlier.
    """

    program: ProgramRef
    hop: int
    head: int
    tail: int
    rests_on: tuple[int, int]


class EnginePrograms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All programs for one engine.

    Encoders: modality name to program; input ``window`` (1, channels, samples) float32, normalised; output ``token``
    (1, token_dim). Aggregator: input ``tokens`` (1, modalities * token_dim), in the manifest's modality order with mask
    tokens for absent modalities; outputs ``logits`` (1, labels) and ``embedding`` (1, embedding_dim). Steps: modality
    name to the step program of its encoder; none before schema 4.
    """

    encoders: dict[str, ProgramRef]
    aggregator: ProgramRef
    steps: dict[str, StepProgram] = {}

    @property
    def by_part(self) -> dict[str, ProgramRef]:
        """Every program by the part that it is: modalities, their steps (:func:`step_of`), :data:`AGGREGATOR`."""
        steps = {step_of(name): step.program for name, step in self.steps.items()}
        return {**self.encoders, **steps, AGGREGATOR: self.aggregator}


class Presence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a modality counts as present in a window (the sensor contract).

    Attributes:
        stale_after_s: A stream whose newest sample is older than this at the window's end is absent; for a modality
            that is slower than two samples in this time, two of its periods hold instead.
        min_coverage: Share of the window's samples that must have been received to be, or stay, present.
        return_coverage: Share that an absent modality needs to come back; not below ``min_coverage`` (hysteresis). The
            default brings windows of 2.56 s, with hops of 0.32 s, back within 2 s of their sensor's link;
            ``benchmarks/returning.py`` shows what such windows are worth.
        max_wait_s: How long after the window's end a decision waits for the samples of present streams.
    """

    stale_after_s: float = 0.5
    min_coverage: float = 0.6
    return_coverage: float = 0.64
    max_wait_s: float = 0.2


class GoldenRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Members (raw ``.npy``) that hold golden inputs and each engine's own outputs on them.

    ``windows``: modality name to an array (n, channels, samples) of normalised windows. ``logits``: engine name to an
    array (subsets, n, labels), the subsets in the order of :func:`armlet_runtime.modalities.subsets`. ``tolerance``:
    engine name to how far a logit may be from the stored logit on another machine; 0 for programs that are integer from
    end to end. Not given in schema 1, where :data:`armlet_runtime.model.golden_run.FLOAT_TOLERANCE` holds for fp32.
    """

    windows: dict[str, str]
    logits: dict[str, str]
    tolerance: dict[str, float] = {}


class Confidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How scores become probabilities, fitted on validation people.

    Attributes:
        temperature: Subset to what its logits are divided by before the softmax (Guo et al. 2017, arXiv 1706.04599).
        unknown_below: A decision whose highest probability is below this is :data:`UNKNOWN`; 0 for none.
    """

    temperature: dict[str, float]
    unknown_below: float = 0.0


class Majority(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="majority"):
    """Smoothing: the label that most of the last ``windows`` have, the newest of them where several have as many."""

    windows: int


class HiddenMarkov(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="hidden markov"):
    """Smoothing: the most probable label given all windows until now (the forward filter of a hidden Markov model).

    Attributes:
        transitions: (labels, labels) probabilities of the label one hop later, from training people; rows add up to 1.
        prior: (labels,) shares of the labels in training, which the model's probabilities are divided by.
        evidence: Power to which a window's likelihoods are raised: hop over length, because windows overlap and one
            sample must not count several times.
    """

    transitions: tuple[tuple[float, ...], ...]
    prior: tuple[float, ...]
    evidence: float


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a board needs to know about a model."""

    schema: int
    name: str
    version: str
    created: str
    """UTC, ISO 8601."""
    made_with: dict[str, str]
    """Package name to version: armlet, torch, executorch, ..."""
    modalities: tuple[Modality, ...]
    window: WindowSpec
    normalisation: dict[str, Normalisation]
    labels: tuple[str, ...]
    token_dim: int
    embedding_dim: int
    engines: dict[str, EnginePrograms]
    """In the order of preference."""
    mask_tokens: str
    """Member: ``.npy``, (modalities, token_dim) float32."""
    golden: GoldenRef
    certificate: str
    """Member: JSON of :class:`Certificate`."""
    sbom: str
    """Member: CycloneDX JSON."""
    presence: Presence = Presence()
    prototypes: str | None = None
    """Member: ``.npy``, (labels, embedding_dim) float32, for a few-shot head; none for a classifier head."""
    release: int = 0
    """Counts up over an owner's bundles (export writes the Unix seconds of ``created``): boards accept no lower one."""
    expires: str | None = None
    """UTC, ISO 8601: from then on no board accepts the bundle; where it is in use, it goes on."""
    boards: tuple[str, ...] = ()
    """Classes of boards that it is made for, such as ``raspberry-pi-5``; none for any."""
    confidence: Confidence | None = None
    """None in bundles of schema 1 and 2: scores are then the plain softmax, and nothing is unknown."""
    smoothing: Majority | HiddenMarkov | None = None
    """How labels of successive windows are smoothed; None: each window is decided alone."""
    bank: str | None = None
    """Member: ``.npy``, (windows, modalities * token_dim) float16, tokens of validation people's windows of all
    classes; what new classes are held against (:mod:`armlet_runtime.model.prototypes`)."""
