"""The board's side of a deploy: ``python -m armlet_runtime.install.agent PREFIX``, started over SSH, speaks frames on
its pipes.

What lies under the prefix::

    venv/                the board's Python environment
    home/                whom this board trusts (``ARMLET_HOME``)
    slot/                the bundle in use and the one before it (:mod:`armlet_runtime.install.slots`)
    incoming/SHA256      members of a bundle that have arrived; SHA256.part while they do
    incoming/front       the beginning of the bundle that they are for
    update.json          the last update, as it stands (:class:`armlet_runtime.install.updates.Update`)
    update.log           what its process said
    .installing          held by that process (flock)

A bundle comes in three steps. *Offer*: its beginning, with the signatures and the manifest; nothing else is taken from
whom the board does not trust. The answer names the members that the board has neither in use nor received before, so
a second start goes on where the first was cut off, and a bundle much like the present one costs little. *Put*: their
bytes. *Install*: a process of its own, which lives on when the link or the workstation is gone, puts the bundle
together and deploys it into the slot as ``armlet deploy`` does.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .. import engines, machine
from ..bundle import Front, Member, keys, open_bundle, open_front, read_front, trusted_keys
from ..errors import ArmletError, BundleError, CorruptBundleError, DeployError, EngineError
from ..files import chunks, write_atomic
from ..model import choose_engine
from . import frames
from . import systemd_unit as service
from .probation import settle
from .rollback_protection import admit, floor
from .slot_deploy import RESERVE_BYTES, deploy_to_slot, roll_back
from .slots import BOARD, BUNDLE, PLACES, Board, PlaceState, current_bundle, current_place, read_board, read_state
from .updates import NoMemoryError, NoRoomError, Result, State, UnsupportedError, Update, result_of

INSTALLING = ".installing"
HOME, SLOT, INCOMING, FRONT, UPDATE, LOG = "home", "slot", "incoming", "front", "update.json", "update.log"
# A fresh process with an engine took 46 MB (LiteRT 2.3.0) to 90 MB (ONNX Runtime) here; an engine keeps a program, and
# repacks its weights.
PROCESS_BYTES, PROGRAM_COPIES = 90_000_000, 3
# How often the state of an install is looked at while it runs, and how long it may take before we stop watching.
WATCH_S, PATIENCE_S = 0.05, 300.0
# The most of a log that is shown, so that it fits into one frame.
LOG_LINES, LOG_COLUMNS = 1000, 400


class Wanted(msgspec.Struct, frozen=True):
    """A member that the board lacks, and how many of its bytes it has already."""

    sha256: str
    size: int
    have: int


class Agent:
    """Answers requests about one prefix."""

    def __init__(self, prefix: Path) -> None:
        """Work under ``prefix``, which is made if it is not there."""
        self.prefix = prefix
        self.slot = prefix / SLOT
        self.incoming = prefix / INCOMING
        self.incoming.mkdir(parents=True, exist_ok=True)

    def hello(self) -> dict[str, Any]:
        """What this board is and has."""
        self.settle()
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
            "update": self.update(),
            "service": service.state(),
        }

    def update(self) -> Update:
        """The last update, as it stands."""
        try:
            return msgspec.json.decode((self.prefix / UPDATE).read_bytes(), type=Update)
        except FileNotFoundError:
            return Update(State.IDLE, Result.INITIAL, "", "this board has had no update yet", 0.0)
        except (msgspec.MsgspecError, UnicodeDecodeError):  # of another armlet; no reason to lock the owner out
            return Update(State.IDLE, Result.INITIAL, "", f"cannot read {UPDATE} of another armlet", 0.0)

    def logs(self, lines: int) -> dict[str, list[str]]:
        """The last lines of what the last update's process said, and of the unit's journal."""
        path = self.prefix / LOG
        said = path.read_text(errors="replace").splitlines() if path.exists() else []
        lines = max(1, min(lines, LOG_LINES))
        both = {"update": said[-lines:], "service": service.journal(lines)}
        return {name: [line[:LOG_COLUMNS] for line in shown] for name, shown in both.items()}

    def offer(self, data: bytes, permission: bytes | None) -> list[Wanted]:
        """Take the beginning of a bundle, if it may come here; what is missing of the rest.

        Raises:
            BundleError: It is not signed as it must be, or may not come onto this board.
            NoRoomError: The disk is too full.
            NoMemoryError: The memory is too full.
            UnsupportedError: The board has none of the bundle's engines.
        """
        trusted = trusted_keys()
        front = open_front(data, "the offered bundle", trusted)
        if self._installing(front.digest) or self._in_use() == front.digest:
            return []
        admit(front, read_state(self.slot), read_board(self.slot), trusted, permission)
        there = self._local_members()
        lacking = {member.sha256: member for member in front.members[1:] if member.sha256 not in there}
        wanted = [Wanted(member.sha256, member.size, self._received(member)) for member in lacking.values()]
        # The parts that still come, and the bundle put together from them.
        needs = sum(part.size - part.have for part in wanted) + front.size + RESERVE_BYTES
        free = shutil.disk_usage(self.prefix).free
        if free < needs:
            raise NoRoomError(f"the board has {free / 1e6:.1f} MB free and needs {needs / 1e6:.1f} MB for this bundle")
        self._check_machine(front)
        write_atomic(self.incoming / FRONT, data)
        ours = {FRONT, *(name for member in front.members for name in (member.sha256, f"{member.sha256}.part"))}
        for left in self.incoming.iterdir():
            if left.name not in ours:  # parts of a bundle that nobody went on with
                left.unlink()
        self._set(State.DOWNLOADING, Result.INITIAL, front.digest, "the bundle's parts are coming")
        return wanted

    def _check_machine(self, front: Front) -> None:
        """Refuse what this machine cannot run before its parts are sent.

        Raises:
            UnsupportedError: It has none of the bundle's engines.
            NoMemoryError: Too little memory is free.
        """
        try:
            engine = choose_engine(front.manifest)
        except EngineError as error:
            raise UnsupportedError(str(error)) from error
        programs = front.manifest.engines[engine]
        sizes = {member.name: member.size for member in front.members}
        own = sum(sizes[ref.member] for ref in programs.by_part.values())
        needs, free = PROCESS_BYTES + PROGRAM_COPIES * own, _available_memory()
        if free < needs:
            raise NoMemoryError(
                f"the board has {free / 1e6:.0f} MB of memory free, and trying this bundle on {engine} takes "
                f"{needs / 1e6:.0f} MB; end what else runs on it"
            )

    def put(self, sha256: str, offset: int, data: bytes) -> int:
        """Take bytes of an offered member; how many of it are there now.

        Raises:
            DeployError: It is not part of the offer, or the bytes do not follow those that are there.
            CorruptBundleError: The whole member is not what was signed; it has to come again from its first byte.
        """
        member = next((m for m in self._front().members if m.sha256 == sha256), None)
        if member is None:
            raise DeployError(f"the board was not offered a part {sha256[:12]}; offer the bundle again")
        have = self._received(member)
        if offset != have or have + len(data) > member.size:
            raise DeployError(f"the part '{member.name}' has {have} of {member.size} bytes here, not {offset}")
        part = self.incoming / f"{sha256}.part"
        with part.open("ab") as file:
            file.write(data)
            if have + len(data) < member.size:
                return have + len(data)
            file.flush()
            os.fsync(file.fileno())
        arrived = hashlib.sha256()
        for chunk in chunks(part):
            arrived.update(chunk)
        if arrived.hexdigest() != sha256:
            part.unlink()
            raise CorruptBundleError(f"the part '{member.name}' did not arrive as it was signed; send it again")
        part.replace(self.incoming / sha256)
        return member.size

    def install(self, digest: str, permission: bytes | None) -> Iterator[Update]:
        """Have a process install what was offered; its states, until it has ended.

        Where that process is at work already, as after a link was lost, it is watched; where the bundle is in use
        already, nothing is done.

        Raises:
            DeployError: Something else was offered since, or is being installed.
        """
        if self._in_use() == digest:
            message = "this bundle is in use"
            if (update := self.update()).digest == digest and update.result is Result.SUCCESS:
                message = update.message
            yield Update(State.IDLE, Result.SUCCESS, digest, message, time.time())
            return
        front = self._front()
        if front.digest != digest:
            raise DeployError(f"the board was last offered {front.digest[:12]}, not {digest[:12]}; offer it again")
        process = None if self._installing(digest) else self._start(digest, permission)
        seen = None
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            ended = not self._installing(digest) if process is None else process.poll() is not None
            update = self.update()
            if update != seen:
                yield update
                seen = update
            if update.state is State.IDLE:
                return
            if ended:
                settle(self.slot)
                said = (self.prefix / LOG).read_text(errors="replace").strip().splitlines()
                self._set(State.IDLE, Result.UPDATE_FAILED, digest, said[-1] if said else "the installer was killed")
                continue
            time.sleep(WATCH_S)

    def _installing(self, digest: str) -> bool:
        """Whether that bundle is being installed now.

        Raises:
            DeployError: Another one is.
        """
        try:
            with self._installer():
                return False
        except DeployError:
            if self.update().digest != digest:
                raise
        return True

    def _start(self, digest: str, permission: bytes | None) -> subprocess.Popen[bytes]:
        self._set(State.DOWNLOADED, Result.INITIAL, digest, "all parts are there")
        with (self.prefix / LOG).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "armlet_runtime.install.agent", str(self.prefix), "--install"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # not ended with the SSH session
            )
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(permission or b"")
        return process

    def _in_use(self) -> str | None:
        """Digest of the bundle in use, confirmed and whole; None if there is none."""
        try:
            if read_state(self.slot).probation is None:
                return open_bundle(current_bundle(self.slot), trusted_keys()).digest
        except BundleError:  # then it is to be replaced, even by itself
            return None
        return None

    def installing(self, permission: bytes | None) -> None:
        """Put the offered bundle together and deploy it: the process of :meth:`install`.

        Raises:
            DeployError: Another such process is at work, or nothing was offered.
        """
        with self._installer():
            self._install(permission)

    def _install(self, permission: bytes | None) -> None:
        front = self._front()
        self._set(State.UPDATING, Result.INITIAL, front.digest, "the bundle is put together, verified and tried")
        path = self.incoming / BUNDLE
        try:
            self._assemble(front, path)
            done = deploy_to_slot(path, self.slot, (), permission)
        except (ArmletError, OSError) as error:
            path.unlink(missing_ok=True)
            if isinstance(error, ArmletError):
                self._set(State.IDLE, result_of(error), front.digest, str(error))
                return
            result = Result.NOT_ENOUGH_STORAGE if error.errno == errno.ENOSPC else Result.UPDATE_FAILED
            self._set(State.IDLE, result, front.digest, f"the bundle cannot be put together: {error.strerror or error}")
            return
        shutil.rmtree(self.incoming)
        message = f"{done.name} {done.version} is in use, place {done.place}; {done.live}; {done.health}"
        if time.time() < read_state(self.slot).newest:
            today = datetime.datetime.now(datetime.timezone.utc).date()
            message += f"; this board's clock says {today}, so it goes by the dates of its bundles until it is set"
        self._set(State.IDLE, Result.SUCCESS, front.digest, message)

    @contextmanager
    def _installer(self) -> Iterator[None]:
        """Be the only installer; that ends with the process, however it ends."""
        with (self.prefix / INSTALLING).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DeployError("another update of this board is under way; wait for it and try again") from None
            yield

    def settle(self) -> None:
        """End what an installer left that is gone, as after a power cut."""
        with suppress(DeployError), self._installer():
            settle(self.slot)
            update = self.update()
            if update.state is not State.UPDATING:
                return
            state, place = read_state(self.slot), current_place(self.slot) if self.slot.is_dir() else None
            if place is not None and place in state.places and state.places[place].digest == update.digest:
                self._set(State.IDLE, Result.SUCCESS, update.digest, "the bundle is in use; its installer was cut off")
            else:
                message = "the installer was cut off; this board has what it had before"
                self._set(State.IDLE, Result.UPDATE_FAILED, update.digest, message)

    def _assemble(self, front: Front, path: Path) -> None:
        there = self._local_members()
        with path.open("wb") as file:
            file.write(front.data)
            for member in front.members[1:]:
                received = self.incoming / member.sha256
                if received.exists():
                    file.writelines(chunks(received))
                elif member.sha256 in there:
                    file.write(there[member.sha256]())
                else:
                    raise DeployError(f"the part '{member.name}' is missing on the board; send the bundle again")

    def roll_back(self, permission: bytes | None) -> PlaceState:
        """Use the bundle before the present one again (:func:`armlet_runtime.install.slot_deploy.roll_back`)."""
        entry = roll_back(self.slot, permission)
        self._set(State.IDLE, Result.SUCCESS, entry.digest, f"{entry.name} {entry.version} is in use again")
        return entry

    def trust(self, raw: bytes) -> list[str]:
        """Trust these raw keys, 32 bytes each, if nobody is trusted yet; names of all that are trusted then.

        Whoever asks for it is logged in as the board's owner. After the first time keys change by a rotation only.
        """
        if not trusted_keys().keys:
            for at in range(0, len(raw), 32):
                keys.trust(Ed25519PublicKey.from_public_bytes(raw[at : at + 32]))
        return [keys.key_id(key) for key in trusted_keys().keys]

    def describe(self, data: bytes) -> None:
        """Write what this board is (:class:`armlet_runtime.install.slots.Board`)."""
        msgspec.json.decode(data, type=Board)
        self.slot.mkdir(parents=True, exist_ok=True)
        write_atomic(self.slot / BOARD, data)

    def _front(self) -> Front:
        try:
            return read_front(self.incoming / FRONT, trusted_keys())
        except BundleError as error:
            raise DeployError(f"the board was offered no bundle yet ({error})") from error

    def _received(self, member: Member) -> int:
        if (self.incoming / member.sha256).exists():
            return member.size
        part = self.incoming / f"{member.sha256}.part"
        return part.stat().st_size if part.exists() else 0

    def _local_members(self) -> dict[str, Callable[[], bytes]]:
        """SHA-256 of what the slot's bundles hold, to a reader of it."""
        found: dict[str, Callable[[], bytes]] = {}
        for place in PLACES:
            path = self.slot / place / BUNDLE
            if not path.exists():
                continue
            try:
                bundle = open_bundle(path, None)
            except BundleError:  # a deploy that was cut off; it counts for nothing
                continue
            for name in bundle.sizes:
                found[bundle.sha256(name)] = lambda bundle=bundle, name=name: bundle.read(name)  # type: ignore[misc]
        return found

    def _set(self, state: State, result: Result, digest: str, message: str) -> None:
        update = Update(state, result, digest, message, time.time())
        write_atomic(self.prefix / UPDATE, msgspec.json.encode(update))


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def serve(agent: Agent, source: BinaryIO, sink: BinaryIO) -> None:
    """Answer frames until the other side is gone."""

    def answer(message: dict[str, Any], data: bytes = b"") -> None:
        sink.write(frames.pack(message, data))
        sink.flush()

    while prefix := source.read(frames.LENGTHS.size):
        text, data = frames.sizes(prefix)
        request, payload = frames.unpack(source.read(text)), source.read(data)
        try:
            for message in _handle(agent, request, payload):
                answer(message)
        except ArmletError as error:
            answer({"error": str(error), "result": int(result_of(error))})
        except OSError as error:
            answer({"error": f"the board says: {error.strerror or error}", "result": int(Result.UPDATE_FAILED)})


def _handle(agent: Agent, request: dict[str, Any], payload: bytes) -> Iterator[dict[str, Any]]:
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
        case {"op": "describe"}:
            agent.describe(payload)
            yield {}
        case {"op": "roll_back"}:
            yield {"place": msgspec.to_builtins(agent.roll_back(payload or None))}
        case {"op": "install", "digest": str(digest)}:
            for update in agent.install(digest, payload or None):
                yield {"update": msgspec.to_builtins(update)}
        case _:
            raise DeployError(f"this board's agent does not know the request {request.get('op')!r}; update the board")


def main() -> int:
    """Serve the prefix named on the command line, or install what was offered there."""
    prefix = Path(sys.argv[1]).expanduser()
    os.environ["ARMLET_HOME"] = str(prefix / HOME)
    agent = Agent(prefix)
    if sys.argv[2:] == ["--install"]:
        agent.installing(sys.stdin.buffer.read() or None)
    else:
        serve(agent, sys.stdin.buffer, sys.stdout.buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
