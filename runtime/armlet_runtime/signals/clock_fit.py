"""The line from a wearable's clock to the host's monotonic clock, and the bound of its error.

A wearable stamps each packet with a counter or with its own clock; the host stamps the arrival. An arrival is never
earlier than the sample, and is later by a delay that varies (connection interval, retransmission, a busy host). So the
truth lies below all pairs of device time and arrival, and close to the lowest: a lower envelope, which a late packet
cannot disturb. :class:`ClockFit` fits a line to it, with its slope (how fast the device's clock is) and a bound of its
error. The part of the delay that is always there cannot be seen from one side; it is left in, and is the same for all
wearables on like links.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

# The envelope is kept as the lowest pair of each bin of device time. Bins begin short, and are doubled when there are
# too many; of the longest, the oldest is dropped. So a fit looks back over 64 x 6.4 s = 410 s, in which a crystal's
# rate hardly moves, and needs the same memory for ever.
BINS = 64
FIRST_BIN_NS = 100_000_000
LONGEST_BIN_NS = 6_400_000_000

# The bound is the distance to the eighth lowest pair: of n delays drawn alike, and evenly spread near their minimum,
# the seven gaps above the lowest are together longer than the unseen gap below it in 127 of 128 cases. It is doubled
# because the slope is fitted to the same pairs, and never below what a host's own time stamps are good for.
RANK = 7
BOUND_FACTOR = 2
FINEST_BOUND_NS = 100_000

# A fit is valid from so many bins on, over so much time: the first second tells little about the delays.
VALID_BINS = RANK + 1
VALID_SPAN_NS = 2_000_000_000

# A pair that lies below the envelope by more than its bound and this much shows that the device's clock has been set.
# When every pair of so long a time, in so many bins at least, lies above it by so much, it has been set back, or the
# link's least delay has grown. In both cases the older pairs are dropped.
STEP_SPAN_NS = 6_000_000_000
STEP_BINS = 4
STEP_NS = 5_000_000


@dataclass(frozen=True)
class Line:
    """Host times as a straight line over device times.

    Attributes:
        at_ns: Device time at which the offset holds.
        offset_ns: What to add to it to get the host's.
        slope: By how much that grows with each ns of device time.
    """

    at_ns: int
    offset_ns: int
    slope: float

    @overload
    def to_host(self, device_ns: int) -> int: ...
    @overload
    def to_host(self, device_ns: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def to_host(self, device_ns: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
        """Host times of device times (both ns)."""
        if isinstance(device_ns, np.ndarray):
            since = device_ns - self.at_ns
            host_ns: NDArray[np.int64] = (
                since + (self.at_ns + self.offset_ns) + np.rint(since * self.slope).astype(np.int64)
            )
            return host_ns
        return device_ns + self.offset_ns + round((device_ns - self.at_ns) * self.slope)

    def to_device(self, host_ns: int) -> int:
        """The device time of a host time (both ns)."""
        return self.at_ns + round((host_ns - self.offset_ns - self.at_ns) / (1 + self.slope))

    def seconds_to_host(self, device_ns: NDArray[np.int64], end_ns: int) -> NDArray[np.float64]:
        """Host times in seconds relative to one in ns, of device times (n,) near it: to the ns, in few steps."""
        return np.asarray((device_ns - self.to_device(end_ns)) * ((1 + self.slope) / 1e9), np.float64)

    def apart_ns(self, other: Line, device_ns: int) -> float:
        """How far this line's host time of a device time is after the other's."""
        mine = self.offset_ns + (device_ns - self.at_ns) * self.slope
        return mine - other.offset_ns - (device_ns - other.at_ns) * other.slope


class ClockFit:
    """The line from one run of a device clock to the host's clock.

    The slope of the lower envelope is that of the side of its convex hull below the mean device time: of all lines
    below the points, the one with the least sum of distances (Moon, Skelly & Towsley, "Estimation and removal of clock
    skew from network delay measurements", INFOCOM 1999). While little time has passed it is held back towards 0 by how
    well it is known against what crystals keep. The offset is then the least residual, older ones counting the less
    the longer an error of the slope has acted on them.

    Attributes:
        line: As it is fitted now; a new object after each fit. At least one observation must have been made.
    """

    def __init__(self, expected_drift_ppm: float = 100.0) -> None:
        """``expected_drift_ppm``: how far such a clock's rate may be off."""
        self._prior = expected_drift_ppm * 1e-6
        self._bin_ns = FIRST_BIN_NS
        self._bins: deque[tuple[int, int]] = deque()  # lowest of each bin: device time, arrival - device time
        self._base_ns = 0  # subtracted from the differences before they become floats
        self._at_ns = 0  # device time at which the offset holds
        self._offset = 0.0
        self._slope = 0.0
        self._bound = math.inf
        self.line = Line(0, 0, 0.0)

    def observe(self, device_ns: int, arrival_ns: int) -> None:
        """Take in that the sample of ``device_ns`` had arrived at ``arrival_ns``."""
        difference = arrival_ns - device_ns
        if self.valid and difference - self._base_ns < self._line(device_ns) - self._step_ns():
            self._bins.clear()
        if not self._bins:
            self._base_ns, self._at_ns = difference, device_ns
        newest = self._bins[-1][0] // self._bin_ns if self._bins else None
        number = device_ns // self._bin_ns
        if newest is None or number > newest:
            self._bins.append((device_ns, difference))
            self._make_room()
            self._fit(device_ns)
        elif number == newest:
            if difference < self._bins[-1][1]:
                self._bins[-1] = (device_ns, difference)
            if difference - self._base_ns < self._line(device_ns):
                self._fit(device_ns)
        # A packet that comes late enough to belong to an older bin is above the envelope.

    @property
    def valid(self) -> bool:
        """Whether the fit rests on enough to be believed; before, arrivals are hardly better than they look."""
        return len(self._bins) >= VALID_BINS and self._bins[-1][0] - self._bins[0][0] >= VALID_SPAN_NS

    @property
    def drift_ppm(self) -> float:
        """How fast the device's clock runs against the host's, in parts per million."""
        return -self._slope / (1 + self._slope) * 1e6

    @property
    def bound_ns(self) -> int | None:
        """How far a host time may be off, but for the link's least delay; None while the fit is not valid."""
        return max(FINEST_BOUND_NS, round(BOUND_FACTOR * self._bound)) if self.valid else None

    def _line(self, device_ns: int) -> float:
        return self._offset + self._slope * (device_ns - self._at_ns)

    def _make_room(self) -> None:
        if len(self._bins) <= BINS:
            return
        if self._bin_ns >= LONGEST_BIN_NS:
            self._bins.popleft()
            return
        self._bin_ns *= 2
        lowest: dict[int, tuple[int, int]] = {}
        for pair in self._bins:
            number = pair[0] // self._bin_ns
            if number not in lowest or pair[1] < lowest[number][1]:
                lowest[number] = pair
        self._bins = deque(lowest.values())

    def _fit(self, now_ns: int) -> None:
        self._forget_before_a_step()
        self._at_ns = max(self._at_ns, now_ns)
        # Times before now and differences, as floats that are small enough to be exact to the nanosecond.
        points = [(float(at - self._at_ns), float(difference - self._base_ns)) for at, difference in self._bins]
        slope, uncertainty = self._fit_slope(points)
        self._slope = slope
        residuals = sorted(
            (difference - slope * at - uncertainty * at, difference - slope * at, at) for at, difference in points
        )
        penalised, self._offset, at = residuals[0]
        self._bound = residuals[min(RANK, len(residuals) - 1)][0] - penalised - uncertainty * at
        self.line = Line(self._at_ns, self._base_ns + round(self._offset), slope)

    def _fit_slope(self, points: list[tuple[float, float]]) -> tuple[float, float]:
        """Slope of the envelope, and by how much it may be off."""
        if not self.valid:
            return 0.0, self._prior
        hull: list[tuple[float, float]] = []
        for x, y in points:
            while len(hull) > 1 and _above(hull[-2], hull[-1], (x, y)):
                hull.pop()
            hull.append((x, y))
        mean = math.fsum(x for x, _ in points) / len(points)
        left, right = next((side for side in pairwise(hull) if side[1][0] >= mean), (hull[-2], hull[-1]))
        slope = (right[1] - left[1]) / (right[0] - left[0])
        spread = sorted(y - left[1] - slope * (x - left[0]) for x, y in points)[RANK]
        fitted = 2 * spread / (points[-1][0] - points[0][0])
        weight = self._prior**2 / (self._prior**2 + fitted**2)
        return slope * weight, fitted * math.sqrt(weight)

    def _step_ns(self) -> float:
        """A distance from the envelope above this is more than the error of the fit."""
        return BOUND_FACTOR * self._bound + STEP_NS

    def _forget_before_a_step(self) -> None:
        if not self.valid:
            return
        raised = 0
        for at, difference in reversed(self._bins):
            if difference - self._base_ns - self._line(at) <= self._step_ns():
                break
            raised += 1
        if STEP_BINS <= raised < len(self._bins) and self._bins[-1][0] - self._bins[-raised][0] >= STEP_SPAN_NS:
            while len(self._bins) > raised:
                self._bins.popleft()


def _above(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether the middle of three points lies on the line between the others or above it."""
    return (middle[0] - left[0]) * (right[1] - left[1]) <= (middle[1] - left[1]) * (right[0] - left[0])
