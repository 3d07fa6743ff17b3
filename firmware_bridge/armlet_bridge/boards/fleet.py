"""Deploys to many boards: an inventory, canaries first, a limit on boards at a time, a stop when too many fail.

An inventory is a TOML file::

    concurrency = 8            # boards at a time; optional
    stop_at = 0.2              # share of a group's boards whose failure stops the deploy; optional

    [[group]]                  # groups follow each other: put the canaries first
    name = "canary"
    boards = ["ssh://pi@desk-1"]

    [[group]]
    name = "ward"
    boards = ["ssh://pi@ward-1", "ssh://pi@ward-2"]

A group is begun when the group before it has ended within ``stop_at``. No state is kept between two deploys: boards
that run the bundle already are left alone, so a second deploy continues where the first ended.
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
    """Boards that are deployed to at the same time."""

    name: str
    boards: tuple[str, ...]


class Inventory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All boards of an owner, in the order in which they are to be deployed to."""

    group: tuple[Group, ...]
    concurrency: int = 8
    stop_at: float = 0.2


class Row(msgspec.Struct, frozen=True):
    """Outcome of a deploy to a board of a fleet.

    Attributes:
        board: The target.
        group: Its group.
        outcome: ``deployed``, ``already`` (it ran the bundle before), ``failed``, or ``not begun``.
        message: The board's sentence, or why it could not be reached.
        deployed: Figures of a deploy that reached the board.
    """

    board: str
    group: str
    outcome: str
    message: str
    deployed: Deployed | None = None


def read_inventory(path: Path) -> Inventory:
    """Read and check an inventory.

    Raises:
        UsageError: The file cannot be read, or is not a valid inventory.
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
    """List the boards and groups of targets, which are boards (of no group) or inventories; each board once.

    Raises:
        UsageError: A target is not a board's address, or an inventory cannot be read.
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
    """Deploy to all boards of an inventory; return a row for each board, in the inventory's order.

    Args:
        bundle: The bundle's file.
        inventory: The boards.
        connecting: Maps a board to a function that opens a link to its agent.
        trusted: As for :func:`armlet_bridge.boards.push.push_bundle`.
        report: Called with each board's row as it ends.
        permission: The owner's signed permission to go back.

    Raises:
        BundleError: The bundle is damaged or not signed; no board was touched.
    """
    digest = read_front(bundle, trusted).digest
    rows: dict[str, Row] = {}
    turns = asyncio.Semaphore(inventory.concurrency)
    stopped = False

    async def deploy(group: Group, board: str) -> None:
        nonlocal stopped
        async with turns:
            if stopped:
                return
            rows[board] = row = await _deploy(bundle, digest, group, board, connecting(board), trusted, permission)
            report(row)
            stopped = stopped or _failed(rows, group) > inventory.stop_at * len(group.boards)

    for group in inventory.group:
        await asyncio.gather(*(deploy(group, board) for board in group.boards))
    return [
        rows.get(board, Row(board, group.name, "not begun", "too many boards had failed before its turn"))
        for group in inventory.group
        for board in group.boards
    ]


def _failed(rows: dict[str, Row], group: Group) -> int:
    return sum(row.outcome == "failed" for row in rows.values() if row.group == group.name)


async def _deploy(
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
    except Exception as error:  # an invalid answer of a board must not stop the deploy to the others
        return Row(name, group.name, "failed", f"its answer is not that of a board ({type(error).__name__}: {error})")
    outcome = "deployed" if done.result is UpdateResult.SUCCESS else "failed"
    return Row(name, group.name, outcome, done.message, done)


def totals(rows: Sequence[Row]) -> dict[str, int]:
    """Count the boards of each outcome."""
    return {name: sum(row.outcome == name for row in rows) for name in ("deployed", "already", "failed", "not begun")}


def table(rows: Sequence[Row]) -> Any:
    """Format the rows as a table (``rich.table.Table``) with the totals as its caption."""
    from rich.table import Table
    from rich.text import Text

    counts = ", ".join(f"{number} {outcome}" for outcome, number in totals(rows).items() if number)
    grid = Table(caption=counts)
    for heading in ("board", "group", "outcome", "message"):
        grid.add_column(heading, overflow="fold")
    for row in rows:
        # As Text, because rich takes brackets in a plain string for markup.
        grid.add_row(*map(Text, (row.board, row.group, row.outcome, row.message)))
    return grid
