"""States and results of an update, with the names and numbers of LwM2M's firmware object.

OMA LightweightM2M Core 1.2.1, object 5, resources 3 (State) and 5 (Update Result).
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from ..errors import (
    AdmissionError,
    ArmletError,
    BundleError,
    CorruptBundleError,
    DeployError,
    NewerSchemaError,
    SignatureError,
    TrailingBytesError,
    TruncatedBundleError,
)


class State(IntEnum):
    """Where an update is."""

    IDLE = 0
    DOWNLOADING = 1
    DOWNLOADED = 2
    UPDATING = 3


class Result(IntEnum):
    """How the last update ended."""

    INITIAL = 0
    SUCCESS = 1
    NOT_ENOUGH_STORAGE = 2
    OUT_OF_MEMORY = 3
    CONNECTION_LOST = 4
    INTEGRITY_CHECK_FAILED = 5
    UNSUPPORTED_PACKAGE = 6
    UPDATE_FAILED = 8


class Update(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An update of a board, as it stands.

    Attributes:
        state: Where it is.
        result: How it ended, once ``state`` is idle again.
        digest: Digest of the bundle that it is about.
        message: One sentence for a person.
        at: Unix seconds on the board's clock.
    """

    state: State
    result: Result
    digest: str
    message: str
    at: float


class NoRoomError(DeployError):
    """A disk is too full for the bundle."""


class NoMemoryError(DeployError):
    """A board's memory is too full for the bundle."""


class UnsupportedError(DeployError):
    """A board has no engine for the bundle."""


RESULTS: dict[type[ArmletError], Result] = {
    NoRoomError: Result.NOT_ENOUGH_STORAGE,
    NoMemoryError: Result.OUT_OF_MEMORY,
    UnsupportedError: Result.UNSUPPORTED_PACKAGE,
}
"""Results of errors that have one of their own."""


def result_of(error: ArmletError) -> Result:
    """The result that an error stands for."""
    if type(error) in RESULTS:
        return RESULTS[type(error)]
    if isinstance(error, (SignatureError, CorruptBundleError, TruncatedBundleError, TrailingBytesError)):
        return Result.INTEGRITY_CHECK_FAILED
    if isinstance(error, (AdmissionError, NewerSchemaError)):
        return Result.UNSUPPORTED_PACKAGE
    if isinstance(error, BundleError):
        return Result.INTEGRITY_CHECK_FAILED
    return Result.UPDATE_FAILED
