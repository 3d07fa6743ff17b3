"""Admission of a complete and signed bundle to this board.

A signature names the maker of a bundle, and does not say that it is still the bundle to use. An attacker
between an owner and a board could bring an old bundle with a known fault (rollback), the same bundle for ever (freeze),
or a bundle for another board. So a slot remembers its releases (:class:`~armlet_runtime.install.slots.SlotState`), and:

- It takes no bundle of a lower *release* than it has had, unless the owner signs a :class:`Permission` for this very
  bundle over this very release. A permission works once.
- The releases it remembers count only while those who signed them are still trusted, so that a thief of a key who
  signed a release of 2^50 does not lock the board for good (fast-forward): rotating the key out ends it.
- It takes no bundle that has expired. A board without a clock battery may believe that it is 1970; it then goes by the
  latest date of making that a bundle here had. That date may be wrong, as of a workstation whose clock was: it counts
  only while its signers are trusted, and the owner's permission for one bundle forgets it.
- It takes no bundle that is made for other classes of boards, or needs modalities that its wearables do not have.

The attacks and their names are those of The Update Framework (specification 1.0.33, section 1.5.2).
"""

from __future__ import annotations

import datetime
import time

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..bundle import Bundle, Front, Trust, open_envelope, seal, seconds_of
from ..errors import AdmissionError
from .slots import BoardDescription, SlotState

KIND = "application/vnd.armlet.permission+json"


class Permission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An owner's permission that a board may go back to a bundle.

    Attributes:
        digest: Digest of the bundle that is permitted.
        over: Release that the bundle may replace.
        issued: When it was signed, Unix seconds; a board uses no permission that is not newer than the last it used.
    """

    digest: str
    over: int
    issued: int


def permit(digest: str, over: int, signers: list[Ed25519PrivateKey]) -> bytes:
    """Sign the permission for the bundle of this digest to replace a bundle of release ``over``."""
    return seal(Permission(digest, over, int(time.time())), KIND, signers)


def floor(state: SlotState, trusted: Trust) -> int:
    """Return the highest release that this slot has had from signers that it still trusts; 0 without such a bundle."""
    return max((release for who, release in state.floors.items() if trusted.reaches(who.split("+"))), default=0)


def latest_date(state: SlotState, trusted: Trust) -> float:
    """Return the latest creation date of a bundle of this slot from signers that it still trusts, Unix seconds."""
    return max(state.newest, *(date for who, date in state.dates.items() if trusted.reaches(who.split("+"))), 0.0)


def admit(
    bundle: Bundle | Front,
    state: SlotState,
    board: BoardDescription | None,
    trusted: Trust,
    permission: bytes | None = None,
) -> SlotState:
    """Check that a slot may take a verified bundle.

    Args:
        bundle: Opened with ``trusted``; its beginning is enough.
        state: The slot's.
        board: Description of the slot's board, if it has one.
        trusted: Whom it trusts.
        permission: The owner's signed permission to go back, if the bundle needs one.

    Returns:
        The slot's state once the bundle is in use.

    Raises:
        AdmissionError: The bundle may not be installed; the sentence says why and what would help.
        SignatureError: The permission is not signed as it must be.
    """
    manifest = bundle.manifest
    name = f"{manifest.name} {manifest.version}"
    _check_board(bundle, board)
    lowest, date = floor(state, trusted), latest_date(state, trusted)
    remembered = state
    if manifest.expires is not None and seconds_of(manifest.expires) <= max(time.time(), date):
        if seconds_of(manifest.expires) <= time.time():
            raise AdmissionError(f"{name} has expired at {manifest.expires}; export it again, or bring a newer bundle")
        why = (
            f"{name} has expired at {manifest.expires}, as a bundle here was made at {_utc(date)}: export it again; "
            f"or, if that date is wrong, permit this bundle"
        )
        remembered = _go_back(bundle, state, lowest, trusted, permission, why)
    elif manifest.release < lowest:
        why = (
            f"{name} is of release {manifest.release}, and this slot has had release {lowest}: going back needs the "
            f"owner's signed permission"
        )
        remembered = _go_back(bundle, state, lowest, trusted, permission, why)
    who = "+".join(bundle.signers)
    return msgspec.structs.replace(
        remembered,
        floors={**remembered.floors, who: max(remembered.floors.get(who, 0), manifest.release)},
        dates={**remembered.dates, who: max(remembered.dates.get(who, 0.0), seconds_of(manifest.created))},
    )


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_board(bundle: Bundle | Front, board: BoardDescription | None) -> None:
    manifest = bundle.manifest
    if board is None:
        if manifest.boards:
            raise AdmissionError(
                f"{manifest.name} is made for {', '.join(manifest.boards)} only, and this slot does not say what board "
                f"it is on; write its board.json"
            )
        return
    if manifest.boards and board.board not in manifest.boards:
        raise AdmissionError(f"{manifest.name} is made for {', '.join(manifest.boards)}; this board is {board.board}")
    if board.modalities is not None:
        missing = [modality.name for modality in manifest.modalities if modality.name not in board.modalities]
        if missing:
            raise AdmissionError(
                f"{manifest.name} needs {', '.join(missing)}, which this board's wearables do not have "
                f"({', '.join(board.modalities)})"
            )


def _go_back(
    bundle: Bundle | Front, state: SlotState, lowest: int, trusted: Trust, permission: bytes | None, why: str
) -> SlotState:
    """The state without the slot's memory of releases, by the owner's permission; ``why``: reason for a permission."""
    if permission is None:
        raise AdmissionError(f"{why} (--allow-older, or 'armlet key permit')")
    allowed = open_envelope(permission, KIND, Permission, [(trusted.keys, trusted.threshold)], "the permission")
    if allowed.digest != bundle.digest:
        raise AdmissionError(
            f"the permission is for the bundle {allowed.digest[:12]}, and this bundle is {bundle.digest[:12]}"
        )
    if allowed.over != lowest:
        raise AdmissionError(
            f"the permission is to go back from release {allowed.over}, and this slot has had {lowest}; "
            "sign a new permission"
        )
    if allowed.issued <= state.permission:
        raise AdmissionError("this permission, or a later one, was used here before; sign a new permission")
    return msgspec.structs.replace(state, floors={}, dates={}, newest=0.0, permission=allowed.issued)
