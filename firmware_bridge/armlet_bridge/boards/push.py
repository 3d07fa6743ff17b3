"""The transfer of a bundle to a board, over a link that may be lost on the way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from armlet_runtime.bundle import Bundle, Front, Trust, open_bundle, read_front
from armlet_runtime.install import Update, UpdateResult, UpdateState

from .agent_client import AgentClient, BoardError, Connect, LinkError

CHUNK = 1 << 16
"""Bytes of a part sent at a time, and how fine progress is shown."""

UNDER_WAY = 8
"""Chunks sent without an answer; these must be sent again when a link breaks. With a single chunk under way, a link
with a round trip of 300 ms would take 5 s for 1 MB, whatever its bandwidth."""

# Waits between attempts after a lost link; after as many failures in a row the deploy is given up.
RETRIES_S = (1.0, 2.0, 4.0, 8.0, 15.0)

Progress = Callable[[str, int, int], None]
"""Called with the state of an update, the bytes that the board has acknowledged, and all bytes to send."""


class Deployed(msgspec.Struct, frozen=True):
    """Result of a deploy to a board.

    Attributes:
        board: The target.
        digest: Digest of the bundle.
        result: Its outcome.
        message: The board's sentence on it.
        bytes_sent: Bytes of parts sent over the link, repeats included.
        bytes_bundle: Size of the bundle.
        links_lost: Number of lost links.
        seconds: Duration of the whole deploy.
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
    """Send a bundle to a board and have it installed; after a lost link the transfer continues where it stopped.

    Args:
        bundle: The bundle's file.
        name: Name of the board in the result.
        connecting: Opens a link to the board's agent; called again after a lost link.
        trusted: Keys to verify the bundle with first; the board verifies it with its own keys in any case.
        permission: The owner's signed permission to go back.
        progress: See :data:`Progress`.
        retries_s: Waits between attempts; the count starts anew after each acknowledged chunk.

    Returns:
        The result; the bundle is in use if its ``result`` is ``SUCCESS``.

    Raises:
        BundleError: The bundle is damaged or not signed; nothing was sent.
        LinkError: The board could not be reached in any attempt; it keeps its present bundle.
    """
    whole = open_bundle(bundle, trusted)  # verifies every member before the first byte is sent
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
    """The transfer of a bundle over successive links.

    Attributes:
        front: The beginning of the bundle, which the board is offered.
        sent: Bytes of parts sent, repeats included.
        failed: Failed attempts since the last acknowledged chunk.
    """

    def __init__(self, bundle: Bundle, front: Front, permission: bytes | None, progress: Progress) -> None:
        self.front, self.sent, self.failed = front, 0, 0
        self._bundle, self._permission, self._progress = bundle, permission, progress
        self._member_names = {member.sha256: member.name for member in front.members}
        self._unanswered: deque[int] = deque()
        self._done = self._missing = 0

    async def attempt(self, board: AgentClient) -> Update:
        """Send the missing parts, have the bundle installed, and return the last state.

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
        # An empty part is sent as an empty chunk.
        for offset in range(part["have"], part["size"], CHUNK) if part["size"] else (0,):
            if len(self._unanswered) == UNDER_WAY:
                await self._answer(board)
            chunk = content[offset : offset + CHUNK]
            await board.put(part["sha256"], offset, chunk)
            self.sent += len(chunk)
            self._unanswered.append(len(chunk))

    async def _answer(self, board: AgentClient) -> None:
        """Wait until the board has stored the oldest chunk."""
        await board.acknowledged()
        self.failed = 0
        self._done += self._unanswered.popleft()
        self._progress("downloading", self._done, self._missing)
