"""The policy of a run: what decides whether, and how, a model's scores become a decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..bundle import UNKNOWN, Certificate, CertificateRow, Manifest
from ..errors import UsageError
from ..modalities import subset_name, subsets
from .enrolled_classes import SCHEMA, Layer


@dataclass(frozen=True)
class Policy:
    """The rules of a bundle and a person for decisions. Without arguments: the bundle's own rules, on every subset.

    Attributes:
        floor: No decision rests on a subset whose certified macro-F1 is below this, or that the certificate does not
            have; None for a decision on every subset.
        unknown_below: A window whose highest probability is below this is ``unknown``; 0 for never, None for the
            bundle's own threshold.
        certified: Subset to its row of the bundle's certificate, for the engine that runs.
        certified_on: The data that the certificate was measured on.
        layer: The classes that were enrolled for the bundle.

    Raises:
        UsageError: ``floor`` or ``unknown_below`` does not lie between 0 and 1.
    """

    floor: float | None = None
    unknown_below: float | None = None
    certified: Mapping[str, CertificateRow] = field(default_factory=dict)
    certified_on: str = ""
    layer: Layer = field(default_factory=lambda: Layer(SCHEMA, ""))

    def __post_init__(self) -> None:
        if self.floor is not None and not 0 <= self.floor <= 1:
            raise UsageError(f"floor {self.floor:g}: macro-F1 lies between 0 and 1")
        if self.unknown_below is not None and not 0 <= self.unknown_below <= 1:
            raise UsageError(f"unknown below {self.unknown_below:g}: a probability lies between 0 and 1")

    def for_bundle(self, certificate: Certificate, engine: str, layer: Layer) -> Policy:
        """The same floor and threshold, for a bundle with this certificate and these enrolled classes.

        ``engine``: the name under which the manifest and the certificate list the engine that runs.
        """
        certified = {row.subset: row for row in certificate.rows if row.engine == engine}
        return replace(self, certified=certified, certified_on=certificate.data, layer=layer)

    def with_layer(self, layer: Layer) -> Policy:
        """The same policy with other enrolled classes."""
        return replace(self, layer=layer)

    def threshold(self, manifest: Manifest) -> float:
        """The probability below which a window is ``unknown``, for a bundle's model; 0 for none.

        Raises:
            UsageError: The bundle has a class of that name.
        """
        if self.unknown_below is not None:
            threshold = self.unknown_below
        else:
            threshold = manifest.confidence.unknown_below if manifest.confidence is not None else 0.0
        if threshold > 0 and UNKNOWN in manifest.labels:
            raise UsageError(f"this bundle has a class '{UNKNOWN}' of its own: no threshold can be set for it")
        return threshold

    def refused_subsets(self, manifest: Manifest) -> frozenset[str]:
        """Names of the subsets on which there is no decision."""
        floor = self.floor
        if floor is None:
            return frozenset()
        names = map(subset_name, subsets([modality.name for modality in manifest.modalities]))
        return frozenset(
            name for name in names if name not in self.certified or not self.certified[name].macro_f1 >= floor
        )
