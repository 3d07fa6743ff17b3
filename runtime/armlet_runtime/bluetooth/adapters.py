"""Bluetooth adapters: opening those that ``--bluetooth`` names, scanning, and choosing one for a wearable."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol

from bleak import BleakScanner
from bleak.backends.client import BaseBleakClient
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData, BaseBleakScanner
from bleak.exc import BleakError

from ..errors import UsageError, WearableError
from .link_errors import sentence_of

log = logging.getLogger(__name__)

GROUP = "armlet.bluetooth"

# A Bluetooth stack that worked and refuses to scan for so long does not come back in this process.
GIVE_UP_S = 60.0
# bleak's placeholder for a signal strength that BlueZ does not have: some property of a known wearable changed, such as
# that its link was lost, and it was not heard.
NOT_HEARD = -127
# A scan in which nobody at all is heard for so long is begun anew: bluetoothd can believe that it scans when it does
# not (https://github.com/bluez/bluez/issues/807).
DEAF_S = 5.0
# Of two adapters that hear a wearable, sightings older than this do not count.
SIGHTING_S = 5.0


class Bluetooth(Protocol):
    """One adapter: what bleak takes as ``backend=``; None for bleak's own of this system."""

    @property
    def scanner(self) -> type[BaseBleakScanner] | None:
        """The scanner's class."""

    @property
    def client(self) -> type[BaseBleakClient] | None:
        """The client's class."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Further arguments of bleak's scanner and client."""

    def interval_ms(self, address: str) -> float | None:
        """The connection interval of the link to an address; None if it is not known."""


@dataclass(frozen=True)
class SystemBluetooth:
    """Bluetooth of this system. BlueZ does not report the connection interval, and no program can request another."""

    scanner: type[BaseBleakScanner] | None = None
    client: type[BaseBleakClient] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def interval_ms(self, address: str) -> float | None:
        """Not known."""
        return None


@asynccontextmanager
async def open_bluetooth(names: str) -> AsyncIterator[tuple[Bluetooth, ...]]:
    """Open the adapters that ``--bluetooth`` names, joined by ``+``.

    ``system`` is this system's default adapter, ``system:hci1`` another of BlueZ's, and ``NAME:TRANSPORT`` one of
    another back end, such as ``bumble:usb:0``.

    Raises:
        UsageError: There is no such back end.
        WearableError: The transport does not open.
    """
    async with AsyncExitStack() as stack:
        yield tuple([await stack.enter_async_context(_open_adapter(name)) for name in names.split("+")])


@asynccontextmanager
async def _open_adapter(name: str) -> AsyncIterator[Bluetooth]:
    kind, _, transport = name.partition(":")
    if kind == "system":
        yield SystemBluetooth(options={"bluez": {"adapter": transport}} if transport else {})
        return
    back_ends = {entry.name: entry for entry in entry_points(group=GROUP)}
    if kind not in back_ends or not transport:
        known = ", ".join(["system", *(f"{other}:TRANSPORT" for other in sorted(back_ends))])
        raise UsageError(f"there is no Bluetooth '{name}'; known here: {known}")
    try:
        opener: Callable[[str], Any] = back_ends[kind].load()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("armlet"):
            raise
        raise UsageError(
            f"Bluetooth '{kind}' needs the package '{error.name}', which is not installed: pip install 'armlet[bridge]'"
        ) from error
    async with opener(transport) as bluetooth:
        yield bluetooth


@dataclass(eq=False)
class Adapter:
    """An adapter of a session.

    Attributes:
        bluetooth: What drives it.
        connecting: Held during a connection attempt; an adapter makes one at a time.
        heard_at: When it heard anybody last, on the monotonic clock.
    """

    bluetooth: Bluetooth
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)
    heard_at: float = 0.0
    _worked: bool = False
    _refused_since: float | None = None

    @property
    def is_gone(self) -> bool:
        """Whether it never scanned, or has refused to for long."""
        since = self._refused_since
        return since is not None and (not self._worked or time.monotonic() - since > GIVE_UP_S)

    async def scan(
        self,
        wanted: Callable[[], bool],
        heard: Callable[[BLEDevice, AdvertisementData], None],
        change: Callable[[], Awaitable[None]],
    ) -> None:
        """Scan while it is wanted and anybody is heard.

        Args:
            wanted: Whether to scan.
            heard: Called with each advertisement.
            change: Returns when ``wanted`` may have changed.

        Raises:
            BleakError, OSError, EOFError: The adapter does not scan.
        """

        def detected(device: BLEDevice, advertisement: AdvertisementData) -> None:
            if advertisement.rssi != NOT_HEARD:
                self.heard_at = time.monotonic()
                heard(device, advertisement)

        try:
            async with BleakScanner(detected, backend=self.bluetooth.scanner, **self.bluetooth.options):
                self._worked, self._refused_since = True, None
                self.heard_at = time.monotonic()
                log.debug("the scan begins")
                while wanted() and time.monotonic() - self.heard_at < DEAF_S:
                    await change()
                reason = f"nothing heard for {DEAF_S:g} s" if wanted() else "nobody is missing"
                log.debug("the scan ends: %s", reason)
        except (BleakError, OSError, EOFError) as error:
            if self._refused_since is None:
                self._refused_since = time.monotonic()
                log.warning("the adapter does not scan (%s); trying again once a second", sentence_of(error))
            raise


async def keep_scanning(
    adapter: Adapter,
    adapters: Sequence[Adapter],
    wanted: Callable[[], bool],
    heard: Callable[[BLEDevice, AdvertisementData], None],
    change: Callable[[], Awaitable[None]],
) -> None:
    """Scan on an adapter whenever it is wanted; begin anew after an error. Never returns.

    Args:
        adapter: Which scans.
        adapters: All of the session: while one of them is usable, the session goes on.
        wanted, heard, change: See :meth:`Adapter.scan`.

    Raises:
        WearableError: No adapter can be used.
    """
    while True:
        if not wanted():
            await change()
            continue
        try:
            await adapter.scan(wanted, heard, change)
        except (BleakError, OSError, EOFError) as error:
            if all(other.is_gone for other in adapters):
                raise WearableError(
                    f"Bluetooth cannot be used here ({sentence_of(error)}): check that an adapter is there and "
                    f"powered, or name another with --bluetooth"
                ) from error
            await asyncio.sleep(1.0)


@dataclass(frozen=True)
class Sighting:
    """An advertisement of a wearable as one adapter heard it: the device, its signal in dBm, and when."""

    device: BLEDevice
    rssi: int
    at: float


def choose_adapter(sightings: Mapping[Adapter, Sighting], links: Mapping[Adapter, int]) -> Adapter:
    """The adapter for a wearable: of those that hear it the one with the fewest links, and of these the nearest.

    Args:
        sightings: The newest of the wearable, by adapter; one at least.
        links: Links by adapter.
    """
    newest = max(sighting.at for sighting in sightings.values())
    fresh = {adapter: sighting for adapter, sighting in sightings.items() if newest - sighting.at <= SIGHTING_S}
    return min(fresh, key=lambda adapter: (links.get(adapter, 0), -fresh[adapter].rssi))
