"""Streams: the newest samples of each modality in device time, and the wearables that they come from."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..errors import PacketError, RepeatedPacketError
from ..modalities import Modality
from ..wearables import Batch, Decoder, Group, Profile, profile_of_characteristic
from .packet_clock import QUICKER, ClockFit, Counts, Line, PacketClock
from .recording import Packet

# Room for so many samples is made at least.
LEAST_ROOM = 256


class Run:
    """Samples of one run of a device clock, in the order of their device times.

    Attributes:
        clock: The run's.
        newest_device_ns: Device time of the newest sample.
    """

    def __init__(self, clock: ClockFit, channels: int) -> None:
        """Without samples yet, of so many ``channels``."""
        self.clock = clock
        self.newest_device_ns = 0
        self._chunks: deque[tuple[int, int, int]] = deque()  # of each packet: first and last device time, samples
        self._times = np.empty(LEAST_ROOM, np.int64)
        self._values = np.empty((LEAST_ROOM, channels), np.float32)
        self._begin = self._end = 0  # of those in use

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def newest_ns(self) -> int:
        """Host time of the newest sample."""
        return self.clock.line.to_host(self.newest_device_ns)

    def add(self, times_ns: NDArray[np.int64], values: Float32) -> bool:
        """Put a packet's samples (n,), (n, channels) in their place; False if they would overlap another's."""
        chunk = first, last, count = int(times_ns[0]), int(times_ns[-1]), len(times_ns)
        place = self._end
        if not self._chunks or first > self.newest_device_ns:
            self._chunks.append(chunk)
            self.newest_device_ns = last
        else:
            at = bisect_left(self._chunks, (first,))
            later = list(islice(self._chunks, at, None))
            place -= sum(count for _, _, count in later)
            if later and later[0][0] <= last:
                return False
            if at > 0 and self._chunks[at - 1][1] >= first and not self._squeeze(at - 1, place, first):
                return False
            self._chunks.insert(at, chunk)
            self.newest_device_ns = self._chunks[-1][1]
        if self._end + count > len(self._times):
            place -= self._begin
            self._make_room(count)
        after, end = slice(place, self._end), self._end + count
        if place < self._end:
            self._times[place + count : end] = self._times[after].copy()
            self._values[place + count : end] = self._values[after].copy()
        self._times[place : place + count] = times_ns
        self._values[place : place + count] = values
        self._end = end
        return True

    def _squeeze(self, at: int, end: int, before_ns: int) -> bool:
        """Make a packet's samples, which lie up to place ``end``, end before a time, if they overlap it by little.

        A packet that stamps its first sample leaves open how far apart its samples are; the next one's stamp tells.
        """
        first, last, count = self._chunks[at]
        if before_ns - first < (1 - QUICKER) * (last - first):
            return False
        squeezed = first + np.arange(count) * ((before_ns - first) / count)
        self._times[end - count : end] = squeezed
        self._chunks[at] = first, int(squeezed[-1]), count
        return True

    def _make_room(self, count: int) -> None:
        """Move the samples to the beginning of new arrays, so that what :meth:`samples` gave stays as it is."""
        used = len(self)
        # A power of two, so that the new arrays fit where older ones were.
        times = np.empty(max(LEAST_ROOM, 1 << (2 * (used + count) - 1).bit_length()), np.int64)
        values = np.empty((len(times), self._values.shape[1]), np.float32)
        times[:used], values[:used] = self.samples()
        self._times, self._values, self._begin, self._end = times, values, 0, used

    def forget_before(self, device_ns: int) -> None:
        """Drop the packets that end before a device time; the newest one stays."""
        while len(self._chunks) > 1 and self._chunks[0][1] < device_ns:
            self._begin += self._chunks.popleft()[2]

    def samples(self, newest: int | None = None) -> tuple[NDArray[np.int64], Float32]:
        """Device times (n,) and values (n, channels) of all, or of so many; to be read only, and not kept."""
        begin = self._begin if newest is None else self._end - newest
        return self._times[begin : self._end], self._values[begin : self._end]


class SampleRing:
    """The newest samples of one modality.

    Samples are kept in device time, with the run of the clock that they belong to. They get their host times only when
    they are looked at, all samples of a run by the one line that is known then.

    Attributes:
        modality: As the wearable sends it.
        total: Samples that were ever taken in.
        edits: How often something else was done to them than to put newer ones after all others.
        period_ns: Nominal time between two of them.
        runs: By the time of their clocks, oldest first.
    """

    def __init__(self, modality: Modality, keep_ns: int) -> None:
        """``modality``: as the wearable sends it; ``keep_ns``: how much time before the newest sample to keep."""
        self.modality = modality
        self.total = 0
        self.edits = 0
        self.period_ns = 1e9 / modality.rate_hz
        self.runs: list[Run] = []
        self._keep_ns = keep_ns

    def add(self, clock: ClockFit, times_ns: NDArray[np.int64], values: Float32) -> bool:
        """Add samples with their device times in the run of ``clock``; False if they overlap others of that run."""
        run = next((run for run in reversed(self.runs) if run.clock is clock), None)
        if run is None:
            run = Run(clock, values.shape[1])
            self.runs.append(run)
            self.edits += 1
        elif run is not self.runs[-1] or times_ns[0] <= run.newest_device_ns:
            self.edits += 1
        if not run.add(times_ns, values):
            return False
        self.total += len(values)
        limit_ns = self.newest_ns() - self._keep_ns
        if len(self.runs) > 1:
            self._keep([run for run in self.runs if run.newest_ns >= limit_ns])
        for run in self.runs:
            run.forget_before(limit_ns - run.clock.line.offset_ns)
        return True

    def drop(self, clock: ClockFit) -> None:
        """Take back the samples of a run that was none."""
        self.total -= sum(len(run) for run in self.runs if run.clock is clock)
        self._keep([run for run in self.runs if run.clock is not clock])

    def _keep(self, runs: list[Run]) -> None:
        if len(runs) < len(self.runs):
            self.runs = runs
            self.edits += 1

    def newest_ns(self) -> int:
        """Host time of the newest sample. There must have been one."""
        return self.runs[0].newest_ns if len(self.runs) == 1 else max(run.newest_ns for run in self.runs)

    def samples(self, end_ns: int, lines: Mapping[Run, Line] | None = None) -> tuple[NDArray[np.int64], Float32]:
        """Host times relative to ``end_ns`` (n,), strictly rising, and values (n, channels), to be read only.

        ``lines``: Of each run, the line that gives its host times; None for those that the clocks have now.
        """
        parts: list[tuple[NDArray[np.int64], Float32]] = []
        before: int | None = None
        for run in reversed(self.runs):
            device_ns, values = run.samples()
            times = (run.clock.line if lines is None else lines[run]).to_host(device_ns) - end_ns
            # Runs follow each other; where the estimates of their clocks make them overlap, the newer run holds.
            stop = len(times) if before is None else int(np.searchsorted(times, before, side="left"))
            if stop:
                parts.append((times[:stop], values[:stop]))
                before = int(times[0])
        if len(parts) == 1:
            return parts[0]
        parts.reverse()
        return np.concatenate([times for times, _ in parts]), np.concatenate([values for _, values in parts])


class Wearable:
    """One wearable: its link, its decoders, and the samples of its modalities.

    Attributes:
        name: Name in the session.
        linked: Whether the link is up.
        counts: Profile and group name to what became of their packets.
        clocks: Group name to its clock.
        rings: Modality name to its samples.
        problem: Why the newest packet that could not be used was not; empty if there was none.
    """

    def __init__(self, name: str, keep_ns: int) -> None:
        """``keep_ns``: how much time before a modality's newest sample to keep."""
        self.name = name
        self.linked = False
        self.counts: dict[str, Counts] = {}
        self.clocks: dict[str, PacketClock] = {}
        self.rings: dict[str, SampleRing] = {}
        self.problem = ""
        self._keep_ns = keep_ns
        self._decoders: dict[str, Decoder] = {}
        self._owners: dict[str, str] = {}  # modality to the group that brings it: the first that did
        self._announced = False
        self._host: ClockFit | None = None

    @property
    def groups(self) -> list[Group]:
        """What it sends, as far as it is known."""
        return [group for decoder in self._decoders.values() for group in decoder.groups]

    def take(self, packet: Packet) -> list[str]:
        """Take in any packet of this wearable; the names of the modalities that got samples."""
        if packet.kind == "connected":
            self.connected()
        elif packet.kind == "disconnected":
            self.disconnected()
        elif packet.kind in ("info", "written", "data"):
            return self._take(packet.kind, packet.source, packet.data, packet.arrival_ns)
        return []

    def connected(self) -> None:
        """The link was made: decoders are made anew from what is said next."""
        self.linked = True
        self._announced = True
        self._decoders.clear()
        for clock in self.clocks.values():
            clock.connected()
        for counts in self.counts.values():
            counts.connections += 1

    def made(self, modality: Modality, times_ns: NDArray[np.int64], values: Float32) -> None:
        """Take in samples (n, channels) that did not come as packets; their times are the host's own."""
        self.linked = True
        if self._host is None:
            self._host = ClockFit()
            self._host.observe(int(times_ns[0]), int(times_ns[0]))
        self.rings.setdefault(modality.name, SampleRing(modality, self._keep_ns)).add(self._host, times_ns, values)

    def disconnected(self) -> None:
        """The link was lost or closed."""
        self.linked = False

    def info(self, source: str, data: bytes) -> None:
        """What was read from a characteristic at connection."""
        self._take("info", source, data, 0)

    def data(self, source: str, data: bytes, arrival_ns: int) -> list[str]:
        """Take in a notification; the names of the modalities that got samples."""
        return self._take("data", source, data, arrival_ns)

    def _take(self, kind: str, source: str, data: bytes, arrival_ns: int) -> list[str]:
        profile = profile_of_characteristic(source)
        if profile is None:
            return []
        counts = self._counts(profile.name)
        if kind == "data":
            self.linked = True
            counts.packets += 1
        decoder = self._decoders.get(profile.name)
        if decoder is None:
            decoder = self._decoders[profile.name] = profile.decoder()
        try:
            batches = decoder.take(kind, source, data)
        except RepeatedPacketError:
            counts.duplicated += 1
            return []
        except PacketError as error:
            counts.malformed += 1
            self.problem = str(error)
            return []
        return [name for batch in batches if batch.count for name in self._place(profile, batch, arrival_ns)]

    def _place(self, profile: Profile, batch: Batch, arrival_ns: int) -> list[str]:
        group = batch.group
        counts = self._counts(group.name)
        if group.name != profile.name:
            counts.packets += 1
        clock = self.clocks.get(group.name)
        if clock is None or clock.period_ns != group.period_ns:
            clock = self.clocks[group.name] = PacketClock(group.counters, group.period_ns, counts)
        owned = [m for m in group.modalities if self._owners.setdefault(m.name, group.name) == group.name]
        for modality in owned:
            if modality.name not in self.rings or self.rings[modality.name].modality != modality:
                self.rings[modality.name] = SampleRing(modality, self._keep_ns)
        fed: list[str] = []
        for placed in clock.take(batch, arrival_ns):
            for name in [modality.name for modality in owned]:
                values = placed.batch.values[name]
                if placed.replaces is not None:
                    self.rings[name].drop(placed.replaces)
                if self.rings[name].add(placed.clock, placed.times_ns, values):
                    counts.samples += len(values)
                    fed.append(name)
                else:
                    counts.implausible += 1
        return fed

    def _counts(self, name: str) -> Counts:
        if name not in self.counts:
            self.counts[name] = Counts(connections=int(self._announced))
        return self.counts[name]
