"""Slots: a folder on a board with the bundle in use and a place for the next bundle.

::

    SLOT/
      current -> a       the place in use: a symbolic link, switched by a rename
      a/model.armlet     two places; a deploy writes into the place that is not in use
      b/model.armlet
      state.json         what was put into each place, and when (:class:`SlotState`)
      live.json          the runtime's report on a bundle on probation (:class:`Report`); only during a probation
      board.json         what this board is (:class:`BoardDescription`); optional
      .lock              held by a deploy (flock)
      .live              held by the runtime that makes decisions with this slot's bundle (flock)

This is the reading side; ``armlet deploy`` and :mod:`armlet_runtime.install.probation` write. A bundle passes its
golden run in its place before ``current`` points to it, so the bundle in use is complete and tested, also after a power
cut during a deploy.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..errors import BundleError

PLACES = ("a", "b")
CURRENT = "current"
BUNDLE = "model.armlet"
STATE = "state.json"
BOARD = "board.json"
LOCK = ".lock"
LIVE = ".live"
REPORT = "live.json"

SCHEME = "file:"
"""Prefix of a slot in place of a bundle's file: ``file:FOLDER``."""


class PlaceState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bundle in a place.

    Attributes:
        digest: The bundle's digest.
        name: Name in its manifest.
        version: Version in its manifest.
        signers: Trusted keys that signed it.
        size: Bytes of the file.
        deployed: UTC, ISO 8601.
        engine: Engine on which its golden run passed on this machine.
    """

    digest: str
    name: str
    version: str
    signers: tuple[str, ...]
    size: int
    deployed: str
    engine: str


class Probation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """State of a bundle that is in use and not confirmed yet.

    Attributes:
        place: The bundle's place.
        previous: Previous place; None if the slot had no bundle.
    """

    place: str
    previous: str | None


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``live.json``: the runtime's report on a bundle on probation.

    Attributes:
        digest: The bundle's.
        decisions: Number of decisions that rest on a sensor.
        restarting: Whether the runtime ends to be started anew, because the bundle needs other signals or windows.
        latency_s: Longest time from a window's end to its decision being out.
        failed: Why the bundle cannot be used; empty if it can.
        idle: Number of windows without a decision, for lack of a sensor or because of the user's floor.
    """

    digest: str
    decisions: int = 0
    restarting: bool = False
    latency_s: float = 0.0
    failed: str = ""
    idle: int = 0


class SlotState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``state.json``.

    Attributes:
        places: By place. Only the link tells which place is in use.
        floors: Highest release that was ever in use, by its signers (key names, joined by ``+``); see
            :mod:`armlet_runtime.install.rollback_protection`.
        permission: When the last permission to go back that was used here had been signed, Unix seconds.
        dates: Latest date of making of a bundle that was ever in use, Unix seconds, by who had signed it.
        newest: The same for any signer, as earlier versions wrote it.
        probation: Set while the bundle in use has not been confirmed (:mod:`armlet_runtime.install.probation`).
    """

    places: dict[str, PlaceState]
    floors: dict[str, int] = {}
    permission: int = 0
    dates: dict[str, float] = {}
    newest: float = 0.0
    probation: Probation | None = None


class BoardDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``board.json``.

    Attributes:
        board: Class of this board, as in :attr:`armlet_runtime.bundle.manifest.Manifest.boards`.
        modalities: Names of the modalities that its wearables have; None if the description leaves it open.
    """

    board: str
    modalities: tuple[str, ...] | None = None


def current_place(folder: Path) -> str | None:
    """Return the place in use; None for a slot that has never had a bundle.

    Raises:
        BundleError: ``current`` is not a link to one of the places.
    """
    link = folder / CURRENT
    if link.is_symlink():
        place = str(link.readlink())
        if place in PLACES:
            return place
    elif not link.exists():
        return None
    raise BundleError(f"{link} is not a link to one of {', '.join(PLACES)}; remove it and deploy again")


def current_bundle(folder: Path) -> Path:
    """Return the file of a slot's bundle; the file keeps its contents while the slot is switched to another bundle.

    Raises:
        BundleError: The slot does not exist, or holds no bundle.
    """
    if not folder.is_dir():
        raise BundleError(f"there is no slot {folder}: make it with 'armlet deploy BUNDLE {SCHEME}{folder}'")
    place = current_place(folder)
    if place is None:
        raise BundleError(f"the slot {folder} holds no bundle yet: 'armlet deploy BUNDLE {SCHEME}{folder}'")
    path = folder / place / BUNDLE
    if not path.is_file():
        raise BundleError(f"the slot {folder} has lost its bundle {path}: deploy it again")
    return path


def bundle_path(text: str) -> Path:
    """Return the bundle's file for a BUNDLE argument: a file, or ``file:FOLDER`` for a slot's current bundle.

    Raises:
        BundleError: The slot holds no bundle.
    """
    return current_bundle(Path(text.removeprefix(SCHEME))) if text.startswith(SCHEME) else Path(text)


def read_state(folder: Path) -> SlotState:
    """The content of ``state.json``; empty without the file.

    Raises:
        BundleError: The file does not follow its schema.
    """
    try:
        return msgspec.json.decode((folder / STATE).read_bytes(), type=SlotState)
    except FileNotFoundError:
        return SlotState({})
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {folder / STATE} ({error}): remove it and deploy again") from error


def read_board(folder: Path) -> BoardDescription | None:
    """The content of ``board.json``; None without the file.

    Raises:
        BundleError: The file does not follow its schema.
    """
    try:
        return msgspec.json.decode((folder / BOARD).read_bytes(), type=BoardDescription)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(
            f"cannot read {folder / BOARD} ({error}): correct it, or remove it to accept bundles for any board"
        ) from error
