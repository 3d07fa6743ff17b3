"""Decisions: what the live loop gives out, one a hop, as JSON lines."""

from __future__ import annotations

import msgspec


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One output of the live loop.

    Attributes:
        index: Number of the window; consecutive, so a missing one would show.
        window_end_ns: End of the window on the host's monotonic clock (of the recording, in a replay).
        decided_ns: When it fell due on the same clock: the last sample it needed had arrived, or waiting was over.
        subset: Names of the modalities it rests on; empty if every sensor was gone, and then ``label`` is null.
        label: What is decided: ``raw_label``, smoothed over the windows before if the bundle says so; null where there
            is no decision, see ``reason``.
        scores: Probabilities in the order of the manifest's labels, then of the classes enrolled on this board: softmax
            of the logits over the subset's temperature, if the bundle has one; empty without a label.
        embedding: Aggregator's embedding; empty without a label.
        age_s: Modality name to age of its newest sample at the window's end, in seconds; null if it never had one.
        coverage: Modality name to share of the window's samples that were received.
        engine: Engine that ran the programs.
        reason: Why there is no label: ``no sensor``, ``below floor`` (the certificate's macro-F1 of this subset is
            lower than the user asked for) or ``not a number`` (the model's scores were none); null with a label.
        raw_label: Label of the highest score of this window, or ``unknown`` where that is below the bundle's (or the
            user's) threshold; null where ``label`` is.
        enrolled: Names of the scores that come after those of the manifest's labels.
        latency_s: Window's end to the decision being out, by the live clock; null in a replay, where it means nothing.
        compute_s: Time spent in encoders and aggregator; null in a replay, so that replays are byte-identical.
    """

    index: int
    window_end_ns: int
    decided_ns: int
    subset: tuple[str, ...]
    label: str | None
    scores: tuple[float, ...]
    embedding: tuple[float, ...]
    age_s: dict[str, float | None]
    coverage: dict[str, float]
    engine: str
    reason: str | None = None
    raw_label: str | None = None
    enrolled: tuple[str, ...] = ()
    latency_s: float | None = None
    compute_s: float | None = None

    def to_json(self) -> bytes:
        """One line of JSON without the line feed; the same decision always gives the same bytes."""
        return msgspec.json.encode(self)

    def untimed(self) -> Decision:
        """Without what only a live run has: what a replay makes of the same packets."""
        return msgspec.structs.replace(self, latency_s=None, compute_s=None)
