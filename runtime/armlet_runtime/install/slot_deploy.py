"""Deploy a bundle into a slot of this machine (:mod:`armlet_runtime.install.slots`) so that a crash at any moment does
no harm.

The order is the whole point: verify the source, write beside, flush to the disk, verify what was written, make the
golden run on it in a process of its own, and only then switch. Until the switch the slot is unchanged; the switch is
one rename. A bundle that fails until then was never in use, which is the safest way back to the old one; after it the
bundle is on probation (:mod:`armlet_runtime.install.probation`), and the slot goes back by itself if it does not decide
as it must, or if nobody is there any more to see it.
"""

from __future__ import annotations

import datetime
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..bundle import Bundle, Trust, open_bundle, trusted_keys
from ..errors import DeployError, UsageError
from ..files import chunks, write_atomic
from .agent_protocol import NoRoomError
from .child_process import DEPLOY_CHECK, reason_of, run_check
from .health import Health
from .probation import ProbationError, flush, locked, switch, take_back, watch, write_state
from .rollback_protection import admit
from .slots import (
    BUNDLE,
    CURRENT,
    PLACES,
    REPORT,
    SCHEME,
    STATE,
    PlaceState,
    Probation,
    SlotState,
    current_place,
    read_board,
)

# Left free on the slot's file system besides the bundle: state, folders, and a board that can still log.
RESERVE_BYTES = 1 << 20
# The check takes a second or two; a bundle that makes it hang is given up within half a minute.
HEALTH_TIMEOUT_S = 25.0

_AS_IT_WAS = "the slot keeps what it had"


class HealthError(DeployError):
    """A bundle failed its golden run; the slot keeps its bundle."""


class Deployment(msgspec.Struct, frozen=True):
    """The result of a deploy.

    Attributes:
        slot: The slot's folder.
        place: The place that is in use now.
        digest: Digest of the bundle in it.
        previous: Digest of the bundle that was in use before, as far as known.
        name: Name in its manifest.
        version: Version in its manifest.
        health: What its check in the slot found.
        live: Figures of its probation.
    """

    slot: str
    place: str
    digest: str
    previous: str | None
    name: str
    version: str
    health: Health
    live: str


def slot_folder(target: str) -> Path:
    """Return the folder of ``file:FOLDER``.

    Raises:
        UsageError: The target is of another kind.
    """
    folder = target.removeprefix(SCHEME)
    if not target.startswith(SCHEME) or not folder:
        raise UsageError(f"cannot deploy to '{target}': give {SCHEME}FOLDER, a slot on this machine")
    return Path(folder)


def deploy_to_slot(
    source: Path, folder: Path, keys: Sequence[Path] = (), permission: bytes | None = None
) -> Deployment:
    """Deploy a bundle into a slot; the slot is made if it does not exist.

    Args:
        source: The bundle.
        folder: The slot.
        keys: Files of trusted public keys; what the home trusts without any.
        permission: The owner's signed permission to go back (:mod:`armlet_runtime.install.rollback_protection`).

    Raises:
        BundleError: The bundle is not whole, not signed as it must be, of a newer schema, or may not come onto this
            board. The slot is unchanged.
        DeployError: No room, no permission, or another deploy is under way. The slot is unchanged.
        HealthError: The golden run failed. The slot is unchanged.
        ProbationError: It was in use and did not decide as it must. The slot has its old bundle again.
    """
    trusted = trusted_keys(keys)
    bundle = open_bundle(source, trusted)
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            flush(folder.parent)
        with locked(folder):
            return _deploy(source, bundle, folder, keys, trusted, permission)
    except OSError as error:
        raise DeployError(f"cannot deploy into {folder}: {error.strerror or error}; {_AS_IT_WAS}") from error


def roll_back(folder: Path, permission: bytes | None, keys: Sequence[Path] = ()) -> PlaceState:
    """Return a slot to its previous bundle.

    Args:
        folder: The slot.
        permission: The owner's, for a bundle of a lower release.
        keys: Files of trusted public keys; what the home trusts without any.

    Raises:
        BundleError: The slot has no earlier bundle, or may not install it (any more). The slot is unchanged.
        DeployError: Another deploy is under way. The slot is unchanged.
    """
    trusted = trusted_keys(keys)
    with locked(folder):
        state = take_back(folder)
        place = PLACES[1] if current_place(folder) == PLACES[0] else PLACES[0]
        entry = state.places.get(place)
        if entry is None:
            raise DeployError(f"{folder} holds no bundle besides the present one; deploy the bundle that you want")
        bundle = open_bundle(folder / place / BUNDLE, trusted)
        write_state(folder, admit(bundle, state, read_board(folder), trusted, permission))
        switch(folder, place)
    return entry


