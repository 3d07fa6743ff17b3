"""A bundle onto a board, over a link that may be lost on the way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from armlet_runtime.bundle import Bundle, Front, Trust, open_bundle, read_front
from armlet_runtime.install import (
    Update,
    UpdateResult,
    UpdateState,
)

from .agent_client import AgentClient, BoardError, Connect, LinkError

CHUNK = 1 << 16
"""Bytes of a part sent at a time, and how fine progress is shown."""

UNDER_WAY = 8
"""Chunks sent without waiting for an answer: what is sent again at most when a link breaks. With one at a time, a link
that takes 300 ms would carry 1 MB in 5 s, however fast it is."""


# Waiting between attempts after a link was lost; when all have failed one after the other, the deploy is given up.
RETRIES_S = (1.0, 2.0, 4.0, 8.0, 15.0)

Progress = Callable[[str, int, int], None]
"""Is called with the state of an update, the bytes done and all bytes."""


class Deployed(msgspec.Struct, frozen=True):
    """What a deploy onto a board did.

    Attributes:
        board: The target.
        digest: Digest of the bundle.
        result: How it ended.
        message: One sentence of the board's.
        bytes_sent: Bytes of parts that went over the link, repeats included.
        bytes_bundle: Bytes of the bundle.
        links_lost: How often the link was lost on the way.
        seconds: From first to last.
    """

    board: str
    digest: str
    result: UpdateResult
    message: str
    bytes_sent: int
    bytes_bundle: int
    links_lost: int
    seconds: float


async def push_bundle(
    bundle: Path,
    name: str,
    connecting: Connect,
    trusted: Trust | None = None,
    permission: bytes | None = None,
    progress: Progress = lambda state, done, total: None,
    retries_s: tuple[float, ...] = RETRIES_S,
) -> Deployed:
    """Bring a bundle onto a board and have it installed; after a lost link the transfer goes on where it stopped.

    Args:
        bundle: The bundle's file.
        name: Name of the board in the result.
        connecting: Opens a link to the board's agent; called again after a loss.
        trusted: Keys to verify the bundle with first; the board verifies it with its own keys in any case.
        permission: The owner's signed permission to go back.
        progress: Called with the state, the bytes done and all bytes.
        retries_s: Waits between attempts; the count starts anew whenever bytes got through.

    Returns:
        What was done; ``result`` says whether the bundle is in use now.

    Raises:
        BundleError: The bundle is not whole or not signed; nothing was sent.
        LinkError: The board could not be reached in any attempt; it keeps what it has.
    """
    whole = open_bundle(bundle, trusted)  # all of it, before the first byte goes out
    transfer = _Transfer(whole, read_front(bundle, trusted), permission, progress)
    loop = asyncio.get_running_loop()
    began, links_lost = loop.time(), 0
    while True:
        try:
            async with connecting() as board:
                update = await transfer.attempt(board)
            break
        except LinkError:
            links_lost += 1
            if transfer.failed == len(retries_s):
                raise
            await asyncio.sleep(retries_s[transfer.failed])
            transfer.failed += 1
        except BoardError as error:
            update = Update(UpdateState.IDLE, error.result, transfer.front.digest, str(error), 0.0)
            break
    front, seconds = transfer.front, loop.time() - began
    return Deployed(name, front.digest, update.result, update.message, transfer.sent, front.size, links_lost, seconds)


class _Transfer:
    """The transfer of one bundle, over one link after the other.

    Attributes:
        front: What the board is offered.
        sent: Bytes that went out, repeats included.
        failed: Attempts since the last one in which bytes got through.
    """

    def __init__(self, bundle: Bundle, front: Front, permission: bytes | None, progress: Progress) -> None:
        self.front, self.sent, self.failed = front, 0, 0
        self._bundle, self._permission, self._progress = bundle, permission, progress
        self._member_names = {member.sha256: member.name for member in front.members}
        self._unanswered: deque[int] = deque()
        self._done = self._missing = 0

    async def attempt(self, board: AgentClient) -> Update:
        """Send what the board lacks, have it installed, and give the state in which that ended.

        Raises:
            BoardError: The board refuses the bundle.
            LinkError: The link was lost.
        """
        parts = await board.offer(self.front, self._permission)
        self._unanswered.clear()
        self._done, self._missing = 0, sum(part["size"] - part["have"] for part in parts)
        for part in parts:
            await self._send(board, part)
        while self._unanswered:
            await self._answer(board)
        async for update in board.install(self.front.digest, self._permission):
            self._progress(update.state.name.lower(), self._done, self._missing)
        return update

    async def _send(self, board: AgentClient, part: Mapping[str, Any]) -> None:
        content = self._bundle.read(self._member_names[part["sha256"]])
        # An empty part is one empty chunk.
        for offset in range(part["have"], part["size"], CHUNK) if part["size"] else (0,):
            if len(self._unanswered) == UNDER_WAY:
                await self._answer(board)
            chunk = content[offset : offset + CHUNK]
            await board.put(part["sha256"], offset, chunk)
            self.sent += len(chunk)
            self._unanswered.append(len(chunk))

    async def _answer(self, board: AgentClient) -> None:
        """Wait until the board has taken in the oldest chunk."""
        await board.taken()
        self.failed = 0
        self._done += self._unanswered.popleft()
        self._progress("downloading", self._done, self._missing)
