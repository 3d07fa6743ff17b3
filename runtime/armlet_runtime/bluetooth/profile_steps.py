"""Carries out the steps of profiles on a connected wearable, and stamps what it sends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from bleak import BleakClient
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.exc import BleakCharacteristicNotFoundError, BleakError, BleakGATTProtocolError

from ..errors import PacketError
from ..wearables import Ask, Profile, Read, Step, Steps, Subscribe, Wanted, Write
from .link_errors import sentence_of

log = logging.getLogger(__name__)

# The answer to one command.
ANSWER_S = 3.0

Put = Callable[[str, str, bytes, int | None], None]
"""Takes the kind of a packet, its source, its bytes, and when it arrived (None: now)."""


class ProfileSteps:
    """One connection's profiles.

    Attributes:
        newest_ns: When data came last, on the monotonic clock; 0 if none have.
    """

    def __init__(self, client: BleakClient, name: str, put: Put) -> None:
        """Begin.

        Args:
            client: Connected.
            name: The wearable's, for messages.
            put: Takes what was read, written and notified.
        """
        self.newest_ns = 0
        self._client = client
        self._name = name
        self._put = put
        self._asked: tuple[str, bytes, asyncio.Future[bytes]] | None = None

    async def start(self, profiles: Sequence[Profile], wanted: Wanted) -> list[Profile]:
        """Start profiles; a failing profile does not keep the others from starting.

        Returns:
            Those that were started.

        Raises:
            PacketError, BleakError, TimeoutError: All of them failed.
        """
        started: list[Profile] = []
        failure: Exception | None = None
        for profile in profiles:
            try:
                await self._carry_out(profile.start(wanted))
                started.append(profile)
            except (
                PacketError,
                BleakGATTProtocolError,
                BleakCharacteristicNotFoundError,
                asyncio.TimeoutError,
            ) as error:
                failure = error
                log.info("'%s': profile %s does not start: %s", self._name, profile.name, sentence_of(error))
        if not started and failure is not None:
            raise failure
        return started

    async def stop(self, profiles: Sequence[Profile], wanted: Wanted) -> None:
        """Stop profiles that were started."""
        for profile in profiles:
            await self._carry_out(profile.stop(wanted))

    def lost(self) -> None:
        """The link is lost: a command that waits for its answer fails."""
        if self._asked is not None and not self._asked[2].done():
            self._asked[2].set_exception(BleakError(f"the link to '{self._name}' was lost during a command"))

    async def _carry_out(self, steps: Steps) -> None:
        answer = b""
        with suppress(StopIteration):
            step = next(steps)
            while True:
                answer = await self._do(step)
                log.debug("'%s': answer %s", self._name, answer.hex(" ") or "empty")
                step = steps.send(answer)

    async def _do(self, step: Step) -> bytes:
        log.debug("'%s': %s", self._name, step)
        if isinstance(step, Read):
            data = bytes(await self._client.read_gatt_char(step.source))
            self._put("info", step.source, data, None)
            return data
        if isinstance(step, Subscribe):
            await self._notify(step.source)
            return b""
        self._put("written", step.source, step.data, None)
        if isinstance(step, Write):
            await self._client.write_gatt_char(step.source, step.data, response=step.response)
            return b""
        return await self._ask(step)

    async def _ask(self, step: Ask) -> bytes:
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked = (step.answers, step.begins, answered)
        try:
            await self._client.write_gatt_char(step.source, step.data, response=True)
            return await asyncio.wait_for(answered, ANSWER_S)
        finally:
            self._asked = None
            if answered.done() and not answered.cancelled():
                answered.exception()  # retrieved, so that asyncio does not warn of it

    async def _notify(self, source: str) -> None:
        def arrived(_: BleakGATTCharacteristic, data: bytearray) -> None:
            now_ns = time.monotonic_ns()
            value = bytes(data)
            self._put("data", source, value, now_ns)
            if self._asked is not None and self._asked[0] == source and value.startswith(self._asked[1]):
                if not self._asked[2].done():
                    self._asked[2].set_result(value)
            else:
                if not self.newest_ns:
                    log.info("'%s': first data, %d bytes", self._name, len(value))
                self.newest_ns = now_ns

        # StartNotify, which goes through the D-Bus daemon and is bleak's default, and not AcquireNotify, which
        # crashes every bluetoothd before 5.86 that hears of the end of a client before that of its socket, as it does
        # after about one link loss in twenty (https://github.com/bluez/bluez/pull/1784).
        await self._client.start_notify(source, arrived)
