"""The manifest: everything about a model that the board must know and that is not weights.

It is JSON inside the bundle (see :mod:`armlet_runtime.bundle.container`). Export writes it, the runtime reads it; both
through the structs here, so the two sides cannot disagree. Unknown fields are refused: a manifest that an older armlet
would half-understand carries a higher ``schema``.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping

import msgspec

from ..errors import NewerSchemaError, SchemaError
from ..modalities import Modality, subset_name, subsets
from ..signals import Normalisation, WindowSpec

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


class CertificateRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured quality of one subset on one engine. ``macro_f1`` and ``agreement`` are shares (0 to 1).

    The fields with ``quantised`` compare with the model that the programs should be but for rounding differences: the
    PyTorch model with the rounding of its int8 parts simulated. Those without compare with the float model.
    """

    subset: str
    engine: str
    macro_f1: float
    macro_f1_pytorch: float
    """The float PyTorch model on the same windows."""
    max_distance: float
    """Largest absolute difference of a logit from the float PyTorch model."""
    mean_distance: float
    agreement: float
    """Share of windows with the same arg max as the float PyTorch model."""
    macro_f1_low: float | None = None
    """Lower end of the interval that :attr:`Certificate.interval` describes; null in certificates of schema 1."""
    macro_f1_high: float | None = None
    rmse: float | None = None
    """Root of the mean squared difference of the logits."""
    cosine: float | None = None
    """Cosine of the angle between all logits and those of the float model."""
    quantised_max_distance: float | None = None
    quantised_rmse: float | None = None
    quantised_cosine: float | None = None
    quantised_agreement: float | None = None
    ece_uncalibrated: float | None = None
    """Expected calibration error of the plain softmax (see :attr:`Certificate.calibration`); null before schema 3."""
    ece: float | None = None
    """The same with the subset's temperature."""
    unknown: float | None = None
    """Share of windows whose probability is below the bundle's threshold."""


class ProgramRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How near one program is to its PyTorch module with rounding simulated, on the same inputs.

    An encoder's outputs are tokens, the aggregator's (given the tokens that the engine's own encoders made) logits;
    ``agreement`` is the share of windows with the same arg max, of logits only.
    """

    engine: str
    part: str
    precision: str
    cosine: float
    rmse: float
    max_distance: float
    agreement: float | None = None


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures of the bundle's own programs, measured in a process without torch."""

    data: str
    """Data set and split, such as ``hapt validation``."""
    people: tuple[str, ...]
    windows: int
    rows: tuple[CertificateRow, ...]
    interval: str = ""
    """How the interval of macro-F1 came about."""
    calibration: str = ""
    """How the calibration errors came about."""
    programs: tuple[ProgramRow, ...] = ()
    versions: dict[str, str] = {}
    """What made and ran the programs: package or engine to version."""


def decode_certificate(data: bytes) -> Certificate:
    """Read a certificate.

    Raises:
        SchemaError: It does not follow its schema.
    """
    try:
        return msgspec.json.decode(data, type=Certificate)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SchemaError(f"the certificate does not follow its schema: {error}") from error


class _AnyManifest(msgspec.Struct):
    schema: int


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON for people and machines; the same manifest always gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest and check that it does not contradict itself.

    Raises:
        NewerSchemaError: It is of a newer schema than this armlet knows.
        SchemaError: It is not JSON, does not follow its schema, or contradicts itself.
    """
    try:
        schema = msgspec.json.decode(data, type=_AnyManifest).schema
        if schema > MANIFEST_SCHEMA:
            raise NewerSchemaError(
                f"the manifest is of schema {schema}, and this armlet knows schema {MANIFEST_SCHEMA}: update armlet"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SchemaError(f"the manifest does not follow schema {MANIFEST_SCHEMA}: {error}") from error
    for problem in _contradictions(manifest):
        raise SchemaError(f"the manifest contradicts itself: {problem}")
    return manifest


def named_members(manifest: Manifest) -> list[str]:
    """Every member of the bundle that the manifest names."""
    named = [manifest.mask_tokens, manifest.certificate, manifest.sbom]
    named += [manifest.prototypes] if manifest.prototypes is not None else []
    named += [manifest.bank] if manifest.bank is not None else []
    named += [*manifest.golden.windows.values(), *manifest.golden.logits.values()]
    for programs in manifest.engines.values():
        named += [ref.member for ref in programs.by_part.values()]
    return sorted(set(named))


def _is_time(text: str) -> bool:
    try:
        return seconds_of(text) >= 0
    except ValueError:
        return False


def seconds_of(time: str) -> float:
    """Unix seconds of a time in ISO 8601 with its zone, as manifests have it.

    Raises:
        ValueError: It is no such time.
    """
    parsed = datetime.datetime.fromisoformat(time.replace("Z", "+00:00"))  # Python 3.10 does not know the Z
    if parsed.tzinfo is None:
        raise ValueError(f"{time} names no zone")
    return parsed.timestamp()


def _contradictions(manifest: Manifest) -> Iterator[str]:
    names = [modality.name for modality in manifest.modalities]
    if not 1 <= manifest.schema <= MANIFEST_SCHEMA:
        yield f"schema {manifest.schema} does not exist"
    if not names or len(set(names)) != len(names):
        yield "the model needs at least one modality, and no modality twice"
    if len(names) > MAX_MODALITIES:
        yield f"it has {len(names)} modalities, more than the {MAX_MODALITIES} whose subsets can be tried"
        return
    if len(manifest.labels) < 1 or len(set(manifest.labels)) != len(manifest.labels):
        yield "the model needs at least one label, and no label twice"
    if not 0 <= manifest.release <= MAX_RELEASE:
        yield f"the release must be 0 to {MAX_RELEASE}"
    if not _is_time(manifest.created):
        yield f"'{manifest.created}' is no time; created is written as 2026-01-31T12:00:00Z"
    if manifest.expires is not None and not _is_time(manifest.expires):
        yield f"'{manifest.expires}' is no time; expires is written as 2027-01-31T12:00:00Z"
    if manifest.token_dim < 1 or manifest.embedding_dim < 1:
        yield "token_dim and embedding_dim must be positive"
    if not (0 < manifest.window.length_s < math.inf and 0 < manifest.window.hop_s < math.inf):
        yield "the window's length and hop must be positive"
    for modality in manifest.modalities:
        if not modality.channels or not 0 < modality.rate_hz < math.inf or manifest.window.samples(modality) < 1:
            yield f"the modality '{modality.name}' needs channels, a rate, and at least one sample in a window"
        normalisation = manifest.normalisation.get(modality.name)
        if normalisation is None:
            yield f"the modality '{modality.name}' has no normalisation"
        elif not (
            len(normalisation.mean) == len(normalisation.std) == len(modality.channels)
            and all(map(math.isfinite, normalisation.mean))
            and all(0 < std < math.inf for std in normalisation.std)
        ):
            yield f"the normalisation of '{modality.name}' needs a mean and a positive deviation for each channel"
    if manifest.confidence is not None:
        yield from _confidence_problems(manifest, manifest.confidence)
    yield from _smoothing_problems(manifest.smoothing, len(manifest.labels))
    if set(manifest.golden.windows) != set(names):
        yield "the golden windows are not of its modalities"
    if not manifest.engines:
        yield "it has programs for no engine"
    if len({frozenset(programs.steps) for programs in manifest.engines.values()}) > 1:
        yield "its engines have step programs of other modalities"
    token = (1, manifest.token_dim)
    for engine, programs in manifest.engines.items():
        if set(programs.encoders) != set(names):
            yield f"the encoders for {engine} are not of its modalities"
            return
        for modality in manifest.modalities:
            ref = programs.encoders[modality.name]
            window = (1, len(modality.channels), manifest.window.samples(modality))
            made: dict[str, tuple[int, ...]] = {"token": token}
            if modality.name in programs.steps:
                made["next_state"] = programs.steps[modality.name].program.inputs.get("state", ())
            if ref.inputs != {"window": window} or ref.outputs != made:
                shapes = " and ".join(f"{name} {shape}" for name, shape in made.items())
                yield f"the encoder of '{modality.name}' for {engine} must take window {window} and give {shapes}"
        outputs = {"logits": (1, len(manifest.labels)), "embedding": (1, manifest.embedding_dim)}
        tokens = (1, len(names) * manifest.token_dim)
        if programs.aggregator.inputs != {"tokens": tokens} or programs.aggregator.outputs != outputs:
            yield f"the aggregator for {engine} must take tokens {tokens} and give {outputs}"
        if not set(programs.steps) <= set(names):
            yield f"the step programs for {engine} are not of its modalities"
        for modality in manifest.modalities:
            if modality.name in programs.steps and not _steps_fit(manifest, modality, programs.steps[modality.name]):
                yield f"the step program of '{modality.name}' for {engine} does not fit its windows"
        for ref in programs.by_part.values():
            if ref.precision not in PRECISIONS:
                yield f"the program {ref.member} has the precision '{ref.precision}', not {', '.join(PRECISIONS)}"
        if engine not in manifest.golden.logits:
            yield f"there are no golden logits for {engine}"


def _steps_fit(manifest: Manifest, modality: Modality, step: StepProgram) -> bool:
    """Whether every sample of a window is read by the step program, or was used for the state before."""
    samples, (oldest, newest) = manifest.window.samples(modality), step.rests_on
    state = step.program.inputs.get("state", ())
    shapes = {"window": (1, len(modality.channels), step.head + step.tail), "state": state}
    return (
        abs(manifest.window.hop_s * modality.rate_hz - step.hop) < HOP_SLACK
        and step.hop >= 1
        and 0 <= oldest - step.hop <= step.head < samples - step.tail <= newest - step.hop
        and newest <= samples
        and min(state, default=0) > 0
        and step.program.inputs == shapes
        and step.program.outputs == {"token": (1, manifest.token_dim), "next_state": state}
    )


def _confidence_problems(manifest: Manifest, confidence: Confidence) -> Iterator[str]:
    wanted = {subset_name(subset) for subset in subsets([modality.name for modality in manifest.modalities])}
    if set(confidence.temperature) != wanted:
        yield "the temperatures are not of its subsets"
    if not all(0 < temperature < math.inf for temperature in confidence.temperature.values()):
        yield "a temperature must be positive"
    if not 0 <= confidence.unknown_below <= 1:
        yield "unknown_below is a probability, from 0 to 1"
    if confidence.unknown_below > 0 and UNKNOWN in manifest.labels:
        yield f"the label '{UNKNOWN}' is that of decisions below unknown_below, and cannot be one of its classes"


def _smoothing_problems(smoothing: Majority | HiddenMarkov | None, labels: int) -> Iterator[str]:
    if isinstance(smoothing, Majority) and not 1 <= smoothing.windows <= MAX_MAJORITY:
        yield f"a majority is of 1 to {MAX_MAJORITY} windows"
    if isinstance(smoothing, HiddenMarkov):
        rows = (*smoothing.transitions, smoothing.prior)
        if len(rows) != labels + 1 or any(len(row) != labels for row in rows):
            yield "the hidden Markov model needs a row of transitions for each label, and a prior"
        elif not all(min(row) > 0 and abs(sum(row) - 1) < 1e-6 for row in rows):
            yield "the hidden Markov model's rows and prior must be positive and add up to 1"
        if not 0 < smoothing.evidence <= 1:
            yield "the hidden Markov model's evidence must be above 0 and at most 1"
