"""The board's side of a deploy: ``python -m armlet_runtime.install.agent PREFIX``, started over SSH, answers requests
(:mod:`armlet_runtime.install.agent_protocol`) on its pipes.

Files under the prefix::

    venv/         the board's Python environment
    home/         the keys that this board trusts (``ARMLET_HOME``)
    slot/         the bundle in use and the previous bundle (:mod:`armlet_runtime.install.slots`)
    incoming/     the parts of an offered bundle (:mod:`armlet_runtime.install.incoming_parts`)
    update.json   the last update, and update.log (:mod:`armlet_runtime.install.update_record`)
    .installing   held by the process that installs (:mod:`armlet_runtime.install.installer`)

A bundle is transferred in three steps. *Offer*: its beginning, with the signatures and the manifest; the board accepts
nothing else unless it trusts them. The answer names the members that the board neither uses nor has received, so a
second deploy continues where the first was cut off, and a bundle that shares members with the present bundle costs
little. *Put*: the members' bytes. *Install*: a process of its own assembles the bundle and deploys it into the slot as
``armlet deploy`` does.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .. import engines, machine
from ..bundle import Front, adopt, keys, open_front, trusted_keys
from ..errors import ArmletError, DeployError, EngineError
from ..files import write_atomic
from ..model import choose_engine
from . import systemd_unit
from .agent_protocol import (
    LENGTHS,
    NoMemoryError,
    UnsupportedError,
    Update,
    UpdateResult,
    UpdateState,
    decode_message,
    frame_sizes,
    pack_frame,
    result_of,
)
from .incoming_parts import IncomingParts, MissingPart
from .installer import Installer
from .rollback_protection import admit, floor
from .slot_deploy import roll_back
from .slots import BOARD, BoardDescription, PlaceState, current_place, read_board, read_state
from .update_record import UpdateRecord

HOME, SLOT = "home", "slot"

PROCESS_BYTES, PROGRAM_COPIES = 90_000_000, 3
"""Memory of a new process with an engine (46 MB with LiteRT 2.3.0, 90 MB with ONNX Runtime), and the copies of a
program in memory: an engine keeps it and repacks its weights."""

LOG_LINES, LOG_COLUMNS = 1000, 400
"""Largest part of a log that is sent, so that it fits into a frame."""


class Agent:
    """Answers requests about a prefix."""

    def __init__(self, prefix: Path) -> None:
        """Work under ``prefix``; the first write makes its folders, so that a board with a full card still answers."""
        self.prefix = prefix
        self.slot = prefix / SLOT
        self.record = UpdateRecord(prefix)
        self._parts = IncomingParts(prefix, self.slot)
        self._installer = Installer(prefix, self.slot, self._parts, self.record)

    def hello(self) -> dict[str, Any]:
        """Describe this board: machine, engines, bundles, last update, unit."""
        self._installer.settle()
        state = read_state(self.slot)
        place = current_place(self.slot) if self.slot.is_dir() else None
        return {
            "machine": machine.describe(),
            "memory_available": _available_memory(),
            "free_bytes": shutil.disk_usage(self.prefix).free,
            "engines": engines.available(),
            "clock": time.time(),
            "place": place,
            "places": state.places,
            "floor": floor(state, trusted_keys()),
            "update": self.record.read(),
            "service": systemd_unit.state(),
        }

    def logs(self, lines: int) -> dict[str, list[str]]:
        """Return the last lines of the last update's process (``update``) and of the unit's journal (``service``)."""
        lines = max(1, min(lines, LOG_LINES))
        logs = {"update": self.record.log_lines()[-lines:], "service": systemd_unit.journal(lines)}
        return {name: [line[:LOG_COLUMNS] for line in log] for name, log in logs.items()}

    def offer(self, data: bytes, permission: bytes | None) -> list[MissingPart]:
        """Accept the beginning of a bundle if the board admits the bundle; return the missing parts.

        Raises:
            BundleError: The bundle is not signed by enough trusted keys, or is not admitted to this board.
            NoRoomError: The disk is too full.
            NoMemoryError: The memory is too full.
            UnsupportedError: The board has none of the bundle's engines.
        """
        trusted = trusted_keys()
        front = open_front(data, "the offered bundle", trusted)
        if self._installer.is_installing(front.digest) or self._installer.in_use() == front.digest:
            return []
        admit(front, read_state(self.slot), read_board(self.slot), trusted, permission)
        missing = self._parts.missing(front)
        _check_machine(front)
        self._parts.expect(front)
        message = "the bundle's parts are coming"
        self.record.write(UpdateState.DOWNLOADING, UpdateResult.INITIAL, front.digest, message)
        return missing

    def put(self, sha256: str, offset: int, data: bytes) -> int:
        """Store bytes of an offered part (:meth:`armlet_runtime.install.incoming_parts.IncomingParts.put`)."""
        return self._parts.put(sha256, offset, data)

    def install(self, digest: str, permission: bytes | None) -> Iterator[Update]:
        """Install the offered bundle (:meth:`armlet_runtime.install.installer.Installer.watch`)."""
        return self._installer.watch(digest, permission)

    def run_installer(self, permission: bytes | None) -> None:
        """Run the install in this process (:meth:`armlet_runtime.install.installer.Installer.run`)."""
        self._installer.run(permission)

    def roll_back(self, permission: bytes | None) -> PlaceState:
        """Return to the previous bundle (:func:`armlet_runtime.install.slot_deploy.roll_back`)."""
        entry = roll_back(self.slot, permission)
        message = f"{entry.name} {entry.version} is in use again"
        self.record.write(UpdateState.IDLE, UpdateResult.SUCCESS, entry.digest, message)
        return entry

    def trust(self, raw: bytes) -> list[str]:
        """Trust these raw keys, 32 bytes each, if nobody is trusted yet; return the names of all trusted keys.

        The client is logged in as the board's owner. After the first time keys change by a rotation only.
        """
        if not trusted_keys().keys:
            for at in range(0, len(raw), 32):
                keys.trust(Ed25519PublicKey.from_public_bytes(raw[at : at + 32]))
        return [keys.key_id(key) for key in trusted_keys().keys]

    def adopt_trust_set(self, document: bytes) -> list[str]:
        """As :meth:`trust`, with the owner's signed trust set, which also says how many of its keys must sign."""
        if not trusted_keys().keys:
            adopt(document, "the owner's trust set")
        return [keys.key_id(key) for key in trusted_keys().keys]

    def describe(self, data: bytes) -> None:
        """Write this board's description (:class:`armlet_runtime.install.slots.BoardDescription`)."""
        msgspec.json.decode(data, type=BoardDescription)
        self.slot.mkdir(parents=True, exist_ok=True)
        write_atomic(self.slot / BOARD, data)


