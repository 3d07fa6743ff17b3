"""Trust sets: thresholds and rotation; and the envelopes that carry them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from armlet_runtime.bundle import keys
from armlet_runtime.bundle.dsse import MAX_BYTES, add_signature, open_envelope, seal
from armlet_runtime.bundle.trust import KIND, Trust, TrustSet, install, next_set, trusted_keys
from armlet_runtime.errors import ArmletError, KeyFileError, SignatureError

ALICE, BOB, CAROL, MALLORY = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 5))
ALICES, BOBS, CAROLS = (key.public_key() for key in (ALICE, BOB, CAROL))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARMLET_HOME", str(tmp_path))
    keys.trust(ALICES)
    return tmp_path


def test_a_rotation_takes_the_place_of_the_key_files(home: Path) -> None:
    first = next_set(trusted_keys(), [ALICES, BOBS], 2, [ALICE, BOB])
    assert install(first, "1").threshold == 2
    now = trusted_keys()
    assert (now.version, now.threshold, now.keys) == (1, 2, tuple(sorted((ALICES, BOBS), key=_raw)))
    second = next_set(now, [BOBS, CAROLS], 1, [ALICE, BOB])
    install(second, "2")
    assert [key.public_bytes_raw() for key in trusted_keys().keys] == sorted(map(_raw, (BOBS, CAROLS)))
    with pytest.raises(KeyFileError, match="armlet key rotate --add"):
        keys.trust(MALLORY.public_key())
    write_trusted(home, MALLORY)
    assert trusted_keys().find(_raw(MALLORY.public_key())) is None, "a file beside the trust set must not count"


def write_trusted(home: Path, key: Ed25519PrivateKey) -> None:
    """Put a public key beside the trust set, as a person might by hand."""
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (home / "trusted" / "by-hand.pub").write_bytes(pem)


def test_revoked_keys_stay_revoked_when_the_trust_set_is_lost(home: Path) -> None:
    install(next_set(trusted_keys(), [BOBS], 1, [ALICE, BOB]), "1")
    (home / "trust.json").unlink()
    assert trusted_keys().keys == (), "Alice's key was revoked, and must not count again"


def test_a_home_with_a_trust_set_does_not_trust_its_signing_key_beside_it(home: Path) -> None:
    signing, _ = keys.default_signing_key()
    install(next_set(trusted_keys(), [BOBS], 1, [ALICE, BOB]), "1")
    keys.default_signing_key()  # as an export does
    (home / "trust.json").unlink()
    assert trusted_keys().find(_raw(signing.public_key())) is None


def _raw(key: object) -> bytes:
    return bytes(key.public_bytes_raw())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("signers", "threshold", "words"),
    [
        ([MALLORY, BOB, CAROL], 2, "0 of the 1 keys"),  # not by the present set
        ([ALICE, BOB], 3, "2 of the 3 keys"),  # the new set does not show all its keys
        ([ALICE, ALICE, ALICE], 2, "1 of the 2 keys"),  # one key three times counts once
    ],
)
def test_a_set_needs_the_old_and_the_new_owners(
    home: Path, signers: list[Ed25519PrivateKey], threshold: int, words: str
) -> None:
    document = next_set(trusted_keys(), [ALICES, BOBS, CAROLS], threshold, signers)
    with pytest.raises(SignatureError, match=words):
        install(document, "trust-1.json")
    assert trusted_keys().version == 0
    for key in (ALICE, BOB, CAROL):  # as when a document goes from hand to hand
        document = add_signature(document, key, "trust-1.json")
    assert install(document, "trust-1.json").threshold == threshold


def test_versions_come_one_after_the_other(home: Path) -> None:
    first = next_set(trusted_keys(), [BOBS], 1, [ALICE, BOB])
    install(first, "1")
    with pytest.raises(SignatureError, match=r"is version 1 .* version 1 is in force"):
        install(first, "1 again")
    ahead = next_set(Trust((BOBS,), version=2), [CAROLS], 1, [BOB, CAROL])
    with pytest.raises(SignatureError, match=r"is version 3 .* give version 2"):
        install(ahead, "3")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (TrustSet(1, 0, (_raw(ALICES).hex(),)), "asks for 0 signatures"),
        (TrustSet(1, 2, (_raw(ALICES).hex(),)), "asks for 2 signatures of 1 keys"),
        (TrustSet(1, 1, ()), "1 to 16 keys"),
        (TrustSet(1, 1, (_raw(ALICES).hex(),) * 2), "none twice"),
        (TrustSet(1, 1, ("abc",)), "not 32 bytes"),
    ],
)
def test_a_set_that_cannot_be_is_refused(home: Path, document: TrustSet, words: str) -> None:
    with pytest.raises(KeyFileError, match=words):
        install(seal(document, KIND, [ALICE]), "trust-1.json")
    assert not keys.trust_set_path().exists()


def test_without_a_first_key_nobody_can_rotate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARMLET_HOME", str(tmp_path / "new"))
    document = TrustSet(1, 1, (_raw(ALICES).hex(),))
    with pytest.raises(SignatureError, match="no key is trusted here yet"):
        install(seal(document, KIND, [ALICE]), "trust-1.json")


def test_a_document_of_another_kind_is_not_taken(home: Path) -> None:
    """One signed word must not pass as another, whatever both look like."""
    document = TrustSet(1, 1, (_raw(BOBS).hex(),))
    other = seal(document, "application/vnd.armlet.permission+json", [ALICE, BOB])
    with pytest.raises(SignatureError, match="of another kind"):
        install(other, "x")
    renamed = json.loads(other)
    renamed["payloadType"] = KIND
    with pytest.raises(SignatureError, match="0 of the 1 keys"):
        install(json.dumps(renamed).encode(), "x")


def test_an_envelope_is_as_the_specification_says() -> None:
    """The signed bytes by DSSE's protocol.md, written here once more by hand."""
    document = TrustSet(7, 1, ("00",))
    envelope = json.loads(seal(document, KIND, [ALICE]))
    payload = base64.b64decode(envelope["payload"])
    assert json.loads(payload) == {"version": 7, "threshold": 1, "keys": ["00"]}
    message = f"DSSEv1 {len(KIND)} {KIND} {len(payload)} ".encode() + payload
    ALICES.verify(base64.b64decode(envelope["signatures"][0]["sig"]), message)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_changed_envelope_is_taken(data: st.DataObject) -> None:
    document = TrustSet(7, 1, ("00",))
    good = seal(document, KIND, [ALICE])
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 30)))
    changed = good[:start] + data.draw(st.binary(max_size=30)) + good[end:]
    try:
        opened = open_envelope(changed, KIND, TrustSet, [((ALICES,), 1)], "x")
    except ArmletError:
        return
    assert opened == document, "only what changes nothing, such as a blank, may pass"


def test_an_endless_envelope_is_not_read() -> None:
    with pytest.raises(SignatureError, match="more than the 65536"):
        open_envelope(b" " * (MAX_BYTES + 1), KIND, TrustSet, [((ALICES,), 1)], "x")
