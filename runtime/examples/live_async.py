"""Decide live inside an event loop, for as long as something else takes.

Usage: ``python live_async.py model.armlet SECONDS BLUETOOTH NAME...``; BLUETOOTH is ``system`` for this computer's own.
Prints how often each label was decided, and the state of each wearable at the end.
"""

import asyncio
import sys
from collections import Counter

from armlet_runtime import open_live


async def main(bundle: str, seconds: float, bluetooth: str, names: list[str]) -> None:
    """Count labels until the time is over."""
    live = open_live(bundle, bluetooth=bluetooth, wearables=names, duration_s=seconds)
    counts = Counter([decision.label or decision.reason async for decision in live])
    for label, count in counts.most_common():
        print(f"{label}: {count}")
    for name, wearable in live.core.wearables.items():
        print(f"{name}: {', '.join(wearable.rings)}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3], sys.argv[4:]))