def _deploy(
    source: Path, bundle: Bundle, folder: Path, keys: Sequence[Path], trusted: Trust, permission: bytes | None
) -> Deployment:
    state = take_back(folder)  # ends the probation of a deploy that was killed
    admitted = admit(bundle, state, read_board(folder), trusted, permission)
    old = current_place(folder)
    new = PLACES[1] if old == PLACES[0] else PLACES[0]
    kept = {place: entry for place, entry in state.places.items() if place == old}
    _make_place(bundle, folder, new)
    write_state(folder, msgspec.structs.replace(state, places=kept))
    path = folder / new / BUNDLE
    health = _write_and_check(source, bundle, path, keys, trusted)
    manifest = bundle.manifest
    entry = PlaceState(
        digest=bundle.digest,
        name=manifest.name,
        version=manifest.version,
        signers=bundle.signers,
        size=path.stat().st_size,
        deployed=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        engine=f"{health.golden.engine} {health.golden.version}",
    )
    # The slot remembers this bundle only after it is confirmed, so that going back is free until then.
    on_probation = msgspec.structs.replace(state, places={**kept, new: entry}, probation=Probation(new, old))
    confirmed = msgspec.structs.replace(admitted, places={**kept, new: entry})
    live = _use(bundle, folder, new, on_probation, confirmed, keys)
    previous = kept[old].digest if old in kept else None
    return Deployment(str(folder), new, bundle.digest, previous, manifest.name, manifest.version, health, live)


def _make_place(bundle: Bundle, folder: Path, place: str) -> None:
    """Make the folder of a place, with room for a bundle and without the remains of a killed deploy.

    Raises:
        NoRoomError: The disk is too full.
    """
    for left in (*folder.glob(f".{CURRENT}.*"), *folder.glob(f".{STATE}.*"), *(folder / place).glob(f".{BUNDLE}.*")):
        left.unlink(missing_ok=True)
    needs = sum(bundle.sizes.values()) + RESERVE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needs:
        raise NoRoomError(f"no room in {folder}: the bundle needs {needs} bytes and {free} are free; {_AS_IT_WAS}")
    if not (folder / place).is_dir():
        (folder / place).mkdir()
        flush(folder)


def _write_and_check(source: Path, bundle: Bundle, path: Path, keys: Sequence[Path], trusted: Trust) -> Health:
    """Write a bundle into its place, verify what was written, and check it there; after a failure no file is left."""
    write_atomic(path, chunks(source))
    try:
        if open_bundle(path, trusted).digest != bundle.digest:
            raise DeployError(f"{source} was changed while it was deployed; {_AS_IT_WAS}")
        return _check_health(path, keys)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _use(
    bundle: Bundle, folder: Path, place: str, on_probation: SlotState, confirmed: SlotState, keys: Sequence[Path]
) -> str:
    """Switch to a place and watch its bundle on probation; a sentence on what it has shown.

    Raises:
        ProbationError: The bundle failed; the slot is as it was.
    """
    manifest = bundle.manifest
    write_state(folder, on_probation)
    try:
        switch(folder, place)
        live = watch(folder, bundle.digest, manifest, keys)
    except BaseException as error:
        take_back(folder)
        if isinstance(error, ProbationError):
            raise ProbationError(f"{manifest.name} {manifest.version} was in use and taken back: {error}") from error
        raise
    write_state(folder, confirmed)
    (folder / REPORT).unlink(missing_ok=True)
    return live


def _check_health(path: Path, keys: Sequence[Path]) -> Health:
    """Check a bundle in a child process, which loads it as the board's runtime does."""
    try:
        done = run_check(DEPLOY_CHECK, path, keys, HEALTH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise HealthError(f"the golden run took more than {HEALTH_TIMEOUT_S:.0f} s; {_AS_IT_WAS}") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = "this CPU lacks an instruction that the engine uses" if name == "SIGILL" else "the engine crashed on it"
        raise HealthError(f"the golden run crashed its process ({name}): {why}; {_AS_IT_WAS}")
    if done.returncode not in (0, 1):
        raise HealthError(f"the golden run could not be made: {reason_of(done)}; {_AS_IT_WAS}")
    health = msgspec.json.decode(done.stdout, type=Health)
    golden = health.golden
    if golden.max_difference > golden.tolerance:
        raise HealthError(
            f"the golden run on {golden.engine} differs by {golden.max_difference:g} from what was measured at export "
            f"({golden.tolerance:g} is allowed), so these programs do not work on this machine; {_AS_IT_WAS}"
        )
    if not golden.passed:
        raise HealthError(f"the golden run on {golden.engine} failed: {'; '.join(golden.failed)}; {_AS_IT_WAS}")
    if not health.passed:
        raise HealthError(
            f"a decision takes {health.decision_s * 1e3:.3g} ms on this machine, more than the bundle's hop of "
            f"{health.hop_s * 1e3:.3g} ms; {_AS_IT_WAS}"
        )
    return health
