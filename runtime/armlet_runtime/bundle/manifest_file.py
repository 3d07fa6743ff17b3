"""The manifest as bytes: encoding, decoding, and the contradictions for which a manifest is refused."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator

import msgspec

from ..errors import NewerSchemaError, SchemaError
from ..modalities import Modality, subset_name, subsets
from .manifest import (
    HOP_SLACK,
    MANIFEST_SCHEMA,
    MAX_MAJORITY,
    MAX_MODALITIES,
    MAX_RELEASE,
    PRECISIONS,
    UNKNOWN,
    Confidence,
    HiddenMarkov,
    Majority,
    Manifest,
    StepProgram,
)


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
