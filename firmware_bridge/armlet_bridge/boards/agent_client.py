"""The link to a board's agent (:mod:`armlet_runtime.install.agent`), whatever carries it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import msgspec

from armlet_runtime.bundle import Front, Trust
from armlet_runtime.errors import DeployError
from armlet_runtime.install import (
    LENGTHS,
    BoardDescription,
    PlaceState,
    Update,
    UpdateResult,
    UpdateState,
    decode_message,
    frame_sizes,
    pack_frame,
)
from armlet_runtime.printable import printable_texts

ANSWER_S = 60.0


class BoardError(DeployError):
    """A board refused what was asked of it, or could not do it.

    Attributes:
        result: How the board names the kind of failure.
    """

    def __init__(self, message: str, result: UpdateResult) -> None:
        """``message``: the board's sentence."""
        super().__init__(message)
        self.result = result


class LinkError(DeployError):
    """A board cannot be reached, or was lost."""


class Reader(Protocol):
    """What frames are read from."""

    async def readexactly(self, n: int) -> bytes:
        """That many bytes, or asyncio.IncompleteReadError."""
        ...


class Writer(Protocol):
    """What frames are written to."""

    def write(self, data: bytes) -> None:
        """Send bytes."""
        ...

    async def drain(self) -> None:
        """Wait until there is room for more."""
        ...


class AgentClient:
    """A board's agent at the other end of a link."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        """Speak over these."""
        self._reader, self._writer = reader, writer

    async def _send(self, message: dict[str, Any], data: bytes) -> None:
        self._writer.write(pack_frame(message, data))
        await self._writer.drain()

    async def _receive(self) -> dict[str, Any]:
        try:
            text, data = frame_sizes(await asyncio.wait_for(self._reader.readexactly(LENGTHS.size), ANSWER_S))
            frame = await asyncio.wait_for(self._reader.readexactly(text + data), ANSWER_S)
        except asyncio.IncompleteReadError:
            raise LinkError("the link to the board ended") from None
        except TimeoutError:
            raise LinkError(f"the board has not answered for {ANSWER_S:.0f} s") from None
        # A terminal obeys escapes, and a board may be anybody's.
        message: dict[str, Any] = printable_texts(decode_message(frame))
        if "error" in message:
            raise BoardError(str(message["error"]), UpdateResult(message["result"]))
        return message

    async def hello(self) -> dict[str, Any]:
        """What the board is and has (:meth:`armlet_runtime.install.agent.Agent.hello`)."""
        await self._send({"op": "hello"}, b"")
        return await self._receive()

    async def logs(self, lines: int) -> dict[str, list[str]]:
        """The last lines of the last update's process (``update``) and of the unit's journal (``service``)."""
        await self._send({"op": "logs", "lines": lines}, b"")
        logs: dict[str, list[str]] = (await self._receive())["logs"]
        return logs

    async def trust(self, owner: Trust) -> list[str]:
        """Have a board that trusts nobody yet trust its owner's keys; names of all keys that it trusts then.

        A signed trust set is sent as it is, because its threshold and its version count for the next rotation.
        """
        if owner.document:
            await self._send({"op": "trust_set"}, owner.document)
        else:
            await self._send({"op": "trust"}, b"".join(key.public_bytes_raw() for key in owner.keys))
        names: list[str] = (await self._receive())["trusted"]
        return names

    async def describe(self, description: BoardDescription) -> None:
        """Tell a board what it is."""
        await self._send({"op": "describe"}, msgspec.json.encode(description))
        await self._receive()

    async def roll_back(self, permission: bytes | None) -> PlaceState:
        """Have the board use the bundle before its present one again; which that is."""
        await self._send({"op": "roll_back"}, permission or b"")
        return msgspec.convert((await self._receive())["place"], PlaceState)

    async def offer(self, front: Front, permission: bytes | None) -> list[dict[str, Any]]:
        """Offer a bundle; the parts that the board lacks."""
        first = permission or b""
        await self._send({"op": "offer", "permission": len(first)}, first + front.data)
        wanted: list[dict[str, Any]] = (await self._receive())["wanted"]
        return wanted

    async def put(self, sha256: str, offset: int, data: bytes) -> None:
        """Send bytes of a part; :meth:`taken` waits for the board's answer, several may be under way."""
        await self._send({"op": "put", "sha256": sha256, "offset": offset}, data)

    async def taken(self) -> None:
        """The board has taken in what the oldest unanswered :meth:`put` sent."""
        await self._receive()

    async def install(self, digest: str, permission: bytes | None) -> AsyncIterator[Update]:
        """Install what was offered; the states until it has ended."""
        await self._send({"op": "install", "digest": digest}, permission or b"")
        while True:
            update = msgspec.convert((await self._receive())["update"], Update)
            yield update
            if update.state is UpdateState.IDLE:
                return


Connect = Callable[[], contextlib.AbstractAsyncContextManager[AgentClient]]
