"""A fleet: canaries first, a stop when too many fail, broken boards told truly, and a second start that goes on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from armlet_bridge.boards import agent_client
from armlet_bridge.boards.agent_client import AgentClient, LinkError
from armlet_bridge.boards.fleet import Group, Inventory, Row, deploy_to_fleet, read_inventory, table, totals
from armlet_runtime.bundle import keys
from armlet_runtime.bundle.container import open_bundle
from armlet_runtime.errors import UsageError
from armlet_runtime.install import pack_frame
from armlet_runtime.install.slots import current_bundle, read_state

MakeBundle = Callable[..., Path]
BOARDS = 50
STRANGER, BROKEN, OFF = "board-13", "board-27", "board-41"
"""It trusts another owner; its slot is broken; it is switched off."""


@pytest.fixture
def fleet(tmp_path: Path, signing_key: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of boards, and a socket at which they are reached."""
    owner = keys.load_public(signing_key.with_name(signing_key.name + ".pub"))
    other = keys.generate(tmp_path / "other.key").public_key()
    folder = tmp_path / "fleet"
    for number in range(BOARDS):
        prefix = folder / f"board-{number}"
        monkeypatch.setenv("ARMLET_HOME", str(prefix / "home"))
        keys.trust(other if prefix.name == STRANGER else owner)
    (folder / BROKEN / "slot").mkdir()
    (folder / BROKEN / "slot" / "current").write_text("not a link")
    command = [sys.executable, "-m", "tests.support.made_fleet", str(tmp_path / "socket"), str(folder)]
    boards_ = subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True)
    while not (tmp_path / "socket").exists():
        assert boards_.poll() is None
        time.sleep(0.05)
    yield folder
    os.killpg(boards_.pid, signal.SIGKILL)  # what it forked for each link, too
    boards_.wait()


def connecting(fleet: Path) -> Callable[[str], agent_client.Connect]:
    """Links to the boards."""

    def to(target: str) -> agent_client.Connect:
        name = target.removeprefix("ssh://")

        @contextlib.asynccontextmanager
        async def connect() -> AsyncIterator[AgentClient]:
            if name == OFF:
                raise LinkError(f"cannot reach {target}: No route to host")
            reader, writer = await asyncio.open_unix_connection(fleet.parent / "socket")
            writer.write(f"{name}\n".encode())
            try:
                yield AgentClient(reader, writer)
            finally:
                writer.close()

        return connect

    return to


def inventory(stop_at: float = 1.0) -> Inventory:
    names = tuple(f"ssh://board-{number}" for number in range(BOARDS))
    return Inventory((Group("canary", names[:2]), Group("rest", names[2:])), concurrency=6, stop_at=stop_at)


@pytest.mark.full("fifty boards")
@pytest.mark.long(limit_s=180, reason="starts the agents of fifty boards")
async def test_fifty_boards_of_which_three_are_broken(make_bundle: MakeBundle, fleet: Path) -> None:
    bundle = make_bundle(1)
    order: list[Row] = []
    rows = await deploy_to_fleet(bundle, inventory(), connecting(fleet), None, order.append)
    said = {row.board.removeprefix("ssh://"): row.message for row in rows if row.outcome == "failed"}
    assert totals(rows) == {"deployed": BOARDS - 3, "already": 0, "failed": 3, "not begun": 0}, said
    assert "is not trusted here" in said[STRANGER]
    assert "not a link to one of" in said[BROKEN]
    assert "No route to host" in said[OFF]
    assert {row.group for row in order[:2]} == {"canary"}
    digest = open_bundle(bundle, None).digest
    for number in range(BOARDS):
        slot = fleet / f"board-{number}" / "slot"
        if slot.parent.name not in said:
            assert open_bundle(current_bundle(slot), None).digest == digest
            assert read_state(slot).probation is None

    console = Console(file=io.StringIO(), width=200)
    console.print(table(rows))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert all(shown.count(f"ssh://board-{number} ") == 1 for number in range(BOARDS))
    assert "47 deployed, 3 failed" in shown and "No route to host" in shown

    shutil.rmtree(fleet / BROKEN / "slot")
    again = await deploy_to_fleet(bundle, inventory(), connecting(fleet), None, lambda row: None)
    assert totals(again) == {"deployed": 1, "already": BOARDS - 3, "failed": 2, "not begun": 0}


async def test_it_stops_when_the_canaries_fail_and_goes_on_with_a_better_bundle(
    make_bundle: MakeBundle, fleet: Path
) -> None:
    bad = make_bundle(2, golden_error=0.5)
    rows = await deploy_to_fleet(bad, inventory(stop_at=0.2), connecting(fleet), None, lambda row: None)
    assert 1 <= totals(rows)["failed"] <= 2 and totals(rows)["not begun"] >= BOARDS - 2
    assert rows[0].outcome == "failed" and "golden run" in rows[0].message
    untouched = [fleet / f"board-{number}" / "slot" / "current" for number in range(2, BOARDS)]
    assert not any(link.is_symlink() for link in untouched)
    three = Inventory((Group("canary", ("ssh://board-0",)), Group("rest", ("ssh://board-1", "ssh://board-2"))))
    better = await deploy_to_fleet(make_bundle(3), three, connecting(fleet), None, lambda row: None)
    assert totals(better)["deployed"] == 3


class Deaf:
    """A writer to nobody."""

    def write(self, data: bytes) -> None:
        """Send nothing."""

    async def drain(self) -> None:
        """Wait for nothing."""


async def test_a_board_that_answers_nonsense_is_one_row(make_bundle: MakeBundle) -> None:
    def to(target: str) -> agent_client.Connect:
        @contextlib.asynccontextmanager
        async def connect() -> AsyncIterator[AgentClient]:
            reader = asyncio.StreamReader()
            reader.feed_data(pack_frame({"place": "a", "places": 7}))
            yield AgentClient(reader, Deaf())

        return connect

    one = Inventory((Group("one", ("ssh://odd",)),))
    (row,) = await deploy_to_fleet(make_bundle(1), one, to, None, lambda row: None)
    assert row.outcome == "failed" and "its answer is not that of a board" in row.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing required field `group`"),
        ("[[group]]\nname = 'a'\nboards = []", "names no boards"),
        ("[[group]]\nname = 'a'\nboards = ['ssh://x', 'ssh://x']", "names ssh://x twice"),
        ("[[group]]\nname = 'a'\nboards = ['x']", "is not a board's address"),
        ("concurency = 3\n[[group]]\nname = 'a'\nboards = ['ssh://x']", "unknown field `concurency`"),
        ("stop_at = 3.0\n[[group]]\nname = 'a'\nboards = ['ssh://x']", "share between 0 and 1"),
    ],
)
def test_an_inventory_is_checked(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "boards.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_inventory(tmp_path / "boards.toml")
