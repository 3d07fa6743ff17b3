"""List the wearables in reach, with the nearest first.

Usage: ``python scan.py [BLUETOOTH]``; BLUETOOTH is ``system`` (default) for this computer's own. Prints name, address,
signal strength, and what armlet can read from each. Nothing is connected.
"""

import asyncio
import sys

from armlet_runtime.bluetooth import open_bluetooth, who_is_near


async def main(bluetooth: str = "system") -> None:
    """Listen for five seconds."""
    async with open_bluetooth(bluetooth) as adapters:
        for device in await who_is_near(adapters, 5.0):
            carries = ", ".join(device.carries) or "nothing that armlet reads"
            print(f"{device.name or '(no name)'} {device.address} {device.rssi} dBm: {carries}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