def _check_machine(front: Front) -> None:
    """Refuse a bundle that this machine cannot run, before its parts are sent.

    Raises:
        UnsupportedError: The machine has none of the bundle's engines.
        NoMemoryError: Too little memory is free.
    """
    try:
        engine = choose_engine(front.manifest)
    except EngineError as error:
        raise UnsupportedError(str(error)) from error
    programs = front.manifest.engines[engine]
    sizes = {member.name: member.size for member in front.members}
    program_bytes = sum(sizes[ref.member] for ref in programs.by_part.values())
    needs, free = PROCESS_BYTES + PROGRAM_COPIES * program_bytes, _available_memory()
    if free < needs:
        raise NoMemoryError(
            f"the board has {free / 1e6:.0f} MB of memory free, and trying this bundle on {engine} takes "
            f"{needs / 1e6:.0f} MB; end other programs on it"
        )


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def serve(agent: Agent, source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until the client closes its end."""

    def send(message: dict[str, Any]) -> None:
        sink.write(pack_frame(message))
        sink.flush()

    while prefix := source.read(LENGTHS.size):
        text, data = frame_sizes(prefix)
        request, payload = decode_message(source.read(text)), source.read(data)
        try:
            for message in answers(agent, request, payload):
                send(message)
        except ArmletError as error:
            send({"error": str(error), "result": int(result_of(error))})
        except OSError as error:
            send({"error": f"the board reports: {error.strerror or error}", "result": int(UpdateResult.UPDATE_FAILED)})


def answers(agent: Agent, request: dict[str, Any], payload: bytes) -> Iterator[dict[str, Any]]:
    """Answer a request.

    Raises:
        ArmletError: The request was refused.
        OSError: The board's disk cannot be read or written.
    """
    match request:
        case {"op": "hello"}:
            yield msgspec.to_builtins(agent.hello())
        case {"op": "logs", "lines": int(lines)}:
            yield {"logs": agent.logs(lines)}
        case {"op": "offer", "permission": int(permission)}:
            data, permitted = payload[permission:], payload[:permission] or None
            yield {"wanted": msgspec.to_builtins(agent.offer(data, permitted))}
        case {"op": "put", "sha256": str(sha256), "offset": int(offset)}:
            yield {"have": agent.put(sha256, offset, payload)}
        case {"op": "trust"}:
            yield {"trusted": agent.trust(payload)}
        case {"op": "trust_set"}:
            yield {"trusted": agent.adopt_trust_set(payload)}
        case {"op": "describe"}:
            agent.describe(payload)
            yield {}
        case {"op": "roll_back"}:
            yield {"place": msgspec.to_builtins(agent.roll_back(payload or None))}
        case {"op": "install", "digest": str(digest)}:
            for update in agent.install(digest, payload or None):
                yield {"update": msgspec.to_builtins(update)}
        case _:
            raise DeployError(
                f"this board's agent does not know the request {request.get('op')!r}; set the board up again"
            )


def main() -> int:
    """Serve the prefix of the command line, or install the bundle that was offered there."""
    prefix = Path(sys.argv[1]).expanduser()
    os.environ["ARMLET_HOME"] = str(prefix / HOME)
    agent = Agent(prefix)
    if sys.argv[2:] == ["--install"]:
        agent.run_installer(sys.stdin.buffer.read() or None)
    else:
        serve(agent, sys.stdin.buffer, sys.stdout.buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
