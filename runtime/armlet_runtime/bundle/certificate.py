"""The certificate of a bundle: the measured quality of its programs."""

from __future__ import annotations

import msgspec

from ..errors import SchemaError


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
