"""What a board refuses although it is whole and signed; attacks by the names of The Update Framework."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from armlet_runtime.bundle.bundle_writer import add_signature, write_bundle
from armlet_runtime.bundle.container import Bundle, open_bundle
from armlet_runtime.bundle.manifest import MAX_RELEASE
from armlet_runtime.bundle.trust import Trust
from armlet_runtime.errors import AdmissionError, BundleError, SchemaError, SignatureError, UntrustedKeyError
from armlet_runtime.install.rollback_protection import admit, floor, latest_date, permit
from armlet_runtime.install.slots import BoardDescription, SlotState

from .test_bundle import MEMBERS, tiny_manifest

OWNER, SECOND, THIEF = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(11, 14))
TRUST = Trust((OWNER.public_key(),))
EMPTY = SlotState({})
PI = BoardDescription("raspberry-pi-5")
PI_WITH_ACC = BoardDescription("raspberry-pi-5", ("acc",))
PI_WITH_BOTH = BoardDescription("raspberry-pi-5", ("acc", "hr"))
NOW = 1_800_000_000.0  # 2027-01-15


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def make(signers: tuple[Ed25519PrivateKey, ...] = (OWNER,), trusted: Trust = TRUST, **fields: Any) -> Bundle:
        path = tmp_path / "b.armlet"
        write_bundle(path, msgspec.structs.replace(tiny_manifest(), **fields), MEMBERS, signers)
        return open_bundle(path, trusted)

    return make


def test_rollback_is_refused_and_the_owner_may_permit_it(make: Any) -> None:
    old, new = make(release=10), make(release=11)
    state = admit(new, admit(old, EMPTY, None, TRUST), None, TRUST)
    assert floor(state, TRUST) == 11
    with pytest.raises(AdmissionError, match=r"of release 10, and this slot has had release 11: .*signed permission"):
        admit(old, state, None, TRUST)
    assert admit(new, state, None, TRUST) == state, "the same once more is no rollback"
    permission = permit(old.digest, 11, [OWNER])
    back = admit(old, state, None, TRUST, permission)
    assert floor(back, TRUST) == 10
    forward = admit(new, back, None, TRUST)
    with pytest.raises(AdmissionError, match="was used here before"):
        admit(old, forward, None, TRUST, permission)


@pytest.mark.parametrize(
    ("over", "of", "signer", "error", "words"),
    [
        (11, "other", OWNER, AdmissionError, "permission is for the bundle"),
        (12, "old", OWNER, AdmissionError, "go back from release 12, and this slot has had 11"),
        (11, "old", THIEF, SignatureError, "signed by 0 of the 1 keys"),
    ],
)
def test_a_permission_is_for_one_step_only(
    make: Any, over: int, of: str, signer: Ed25519PrivateKey, error: type[BundleError], words: str
) -> None:
    old, other, new = make(release=10), make(release=9), make(release=11)
    state = admit(new, EMPTY, None, TRUST)
    with pytest.raises(error, match=words):
        admit(old, state, None, TRUST, permit((other if of == "other" else old).digest, over, [signer]))


def test_freeze_ends_when_the_bundle_expires(make: Any) -> None:
    fresh = make(expires="2027-01-16T00:00:00Z")
    admit(fresh, EMPTY, None, TRUST)
    stale = make(expires="2027-01-14T00:00:00Z")
    with pytest.raises(AdmissionError, match="has expired at 2027-01-14"):
        admit(stale, EMPTY, None, TRUST)


def test_a_board_without_a_clock_is_not_locked_out(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 12.0)  # 1970
    state = admit(make(created="2027-01-10T00:00:00Z", expires="2027-02-01T00:00:00Z"), EMPTY, None, TRUST)
    assert latest_date(state, TRUST) > NOW - 10 * 86400
    with pytest.raises(AdmissionError, match="has expired"):
        admit(make(created="2026-01-01T00:00:00Z", expires="2027-01-05T00:00:00Z"), state, None, TRUST)


def dated_2099(make: Any, signers: tuple[Ed25519PrivateKey, ...] = (OWNER,), trusted: Trust = TRUST) -> SlotState:
    """State of a slot that has had a bundle of a workstation whose clock was wrong."""
    wrong = make(signers, trusted, created="2099-01-01T00:00:00Z", expires="2100-01-01T00:00:00Z", release=10)
    return admit(wrong, EMPTY, None, trusted)


def test_the_owner_ends_the_effect_of_a_bundle_with_a_wrong_date(make: Any) -> None:
    state = dated_2099(make)
    right = make(created="2027-01-10T00:00:00Z", expires="2028-01-01T00:00:00Z", release=11)
    with pytest.raises(AdmissionError, match=r"a bundle here was made at 2099-01-01.*--allow-older"):
        admit(right, state, None, TRUST)
    with pytest.raises(AdmissionError, match="permission is for the bundle"):
        admit(right, state, None, TRUST, permit("0" * 64, 10, [OWNER]))
    state = admit(right, state, None, TRUST, permit(right.digest, 10, [OWNER]))
    assert floor(state, TRUST) == 11
    newer = make(created="2027-01-12T00:00:00Z", expires="2028-01-01T00:00:00Z", release=12)
    admit(newer, state, None, TRUST)  # and nothing of 2099 is left
    with pytest.raises(AdmissionError, match="has expired at 2027-01-14"):
        stale = make(created="2027-01-12T00:00:00Z", expires="2027-01-14T00:00:00Z", release=13)
        admit(stale, state, None, TRUST, permit(stale.digest, 11, [OWNER]))


def test_a_wrong_date_counts_only_while_its_signer_is_trusted(make: Any) -> None:
    both = Trust((OWNER.public_key(), THIEF.public_key()))
    state = dated_2099(make, (THIEF,), both)
    right = make(created="2027-01-10T00:00:00Z", expires="2028-01-01T00:00:00Z", release=11)
    with pytest.raises(AdmissionError, match="2099-01-01"):
        admit(right, state, None, both)
    admit(right, state, None, TRUST)


def test_a_state_of_an_earlier_armlet_with_a_wrong_date_can_be_mended(make: Any) -> None:
    state = SlotState({}, newest=4_070_908_800.0)  # 2099-01-01
    right = make(created="2027-01-10T00:00:00Z", expires="2028-01-01T00:00:00Z", release=11)
    with pytest.raises(AdmissionError, match="2099-01-01"):
        admit(right, state, None, TRUST)
    state = admit(right, state, None, TRUST, permit(right.digest, 0, [OWNER]))
    admit(make(created="2027-01-12T00:00:00Z", expires="2028-01-01T00:00:00Z", release=12), state, None, TRUST)


def test_fast_forward_ends_with_the_stolen_key(make: Any) -> None:
    both = Trust((OWNER.public_key(), THIEF.public_key()))
    state = admit(make((THIEF,), both, release=MAX_RELEASE), EMPTY, None, both)
    with pytest.raises(AdmissionError, match=f"has had release {MAX_RELEASE}"):
        admit(make((OWNER,), both, release=20), state, None, both)
    state = admit(make(release=20), state, None, TRUST)
    assert floor(state, TRUST) == 20
    with pytest.raises(SchemaError, match="release must be"):
        make(release=MAX_RELEASE + 1)


def test_one_key_where_two_are_needed_is_refused(make: Any, tmp_path: Path) -> None:
    two = Trust((OWNER.public_key(), SECOND.public_key()), threshold=2)
    for signers in ((OWNER,), (OWNER, THIEF), (OWNER, OWNER)):
        with pytest.raises(UntrustedKeyError, match=r"and 2 of the keys .* must sign it; .*armlet key sign"):
            make(signers, two)
    assert add_signature(tmp_path / "b.armlet", SECOND) == 2
    bundle = open_bundle(tmp_path / "b.armlet", two)
    assert len(bundle.signers) == 2
    state = admit(bundle, EMPTY, None, two)
    assert floor(state, two) == 0 and floor(SlotState({}, {"+".join(bundle.signers): 7}), two) == 7
    assert floor(SlotState({}, {bundle.signers[0]: 7}), two) == 0


@pytest.mark.parametrize(
    ("fields", "board", "words"),
    [
        (
            {"boards": ("jetson-orin",)},
            PI,
            "made for jetson-orin; this board is raspberry-pi-5",
        ),
        ({"boards": ("jetson-orin",)}, None, "does not say what board it is on"),
        (
            {},
            PI_WITH_ACC,
            r"needs hr, which this board's wearables do not have \(acc\)",
        ),
        ({}, PI_WITH_BOTH, None),
        ({"boards": ("raspberry-pi-5",)}, PI, None),
    ],
)
def test_a_bundle_is_for_its_boards(
    make: Any, fields: dict[str, Any], board: BoardDescription | None, words: str | None
) -> None:
    if words is None:
        admit(make(**fields), EMPTY, board, TRUST)
        return
    with pytest.raises(AdmissionError, match=words):
        admit(make(**fields), EMPTY, board, TRUST)


@pytest.mark.parametrize("text", ["yesterday", "2027-01-15", "2027-01-15T00:00:00", "1960-01-01T00:00:00Z"])
def test_a_time_that_is_none_is_refused(make: Any, text: str) -> None:
    for field in ("created", "expires"):
        with pytest.raises(SchemaError, match="is no time"):
            make(**{field: text})
