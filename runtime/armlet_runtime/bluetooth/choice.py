"""Which wearables a run connects: those that a person named. A stranger is neither connected nor written to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from ..errors import UsageError
from .adapters import Bluetooth
from .reach import Nearby, who_is_near

ANY = "any"
"""As the only name: every wearable in reach that armlet can use; for demonstrations and tests."""

LISTEN_S = 5.0
"""How long to listen for who is in reach: the slowest wearables advertise once in 2 s."""

Ask = Callable[[Sequence[Nearby]], Sequence[Nearby]]
"""Has a person choose among the wearables in reach."""


async def choose_wearables(
    adapters: Sequence[Bluetooth], names: Sequence[str], modalities: Collection[str] = (), ask: Ask | None = None
) -> tuple[str, ...]:
    """The names for a :class:`armlet_runtime.bluetooth.Session`; an empty tuple means every wearable in reach.

    Args:
        adapters: Listened on, if nobody was named.
        names: Advertised names or addresses that a person gave, or :data:`ANY`.
        modalities: Only wearables that may carry one of these are proposed; all if empty.
        ask: Has a person choose if nobody was named; None if no person is there.

    Raises:
        UsageError: Nobody was named or chosen.
        WearableError: Nobody was named, and there is no usable Bluetooth here.
    """
    if tuple(names) == (ANY,):
        return ()
    if ANY in names:
        raise UsageError(f"'{ANY}' means every wearable in reach: give it alone, or names without it")
    if names:
        return tuple(names)
    nearby = [device for device in await who_is_near(adapters, LISTEN_S) if device.profiles]
    useful = [device for device in nearby if not modalities or set(modalities) & set(device.carries)]
    chosen = ask(useful) if ask is not None and useful else ()
    if not chosen:
        reach = f"in reach: {', '.join(map(_described, useful))}" if useful else "no wearable of use is in reach"
        raise UsageError(f"name the wearables to connect with --wearables NAME,NAME ({reach})")
    return names_of(chosen, nearby)


def names_of(chosen: Sequence[Nearby], nearby: Sequence[Nearby]) -> tuple[str, ...]:
    """By what to call devices: their names; the address where a name is missing, not unique, or no word of a list."""
    counts = Counter(device.name for device in nearby)
    return tuple(
        device.name if device.name and counts[device.name] == 1 and "," not in device.name else device.address
        for device in chosen
    )


def _described(device: Nearby) -> str:
    return f"'{device.name}' {device.address}" if device.name else device.address
