"""The process that assembles an offered bundle and deploys it into a board's slot.

The process is independent of the agent, so that it continues when the link or the workstation is lost. It holds a lock
(``.installing``) until it ends, and writes its progress into the record of the update.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..bundle import open_bundle, trusted_keys
from ..errors import ArmletError, BundleError, DeployError
from .agent_protocol import Update, UpdateResult, UpdateState, result_of
from .incoming_parts import IncomingParts
from .probation import settle
from .rollback_protection import latest_date
from .slot_deploy import deploy_to_slot
from .slots import current_bundle, current_place, read_state
from .update_record import UpdateRecord

INSTALLING = ".installing"

POLL_S = 0.05
"""How often the record of a running install is read."""

PATIENCE_S = 300.0
"""How long a running install is watched."""


class Installer:
    """Installs the bundle that was offered under a prefix."""

    def __init__(self, prefix: Path, slot: Path, parts: IncomingParts, record: UpdateRecord) -> None:
        """Work under ``prefix``."""
        self._prefix, self._slot, self._parts, self._record = prefix, slot, parts, record

    def watch(self, digest: str, permission: bytes | None) -> Iterator[Update]:
        """Start the process for the offered bundle, and yield the states of the update until the process has ended.

        If a process installs this bundle already, as after a lost link, that process is watched instead. A bundle in
        use is not installed again.

        Raises:
            DeployError: Another bundle was offered in the meantime, or is being installed.
        """
        if self.in_use() == digest:
            # The installer may not have recorded the result yet.
            while self._record.read().state is UpdateState.UPDATING and self.is_installing(digest):
                time.sleep(POLL_S)
            message = "this bundle is in use"
            if (update := self._record.read()).digest == digest and update.result is UpdateResult.SUCCESS:
                message = update.message
            yield Update(UpdateState.IDLE, UpdateResult.SUCCESS, digest, message, time.time())
            return
        front = self._parts.front()
        if front.digest != digest:
            raise DeployError(f"the board was last offered {front.digest[:12]}, not {digest[:12]}; offer it again")
        process = None if self.is_installing(digest) else self._start(digest, permission)
        shown = None
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            ended = not self.is_installing(digest) if process is None else process.poll() is not None
            update = self._record.read()
            if update != shown:
                yield update
                shown = update
            if update.state is UpdateState.IDLE:
                return
            if ended:
                settle(self._slot)
                lines = [line for line in self._record.log_lines() if line.strip()]
                message = lines[-1].strip() if lines else "the installer was killed"
                self._record.write(UpdateState.IDLE, UpdateResult.UPDATE_FAILED, digest, message)
                continue
            time.sleep(POLL_S)

    def run(self, permission: bytes | None) -> None:
        """Assemble the offered bundle and deploy it, in this process.

        Raises:
            DeployError: Another installer is running, or no bundle was offered.
        """
        with self._lock():
            self._install(permission)

    def settle(self) -> None:
        """End an update whose installer was killed, as by a power cut."""
        updating = self._record.read().state is UpdateState.UPDATING
        if not updating and read_state(self._slot).probation is None:
            return  # without a write, so that a board with a read-only card still answers
        with suppress(DeployError), self._lock():
            settle(self._slot)
            update = self._record.read()
            if update.state is not UpdateState.UPDATING:
                return
            state, place = read_state(self._slot), current_place(self._slot) if self._slot.is_dir() else None
            if place is not None and place in state.places and state.places[place].digest == update.digest:
                result, message = UpdateResult.SUCCESS, "the bundle is in use; its installer was cut off"
            else:
                result = UpdateResult.UPDATE_FAILED
                message = "the installer was cut off; this board keeps the bundle that it had before"
            self._record.write(UpdateState.IDLE, result, update.digest, message)

    def is_installing(self, digest: str) -> bool:
        """Return whether a bundle is being installed now.

        Raises:
            DeployError: Another bundle is being installed.
        """
        try:
            with self._lock():
                return False
        except DeployError:
            if self._record.read().digest != digest:
                raise
        return True

    def in_use(self) -> str | None:
        """Digest of the bundle in use, confirmed and whole; None without one."""
        try:
            if read_state(self._slot).probation is None:
                return open_bundle(current_bundle(self._slot), trusted_keys()).digest
        except BundleError:  # a damaged bundle may be replaced, even by the same bundle
            return None
        return None

    def _start(self, digest: str, permission: bytes | None) -> subprocess.Popen[bytes]:
        self._record.write(UpdateState.DOWNLOADED, UpdateResult.INITIAL, digest, "all parts have arrived")
        with self._record.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "armlet_runtime.install.agent", str(self._prefix), "--install"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # not ended with the SSH session
            )
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(permission or b"")
        return process

    def _install(self, permission: bytes | None) -> None:
        front = self._parts.front()
        message = "the bundle is put together, verified and tried"
        self._record.write(UpdateState.UPDATING, UpdateResult.INITIAL, front.digest, message)
        path = None
        try:
            path = self._parts.assemble(front)
            done = deploy_to_slot(path, self._slot, (), permission)
        except (ArmletError, OSError) as error:
            if path is not None:
                path.unlink(missing_ok=True)
            if isinstance(error, ArmletError):
                self._record.write(UpdateState.IDLE, result_of(error), front.digest, str(error))
                return
            result = UpdateResult.NOT_ENOUGH_STORAGE if error.errno == errno.ENOSPC else UpdateResult.UPDATE_FAILED
            message = f"the bundle cannot be put together: {error.strerror or error}"
            self._record.write(UpdateState.IDLE, result, front.digest, message)
            return
        self._parts.clear()
        message = f"{done.name} {done.version} is in use, place {done.place}; {done.live}; {done.health}"
        if time.time() < latest_date(read_state(self._slot), trusted_keys()):
            today = datetime.datetime.now(datetime.timezone.utc).date()
            message += f"; this board's clock says {today}, so it goes by the dates of its bundles until it is set"
        self._record.write(UpdateState.IDLE, UpdateResult.SUCCESS, front.digest, message)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock of the only installer; the lock ends with the process, even if the process is killed."""
        self._prefix.mkdir(parents=True, exist_ok=True)
        with (self._prefix / INSTALLING).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DeployError("another update of this board is under way; wait for it and try again") from None
            yield
