"""The status of boards: bundle, last update, systemd unit and clock; many boards at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from armlet_runtime.errors import DeployError
from armlet_runtime.install import PlaceState, Update, UpdateResult, UpdateState

from .agent_client import Connect

CONCURRENCY = 16
"""Boards queried at a time."""


class Status(msgspec.Struct, frozen=True):
    """Status of a board.

    Attributes:
        board: The target.
        group: Its group in an inventory; empty for a board of no group.
        bundle: Bundle in use; None before the first deploy.
        before: Previous bundle, for a rollback; None if the board holds no other bundle.
        update: Its last update, or the reason why the board could not be reached.
        unit: State of its systemd unit in systemd's terms, ``none`` without a unit, ``unknown`` if the board could not
            be reached.
        clock_s: Its clock minus this machine's, seconds.
    """

    board: str
    group: str
    bundle: PlaceState | None
    before: PlaceState | None
    update: Update
    unit: str
    clock_s: float

    @property
    def well(self) -> bool:
        """Whether the board has a bundle in use, and a unit, if any, that runs or was stopped.

        systemd calls a unit that fails and is restarted again and again ``activating``.
        """
        return self.bundle is not None and self.unit not in ("failed", "activating", "unknown")


def status(board: str, group: str, hello: dict[str, Any]) -> Status:
    """Read a board's description (:meth:`armlet_runtime.install.agent.Agent.hello`) as its status."""
    places = msgspec.convert(hello["places"], dict[str, PlaceState])
    in_use = hello["place"]
    return Status(
        board=board,
        group=group,
        bundle=places.get(in_use),
        before=next((entry for place, entry in places.items() if place != in_use), None),
        update=msgspec.convert(hello["update"], Update),
        unit=hello["service"],
        clock_s=hello["clock"] - time.time(),
    )


async def statuses(boards: Sequence[tuple[str, str]], connecting: Callable[[str], Connect]) -> list[Status]:
    """Query the status of each board.

    Args:
        boards: Target and group of each.
        connecting: Maps a board to a function that opens a link to its agent.
    """
    turns = asyncio.Semaphore(CONCURRENCY)

    async def query(name: str, group: str) -> Status:
        async with turns:
            try:
                async with connecting(name)() as board:
                    return status(name, group, await board.hello())
            except DeployError as error:
                update = Update(UpdateState.IDLE, UpdateResult.CONNECTION_LOST, "", str(error), 0.0)
                return Status(name, group, None, None, update, "unknown", 0.0)

    return list(await asyncio.gather(*(query(name, group) for name, group in boards)))
