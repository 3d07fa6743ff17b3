"""Probation: a bundle that has just been put into use must show that it decides, or the slot goes back by itself.

A deploy notes in the slot's state that the new bundle is on probation, switches to it, and watches. Where the runtime
(``armlet run file:SLOT``) is deciding with the slot's bundle, it takes the new one up between two windows and reports
in ``live.json`` (:class:`~armlet_runtime.install.slots.Report`): the bundle is confirmed after :data:`DECISIONS`
decisions, each within :func:`bound_s`. Where no runtime is at work, or no wearable is in reach, a process of its own
decides on the bundle's golden windows as if they came from wearables (:mod:`armlet_runtime.checks.trial_run`).

Whatever else happens, the slot goes back: the runtime ends, gives no decisions, gives late ones, or the deploy itself
is killed. Then nobody holds the slot's lock, and the next process that looks ends the probation (:func:`settle`): the
runtime in its next turn or at its start, also after a power cut, the board's agent, the next deploy.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from ..bundle import Bundle, Manifest, open_bundle, trusted_keys
from ..errors import BundleError, DeployError
from ..files import write_atomic
from .child_process import TRIAL_RUN, reason_of, run_check
from .slots import (
    BUNDLE,
    CURRENT,
    LIVE,
    LOCK,
    REPORT,
    SCHEME,
    STATE,
    Report,
    SlotState,
    bundle_path,
    current_place,
    read_state,
)

DECISIONS = 3
"""Decisions that a bundle must make before it is confirmed."""

PATIENCE_S = 25.0
"""Longest probation: with what going back takes, a board has its old bundle again within 30 s."""

LOOK_S = 0.1
"""How often reports are looked at."""


class ProbationError(DeployError):
    """A bundle failed its probation; the slot went back to the bundle before."""


def bound_s(manifest: Manifest) -> float:
    """Within which time from a window's end its decision must be out: the longest wait for samples, and one hop."""
    return manifest.presence.max_wait_s + manifest.window.hop_s


# --- what is written to a slot -------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other deploy out of a slot; the lock ends with the process, however it ends.

    Raises:
        DeployError: Another process holds it.
    """
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeployError(f"another deploy into {folder} is under way; wait for it and try again") from None
        yield


def write_state(folder: Path, state: SlotState) -> None:
    """Write ``state.json``, whole or not at all."""
    write_atomic(folder / STATE, msgspec.json.format(msgspec.json.encode(state)))


def switch(folder: Path, place: str | None) -> None:
    """Point ``current`` to a place, or remove it: at every moment the old or the new link exists."""
    link = folder / f".{CURRENT}.new"
    with suppress(FileNotFoundError):
        link.unlink()
    if place is None:
        (folder / CURRENT).unlink(missing_ok=True)
    else:
        link.symlink_to(place, target_is_directory=True)
        link.replace(folder / CURRENT)
    flush(folder)


def flush(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def take_back(folder: Path) -> SlotState:
    """End a probation without success: the place before is in use again. The lock must be held."""
    state = read_state(folder)
    if state.probation is None:
        return state
    failed, previous = state.probation.place, state.probation.previous
    if current_place(folder) != previous:
        switch(folder, previous)
    (folder / failed / BUNDLE).unlink(missing_ok=True)
    (folder / REPORT).unlink(missing_ok=True)
    places = {place: entry for place, entry in state.places.items() if place != failed}
    state = msgspec.structs.replace(state, places=places, probation=None)
    write_state(folder, state)
    return state


def settle(folder: Path) -> bool:
    """End a probation that nobody watches any more; whether a probation was ended.

    Raises:
        BundleError: The slot's state cannot be read.
        DeployError: The slot cannot be written to.
    """
    if not folder.is_dir() or read_state(folder).probation is None:
        return False
    try:
        with locked(folder):
            take_back(folder)
    except DeployError:  # a running deploy watches it
        return False
    except OSError as error:
        raise DeployError(f"cannot take {folder} back to what it had: {error.strerror or error}") from error
    return True


def open_settled(bundle: str, keys: Sequence[Path] = ()) -> Bundle:
    """The verified bundle that a person names: a file, or ``file:FOLDER`` for the bundle in use in a slot.

    After a power cut during a probation it is the bundle before.

    Args:
        bundle: The file or slot.
        keys: Public keys to trust; empty for those of this home.

    Raises:
        BundleError: The bundle cannot be trusted or used.
        DeployError: The slot cannot be taken back to what it had.
        KeyFileError: A key cannot be read.
    """
    if bundle.startswith(SCHEME):
        settle(Path(bundle.removeprefix(SCHEME)))
    return open_bundle(bundle_path(bundle), trusted_keys(keys))


# --- the deploy's side ----------------------------------------------------------------------------------------------


def watch(folder: Path, digest: str, manifest: Manifest, keys: Sequence[Path] = ()) -> str:
    """Watch a bundle on probation until it is confirmed; return a sentence on its decisions.

    Raises:
        ProbationError: The bundle failed; the message says why.
    """
    end = time.monotonic() + PATIENCE_S
    # A bundle with a long hop needs fewer decisions; at a hop above 12.5 s it gets a trial run instead.
    wanted = min(DECISIONS, int(PATIENCE_S / 2 / manifest.window.hop_s))
    if wanted == 0 or not _is_live(folder):
        return _trial_run(folder, keys, end)
    while time.monotonic() < end:
        report = _read_report(folder)
        if report is not None and report.digest == digest:
            if report.failed:
                raise ProbationError(f"the runtime could not use it: {report.failed}")
            if report.latency_s > bound_s(manifest):
                raise ProbationError(
                    f"a decision was out {report.latency_s * 1e3:.0f} ms after its window's end, and "
                    f"{bound_s(manifest) * 1e3:.0f} ms are allowed"
                )
            if report.restarting:
                return _trial_run(folder, keys, end)
            if report.idle >= wanted > report.decisions:  # without a sensor its decisions prove nothing
                return _trial_run(folder, keys, end)
            if report.decisions >= wanted:
                return f"{report.decisions} live decisions, the slowest after {report.latency_s * 1e3:.0f} ms"
        if not _is_live(folder):
            raise ProbationError("the runtime ended when it took the bundle up: its programs crash it")
        time.sleep(LOOK_S)
    decisions = report.decisions if report is not None and report.digest == digest else 0
    raise ProbationError(f"it made {decisions} of {wanted} decisions within {PATIENCE_S:.0f} s")


def _is_live(folder: Path) -> bool:
    """Whether a runtime decides with the slot's bundle."""
    try:
        file = (folder / LIVE).open("rb")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _read_report(folder: Path) -> Report | None:
    try:
        return msgspec.json.decode((folder / REPORT).read_bytes(), type=Report)
    except FileNotFoundError:
        return None


