"""The manifest: everything about a model that the board must know and that is not weights.

It is JSON inside the bundle (see :mod:`armlet_runtime.bundle`). Export writes it, the runtime reads it; both through
the structs here, so the two sides cannot disagree. Unknown fields are refused: a manifest that an older armlet would
half-understand carries a higher ``schema``.
"""

from __future__ import annotations

import msgspec

from .modalities import Modality
from .windows import Normalisation, WindowSpec

SCHEMA = 1


class ProgramRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a program lies in the bundle, and its promised inputs and outputs (name to shape)."""

    member: str
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    precision: str
    """``int8`` or ``fp32``: what the weights and activations are kept in."""


class EnginePrograms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All programs for one engine.

    Encoders: modality name to program; input ``window`` (1, channels, samples) float32, normalised; output ``token``
    (1, token_dim). Aggregator: input ``tokens`` (1, modalities * token_dim), in the manifest's modality order with mask
    tokens in place of absent ones; outputs ``logits`` (1, labels) and ``embedding`` (1, embedding_dim).
    """

    encoders: dict[str, ProgramRef]
    aggregator: ProgramRef


class Presence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a modality counts as present in a window (the sensor contract).

    Attributes:
        stale_after_s: A stream whose newest sample is older than this at the window's end is absent.
        min_coverage: Share of the window's samples that must have been received to be, or stay, present.
        return_coverage: Share that an absent modality needs to come back; not below ``min_coverage`` (hysteresis).
        max_wait_s: How long after the window's end a decision waits for the samples of present streams.
    """

    stale_after_s: float = 0.5
    min_coverage: float = 0.6
    return_coverage: float = 0.7
    max_wait_s: float = 0.2


class GoldenRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Members (raw ``.npy``) that hold golden inputs and each engine's own outputs on them.

    ``windows``: modality name to an array (n, channels, samples) of normalised windows. ``logits``: engine name to an
    array (subsets, n, labels), the subsets in the order of :func:`armlet_runtime.modalities.subsets`.
    """

    windows: dict[str, str]
    logits: dict[str, str]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the board must know about a model."""

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


class CertificateRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured quality of one subset on one engine. ``macro_f1`` and ``agreement`` are shares (0 to 1)."""

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


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured on the programs of the bundle themselves, in a process without torch."""

    data: str
    """Data set and split, such as ``hapt validation``."""
    people: tuple[str, ...]
    windows: int
    rows: tuple[CertificateRow, ...]
