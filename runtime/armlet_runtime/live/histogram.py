"""Percentiles of durations in memory that does not grow with their number."""

from __future__ import annotations

import math
from collections import Counter

RESOLUTION = 0.01
"""Largest relative error of a percentile."""

SHORTEST_S = 1e-6
"""Shorter durations count as this."""


class Histogram:
    """Counts durations in bins of equal ratio: 2,500 of them reach from a microsecond to a day.

    Attributes:
        count: Number of durations.
        longest_s: The longest duration, exactly; 0 without any.
    """

    def __init__(self) -> None:
        self.count = 0
        self.longest_s = 0.0
        self._bins: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count a duration in seconds."""
        self.count += 1
        self.longest_s = max(self.longest_s, seconds)
        self._bins[math.ceil(math.log(max(seconds / SHORTEST_S, 1.0)) / _STEP)] += 1

    def percentile(self, share: float) -> float:
        """The duration in seconds that ``share`` (0 to 1) of all do not exceed; 0 without any."""
        rank = share * self.count
        reached = 0
        for place, count in sorted(self._bins.items()):
            reached += count
            if reached >= rank:
                return min(SHORTEST_S * math.exp((place - 0.5) * _STEP), self.longest_s)
        return self.longest_s


# The logarithm of the ratio between the ends of a bin; its middle is half of it away from both.
_STEP = 2 * math.log1p(RESOLUTION)