def _trial_run(folder: Path, keys: Sequence[Path], end: float) -> str:
    """Decide with the slot's bundle in a child process."""
    try:
        done = run_check(TRIAL_RUN, f"{SCHEME}{folder}", keys, max(end - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        raise ProbationError(f"it made no decisions within {PATIENCE_S:.0f} s") from None
    if done.returncode < 0:
        raise ProbationError(f"it crashed its process ({signal.Signals(-done.returncode).name}) when it decided live")
    if done.returncode != 0:
        raise ProbationError(reason_of(done))
    return done.stdout.strip()


# --- the runtime's side ---------------------------------------------------------------------------------------------


class Follower:
    """The runtime's view of the slot whose bundle it runs: whether another bundle is in use now, and where to report.

    Only the first runtime of a slot reports, and only once it makes decisions: one that ends for want of a Bluetooth
    adapter, and is started again and again, tells nothing about a bundle.
    """

    def __init__(self, folder: Path, bundle: Bundle, keys: Sequence[Path]) -> None:
        """Follow ``folder`` from ``bundle`` on, which is in use there.

        Raises:
            BundleError: The slot cannot be written to.
        """
        self._folder, self._keys = folder, tuple(keys)
        self._seen: tuple[str | None, int] = (None, 0)  # another bundle may be in use by now: the first look finds out
        self._report = Report(bundle.digest)
        try:
            self._lock = (folder / LIVE).open("a")
        except OSError as error:
            raise BundleError(f"cannot write into the slot {folder}: {error.strerror}") from error
        self._is_first = False

    def _take_lock(self) -> None:
        with suppress(BlockingIOError):  # held by another runtime, or by a deploy that looks for one
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._is_first = True

    def close(self) -> None:
        """Stop following the slot."""
        self._lock.close()

    def _in_use(self) -> tuple[str | None, int]:
        place = current_place(self._folder)
        try:
            return place, (self._folder / str(place) / BUNDLE).stat().st_ino
        except FileNotFoundError:
            return None, 0

    def may_differ(self, deciding: bool) -> bool:
        """Whether :meth:`look` may find another bundle in use, or a probation to end. Reads a few bytes only.

        ``deciding``: whether there have been decisions.

        Raises:
            BundleError: The slot's state cannot be read.
        """
        if deciding and not self._is_first:
            self._take_lock()
        return read_state(self._folder).probation is not None or self._in_use() != self._seen

    def look(self) -> Bundle | None:
        """The bundle that is in use now, verified, if it is not the one that is followed; else None.

        Takes as long as the disk does, so that a live run calls this in a thread.

        Raises:
            BundleError: The bundle cannot be trusted or used; not raised again until the slot changes.
            DeployError: The slot cannot be taken back to its previous bundle.
        """
        settle(self._folder)
        seen = self._in_use()
        if seen == self._seen or seen[0] is None:
            return None
        self._seen = seen
        bundle = open_bundle(self._folder / seen[0] / BUNDLE, trusted_keys(self._keys))
        return None if bundle.digest == self._report.digest else bundle

    def follow(self, bundle: Bundle) -> None:
        """Count the decisions of this bundle from now on."""
        self._report = Report(bundle.digest)

    def decided(self, latency_s: float) -> None:
        """Count a decision with the bundle in use that rests on a sensor."""
        self._report = msgspec.structs.replace(
            self._report,
            decisions=self._report.decisions + 1,
            latency_s=max(self._report.latency_s, latency_s),
        )

    def idled(self) -> None:
        """Count a window without a decision of the bundle in use."""
        self._report = msgspec.structs.replace(self._report, idle=self._report.idle + 1)

    def failed(self, why: str) -> None:
        """Note that the bundle in use cannot be run."""
        self._report = msgspec.structs.replace(self._report, failed=why)

    def report(self, restarting: bool = False) -> None:
        """Report, if the bundle in use is on probation; ``restarting`` as in
        :class:`~armlet_runtime.install.slots.Report`."""
        if not self._is_first or read_state(self._folder).probation is None:
            return
        report = msgspec.structs.replace(self._report, restarting=restarting)
        # Not flushed to the disk: the report is useless after a power cut, and decisions must not wait for the disk.
        new = self._folder / f".{REPORT}.new"
        new.write_bytes(msgspec.json.encode(report))
        new.replace(self._folder / REPORT)
