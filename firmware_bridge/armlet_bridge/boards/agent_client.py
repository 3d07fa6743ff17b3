"""A client of a board's agent (:mod:`armlet_runtime.install.agent`) over any pair of byte streams."""

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
    """A board refused a request, or failed at it.

    Attributes:
        result: The board's class of the failure.
    """

    def __init__(self, message: str, result: UpdateResult) -> None:
        """``message``: the board's sentence on the failure."""
        super().__init__(message)
        self.result = result


class LinkError(DeployError):
    """A board cannot be reached, or its link was lost."""


class Reader(Protocol):
    """The stream from which frames are read."""

    async def readexactly(self, n: int) -> bytes:
        """Read ``n`` bytes, or raise asyncio.IncompleteReadError."""
        ...


class Writer(Protocol):
    """The stream to which frames are written."""

    def write(self, data: bytes) -> None:
        """Send bytes."""
        ...

    async def drain(self) -> None:
        """Wait until the stream takes more bytes."""
        ...


class AgentClient:
    """Requests to a board's agent."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        """Read answers from ``reader`` and write requests to ``writer``."""
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
        # A board's text may hold terminal escapes.
        message: dict[str, Any] = printable_texts(decode_message(frame))
        if "error" in message:
            raise BoardError(str(message["error"]), UpdateResult(message["result"]))
        return message

    async def hello(self) -> dict[str, Any]:
        """Describe the board (:meth:`armlet_runtime.install.agent.Agent.hello`)."""
        await self._send({"op": "hello"}, b"")
        return await self._receive()

    async def logs(self, lines: int) -> dict[str, list[str]]:
        """Fetch the last lines of the last update's process (``update``) and of the unit's journal (``service``)."""
        await self._send({"op": "logs", "lines": lines}, b"")
        logs: dict[str, list[str]] = (await self._receive())["logs"]
        return logs

    async def trust(self, owner: Trust) -> list[str]:
        """Give its owner's keys to a board that trusts nobody yet; return the names of all keys that it trusts then.

        A signed trust set is sent as it is, because its threshold and its version count for the next rotation.
        """
        if owner.document:
            await self._send({"op": "trust_set"}, owner.document)
        else:
            await self._send({"op": "trust"}, b"".join(key.public_bytes_raw() for key in owner.keys))
        names: list[str] = (await self._receive())["trusted"]
        return names

    async def describe(self, description: BoardDescription) -> None:
        """Write the board's description."""
        await self._send({"op": "describe"}, msgspec.json.encode(description))
        await self._receive()

    async def roll_back(self, permission: bytes | None) -> PlaceState:
        """Return the board to its previous bundle, and return the entry of that bundle."""
        await self._send({"op": "roll_back"}, permission or b"")
        return msgspec.convert((await self._receive())["place"], PlaceState)

    async def offer(self, front: Front, permission: bytes | None) -> list[dict[str, Any]]:
        """Offer a bundle, and return the parts that the board lacks."""
        first = permission or b""
        await self._send({"op": "offer", "permission": len(first)}, first + front.data)
        parts: list[dict[str, Any]] = (await self._receive())["wanted"]
        return parts

    async def put(self, sha256: str, offset: int, data: bytes) -> None:
        """Send bytes of a part without waiting for the answer; each call needs one of :meth:`acknowledged`."""
        await self._send({"op": "put", "sha256": sha256, "offset": offset}, data)

    async def acknowledged(self) -> None:
        """Wait until the board has stored the bytes of the oldest unanswered :meth:`put`."""
        await self._receive()

    async def install(self, digest: str, permission: bytes | None) -> AsyncIterator[Update]:
        """Install the offered bundle, and yield the states of the update until it has ended."""
        await self._send({"op": "install", "digest": digest}, permission or b"")
        while True:
            update = msgspec.convert((await self._receive())["update"], Update)
            yield update
            if update.state is UpdateState.IDLE:
                return


Connect = Callable[[], contextlib.AbstractAsyncContextManager[AgentClient]]
