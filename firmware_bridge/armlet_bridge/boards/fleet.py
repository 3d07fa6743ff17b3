"""Many boards at once: an inventory, canaries first, a bound on how many at a time, and a stop when too many fail.

An inventory is a TOML file::

    concurrency = 8            # boards at a time; optional
    stop_at = 0.2              # share of a group's boards that may fail before no more are begun; optional

    [[group]]                  # one after the other: put the canaries first
    name = "canary"
    boards = ["ssh://pi@desk-1"]

    [[group]]
    name = "ward"
    boards = ["ssh://pi@ward-1", "ssh://pi@ward-2"]

A group is begun when the one before it has ended within ``stop_at``. There is nothing to remember between two starts: a
board that runs the bundle already is left alone, so a second start goes on where the first ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tomllib

from armlet_runtime.bundle import Trust, read_front
from armlet_runtime.errors import DeployError, UsageError
from armlet_runtime.install import UpdateResult

from .agent_client import Connect
from .push import Deployed, push_bundle
from .target import FLEET, parse_target


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Boards that are deployed to side by side."""

    name: str
    boards: tuple[str, ...]


class Inventory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All boards of an owner, in the order in which they are to be deployed to."""

    group: tuple[Group, ...]
    concurrency: int = 8
    stop_at: float = 0.2


class Row(msgspec.Struct, frozen=True):
    """What happened to one board.

    Attributes:
        board: The target.
        group: Its group.
        outcome: ``deployed``, ``already`` (it ran the bundle before), ``failed``, or ``not begun``.
        message: The board's sentence, or why it was not reached.
        deployed: Figures, for a board that was deployed to.
    """

    board: str
    group: str
    outcome: str
    message: str
    deployed: Deployed | None = None


def read_inventory(path: Path) -> Inventory:
    """Read and check an inventory.

    Raises:
        UsageError: It cannot be read, or does not follow its form.
    """
    try:
        inventory = msgspec.convert(tomllib.loads(path.read_text()), Inventory)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"cannot read the inventory {path}: {error}") from None
    boards = [board for group in inventory.group for board in group.boards]
    if not boards:
        raise UsageError(f"the inventory {path} names no boards")
    for board in boards:
        parse_target(board)
        if boards.count(board) > 1:
            raise UsageError(f"the inventory {path} names {board} twice")
    if inventory.concurrency < 1 or not 0 <= inventory.stop_at <= 1:
        raise UsageError(f"{path}: concurrency is at least 1, and stop_at a share between 0 and 1")
    return inventory


def named_boards(targets: Sequence[str]) -> list[tuple[str, str]]:
    """Board and group of what a person gives: boards (of no group) and inventories, each board once.

    Raises:
        UsageError: One is no board, or its inventory cannot be read.
    """
    names: dict[str, str] = {}
    for target in targets:
        if target.startswith(FLEET):
            for group in read_inventory(Path(target.removeprefix(FLEET))).group:
                names |= dict.fromkeys(group.boards, group.name)
        else:
            names.setdefault(str(parse_target(target)), "")
    return list(names.items())


async def deploy_to_fleet(
    bundle: Path,
    inventory: Inventory,
    connecting: Callable[[str], Connect],
    trusted: Trust | None,
    report: Callable[[Row], None],
    permission: bytes | None = None,
) -> list[Row]:
    """Deploy to all boards of an inventory; a row for each, in its order.

    Args:
        bundle: The bundle's file.
        inventory: The boards.
        connecting: Board to what opens a link to its agent.
        trusted: As for :func:`armlet_bridge.boards.push.push_bundle`.
        report: Called with each board's row as it ends.
        permission: The owner's signed permission to go back.

    Raises:
        BundleError: The bundle is not whole or not signed; no board was touched.
    """
    digest = read_front(bundle, trusted).digest
    rows: dict[str, Row] = {}
    turns = asyncio.Semaphore(inventory.concurrency)
    stopped = False

    async def one(group: Group, board: str) -> None:
        nonlocal stopped
        async with turns:
            if stopped:
                return
            rows[board] = row = await _one(bundle, digest, group, board, connecting(board), trusted, permission)
            report(row)
            stopped = stopped or _failed(rows, group) > inventory.stop_at * len(group.boards)

    for group in inventory.group:
        await asyncio.gather(*(one(group, board) for board in group.boards))
    return [
        rows.get(board, Row(board, group.name, "not begun", "too many boards had failed before its turn"))
        for group in inventory.group
        for board in group.boards
    ]


def _failed(rows: dict[str, Row], group: Group) -> int:
    return sum(row.outcome == "failed" for row in rows.values() if row.group == group.name)


async def _one(
    bundle: Path,
    digest: str,
    group: Group,
    name: str,
    connecting: Connect,
    trusted: Trust | None,
    permission: bytes | None,
) -> Row:
    try:
        async with connecting() as board:
            hello = await board.hello()
            if hello["place"] is not None and hello["places"][hello["place"]]["digest"] == digest:
                return Row(name, group.name, "already", "it runs this bundle")
        done = await push_bundle(bundle, name, connecting, trusted, permission)
    except DeployError as error:
        return Row(name, group.name, "failed", str(error))
    except Exception as error:  # a board that answers nonsense must not keep the others from their bundle
        return Row(name, group.name, "failed", f"it does not answer as a board does ({type(error).__name__}: {error})")
    outcome = "deployed" if done.result is UpdateResult.SUCCESS else "failed"
    return Row(name, group.name, outcome, done.message, done)


def totals(rows: Sequence[Row]) -> dict[str, int]:
    """How many boards had each outcome."""
    return {name: sum(row.outcome == name for row in rows) for name in ("deployed", "already", "failed", "not begun")}


def table(rows: Sequence[Row]) -> Any:
    """All boards in one table (``rich.table.Table``); under it how many had each outcome."""
    from rich.table import Table
    from rich.text import Text

    counted = ", ".join(f"{number} {outcome}" for outcome, number in totals(rows).items() if number)
    made = Table(caption=counted)
    for heading in ("board", "group", "outcome", "what it said"):
        made.add_column(heading, overflow="fold")
    for row in rows:
        # Names are the owner's and sentences the boards': they are text, whatever brackets they hold.
        made.add_row(*map(Text, (row.board, row.group, row.outcome, row.message)))
    return made
