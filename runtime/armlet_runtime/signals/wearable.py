"""One wearable: what its packets, decoded and placed in time, give to the rings of its modalities."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..errors import PacketError, RepeatedPacketError
from ..modalities import Modality
from ..wearables import Batch, Decoder, Group, Profile, profile_of_characteristic
from .clock_fit import ClockFit
from .packet_clock import clock_of
from .placement import Counts, PacketClock
from .recording import Packet
from .sample_ring import SampleRing

# A line of text over the UART service is at most this many notifications long (512 bytes, 20 a notification).
_FRAGMENTS = 32


class Wearable:
    """One wearable: its link, its decoders, and the samples of its modalities.

    Attributes:
        name: Name in the session.
        linked: Whether the link is up.
        counts: Profile and group name to what became of their packets.
        clocks: Group name to its clock.
        rings: Modality name to its samples.
        problem: Why the newest unusable packet could not be used; empty without one.
        opening: The packets that a decoder of this connection needs to decode the next packet: the packets of the
            start, and the notifications from which the decoder learned what is sent. In order of arrival.
    """

    def __init__(self, name: str, keep_ns: int) -> None:
        """``keep_ns``: how much time before a modality's newest sample to keep."""
        self.name = name
        self.linked = False
        self.counts: dict[str, Counts] = {}
        self.clocks: dict[str, PacketClock] = {}
        self.rings: dict[str, SampleRing] = {}
        self.problem = ""
        self.opening: list[Packet] = []
        # Of each characteristic: its notifications since the newest that gave samples, and whether each gave some.
        self._unsampled: dict[str, deque[tuple[Packet, bool]]] = {}
        self._keep_ns = keep_ns
        self._decoders: dict[str, Decoder] = {}
        self._owners: dict[str, str] = {}  # modality to the group that brings it: the first that did
        self._announced = False
        self._host: ClockFit | None = None

    @property
    def groups(self) -> list[Group]:
        """The groups that the wearable sends, as far as they are known."""
        return [group for decoder in self._decoders.values() for group in decoder.groups]

    def take(self, packet: Packet) -> list[str]:
        """Take in any packet of this wearable; the names of the modalities that got samples."""
        if packet.kind == "connected":
            self.connected()
            self.opening.append(packet)
        elif packet.kind == "disconnected":
            self.disconnected()
        elif packet.kind in ("info", "written", "data", "earlier"):
            return self._take(packet)
        return []

    def connected(self) -> None:
        """The link was made: decoders are made anew from the packets that follow."""
        self.linked = True
        self._announced = True
        self._decoders.clear()
        self.opening.clear()
        self._unsampled.clear()
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
        self.opening.clear()
        self._unsampled.clear()

    def info(self, source: str, data: bytes) -> None:
        """Take in a value that was read from a characteristic at connection."""
        self._take(Packet(0, self.name, "info", source, data))

    def data(self, source: str, data: bytes, arrival_ns: int) -> list[str]:
        """Take in a notification; the names of the modalities that got samples."""
        return self._take(Packet(arrival_ns, self.name, "data", source, data))

    def _take(self, packet: Packet) -> list[str]:
        profile = profile_of_characteristic(packet.source)
        if profile is None:
            return []
        counts = self._counts(profile.name)
        if packet.kind == "data":
            self.linked = True
            counts.packets += 1
        decoder = self._decoders.get(profile.name)
        if decoder is None:
            decoder = self._decoders[profile.name] = profile.decoder()
        groups = decoder.groups
        batches: list[Batch] = []
        try:
            batches = decoder.take("data" if packet.kind == "earlier" else packet.kind, packet.source, packet.data)
        except RepeatedPacketError:
            counts.duplicated += 1
        except PacketError as error:
            counts.malformed += 1
            self.problem = str(error)
        self._remember(packet, bool(batches), decoder.groups is not groups)
        if packet.kind == "earlier":
            return []
        return [name for batch in batches if batch.count for name in self._place(profile, batch, packet.arrival_ns)]

    def _remember(self, packet: Packet, gave: bool, taught: bool) -> None:
        """Keep a packet, if it is of the opening.

        Args:
            packet: The newest packet.
            gave: It gave samples.
            taught: The decoder learned from it what is sent.
        """
        if packet.kind in ("info", "written"):
            self.opening.append(packet)
            return
        # What teaches may have begun in the notifications before, or at the end of one that gave samples.
        unsampled = self._unsampled.setdefault(packet.source, deque(maxlen=_FRAGMENTS))
        if gave and not taught:
            unsampled.clear()
        unsampled.append((packet, gave))
        if taught:
            self.opening += [replace(packet, kind="earlier") if sampled else packet for packet, sampled in unsampled]
            unsampled.clear()

    def _place(self, profile: Profile, batch: Batch, arrival_ns: int) -> list[str]:
        group = batch.group
        counts = self._counts(group.name)
        if group.name != profile.name:
            counts.packets += 1
        clock = self.clocks.get(group.name)
        if clock is None or clock.period_ns != group.period_ns:
            clock = self.clocks[group.name] = clock_of(group.counters, group.period_ns, counts)
        owned = [m for m in group.modalities if self._owners.setdefault(m.name, group.name) == group.name]
        for modality in owned:
            if modality.name not in self.rings or self.rings[modality.name].modality != modality:
                self.rings[modality.name] = SampleRing(modality, self._keep_ns)
        fed: list[str] = []
        for placed in clock.place(batch, arrival_ns):
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
