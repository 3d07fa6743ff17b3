"""Play a recording with virtual wearables, and decide on them live in the same process, without Bluetooth hardware.

Usage: ``python virtual_wearables.py recording.mcap model.armlet SECONDS [signing.key.pub]``. Prints each decision. The
link of the first wearable is lost after half of the time: decisions go on with what is left.
"""

import asyncio
import sys
from pathlib import Path

from armlet_bridge.virtual import AirLink, LinkLoss, default_wearables, put_on, serve
from armlet_runtime import open_live
from armlet_runtime.signals import read_recording


async def main(recording_path: str, bundle: str, duration: str, *keys: str) -> None:
    """Wear everything that the recording has, and run the bundle."""
    recording, seconds = read_recording(Path(recording_path)), float(duration)
    specs, air = default_wearables(recording), AirLink()
    loss = LinkLoss(specs[0].name, seconds / 2, seconds)
    async with put_on(recording, air, specs) as worn, serve(air, "tcp-server:127.0.0.1:0") as transport:
        playing = asyncio.create_task(worn.run(duration_s=seconds + 1, losses=[loss]))
        live = open_live(
            bundle,
            bluetooth=f"bumble:{transport}",
            wearables=[spec.name for spec in specs],
            duration_s=seconds,
            keys=[Path(key) for key in keys],
        )
        async for decision in live:
            print(decision.label, "on", "+".join(decision.subset) or decision.reason, flush=True)
        playing.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
