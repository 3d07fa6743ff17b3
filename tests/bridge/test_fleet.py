"""A fleet: canaries first, a stop when too many fail, broken boards told truly, and a second start that goes on."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from armlet_bridge import boards
from armlet_bridge.boards import Board, LinkError
from armlet_bridge.fleet import Group, Inventory, Row, deploy_to_fleet, read_inventory, totals
from armlet_runtime import keys
from armlet_runtime.errors import UsageError

MakeBundle = Callable[..., Path]
BOARDS = 10


@pytest.fixture
def fleet(tmp_path: Path, signing_key: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of boards; all but the third trust the owner, the fifth has a broken slot."""
    for number in range(BOARDS):
        prefix = tmp_path / f"board-{number}"
        monkeypatch.setenv("ARMLET_HOME", str(prefix / "home"))
        if number != 3:
            keys.trust(keys.load_public(signing_key.with_name(signing_key.name + ".pub")))
        prefix.mkdir(exist_ok=True)
    slot = tmp_path / "board-5" / "slot"
    slot.mkdir()
    (slot / "current").write_text("not a link")
    return tmp_path


def connecting(fleet: Path) -> Callable[[str], boards.Connect]:
    """Links to agents on pipes; the board of number 7 is switched off."""

    def to(target: str) -> boards.Connect:
        number = target.rpartition("-")[2]

        @contextlib.asynccontextmanager
        async def connect() -> AsyncIterator[Board]:
            if number == "7":
                raise LinkError(f"cannot reach {target}: No route to host")
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "armlet_bridge.agent", str(fleet / f"board-{number}"),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdin is not None and process.stdout is not None
            try:
                yield Board(process.stdout, process.stdin)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

        return connect

    return to


def inventory(stop_at: float = 1.0) -> Inventory:
    names = tuple(f"ssh://board-{number}" for number in range(BOARDS))
    return Inventory((Group("canary", names[:2]), Group("rest", names[2:])), concurrency=3, stop_at=stop_at)


async def test_a_fleet_with_three_broken_boards(
    make_bundle: MakeBundle, fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "RETRIES_S", (0.0,))
    order: list[Row] = []
    rows = await deploy_to_fleet(make_bundle(1), inventory(), connecting(fleet), None, order.append)
    assert totals(rows) == {"deployed": BOARDS - 3, "already": 0, "failed": 3, "not begun": 0}
    said = {row.board: row.message for row in rows if row.outcome == "failed"}
    assert "is not trusted here" in said["ssh://board-3"]
    assert "not a link to one of" in said["ssh://board-5"]
    assert "No route to host" in said["ssh://board-7"]
    assert {row.group for row in order[:2]} == {"canary"}
    shutil.rmtree(fleet / "board-5" / "slot")
    again = await deploy_to_fleet(make_bundle(1), inventory(), connecting(fleet), None, lambda row: None)
    assert totals(again) == {"deployed": 1, "already": BOARDS - 3, "failed": 2, "not begun": 0}


async def test_it_stops_when_the_canaries_fail(make_bundle: MakeBundle, fleet: Path) -> None:
    bad = make_bundle(2, golden_error=0.5)
    rows = await deploy_to_fleet(bad, inventory(stop_at=0.2), connecting(fleet), None, lambda row: None)
    assert 1 <= totals(rows)["failed"] <= 2 and totals(rows)["not begun"] >= BOARDS - 2
    assert rows[0].outcome == "failed" and "golden run" in rows[0].message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing required field `group`"),
        ("[[group]]\nname = 'a'\nboards = []", "names no boards"),
        ("[[group]]\nname = 'a'\nboards = ['ssh://x', 'ssh://x']", "names ssh://x twice"),
        ("[[group]]\nname = 'a'\nboards = ['x']", "is no board"),
        ("concurency = 3\n[[group]]\nname = 'a'\nboards = ['ssh://x']", "unknown field `concurency`"),
        ("stop_at = 3.0\n[[group]]\nname = 'a'\nboards = ['ssh://x']", "share between 0 and 1"),
    ],
)
def test_an_inventory_is_checked(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "boards.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_inventory(tmp_path / "boards.toml")
