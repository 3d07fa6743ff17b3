"""Who is in reach: a scan without any link."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from bleak import BleakScanner
from bleak.exc import BleakError

from ..errors import WearableError
from ..printable import printable
from ..wearables import profiles_of_advertisement
from .adapters import Bluetooth
from .link_errors import sentence_of


@dataclass(frozen=True)
class Nearby:
    """A device that advertises.

    Attributes:
        name: Advertised name, made printable; empty if it shows none.
        address: Bluetooth address.
        rssi: Signal strength in dBm, of the adapter that hears it best.
        services: UUIDs of the services that it advertises.
        profiles: Names of the profiles that armlet reads it by; empty if it is no wearable that armlet knows.
        carries: Names of the modalities that devices of these profiles may carry.
    """

    name: str
    address: str
    rssi: int
    services: tuple[str, ...]
    profiles: tuple[str, ...]
    carries: tuple[str, ...]


async def who_is_near(adapters: Sequence[Bluetooth], seconds: float) -> list[Nearby]:
    """Listen on all adapters at once; first the devices that armlet can read, the nearest first.

    Raises:
        WearableError: An adapter does not scan.
    """
    try:
        async with AsyncExitStack() as scanning:
            scanners = [
                await scanning.enter_async_context(BleakScanner(backend=adapter.scanner, **adapter.options))
                for adapter in adapters
            ]
            await asyncio.sleep(seconds)
            heard = [
                pair for scanner in scanners for pair in scanner.discovered_devices_and_advertisement_data.values()
            ]
    except (BleakError, OSError, EOFError, asyncio.TimeoutError) as error:
        raise WearableError(
            f"cannot scan ({sentence_of(error)}): check that an adapter is there and powered, or name another with "
            f"--bluetooth"
        ) from error
    nearby: dict[str, Nearby] = {}
    for device, advertisement in heard:
        known = nearby.get(device.address)
        if known is not None and advertisement.rssi <= known.rssi:
            continue
        name = printable(advertisement.local_name or device.name or "")
        profiles = profiles_of_advertisement(name, advertisement.service_uuids)
        nearby[device.address] = Nearby(
            name,
            device.address,
            advertisement.rssi,
            tuple(advertisement.service_uuids),
            tuple(profile.name for profile in profiles),
            tuple(dict.fromkeys(modality for profile in profiles for modality in profile.carries)),
        )
    return sorted(nearby.values(), key=lambda device: (not device.profiles, -device.rssi, device.address))
