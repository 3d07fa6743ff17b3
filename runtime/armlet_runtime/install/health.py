"""The result of the health check that a bundle passes before a slot is switched to it."""

from __future__ import annotations

import msgspec

from ..model import GoldenResult


class Health(msgspec.Struct, frozen=True):
    """Result of the health check.

    Attributes:
        golden: The golden run.
        decision_s: Time of the programs for a whole decision on this machine, 95th percentile, seconds.
        hop_s: The bundle's hop in seconds, the most that a decision may take.
    """

    golden: GoldenResult
    decision_s: float
    hop_s: float

    @property
    def passed(self) -> bool:
        """Whether this machine may run the bundle."""
        return self.golden.passed and self.decision_s <= self.hop_s

    def __str__(self) -> str:
        """Describe the result in a sentence."""
        golden = self.golden
        return (
            f"golden run: {golden.windows} windows on {golden.engine} {golden.version} ({golden.detail}), largest "
            f"difference {golden.max_difference:g}, {golden.tolerance:g} allowed; "
            f"a decision takes {self.decision_s * 1e3:.3g} ms"
        )
