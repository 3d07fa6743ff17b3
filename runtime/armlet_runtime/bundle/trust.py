"""Whom a board trusts: a set of keys, how many of them must sign, and how the set changes.

A person who never rotates a key sees only files in ``trusted/`` of the home (:mod:`armlet_runtime.bundle.keys`): any
one of them may sign. A *trust set* takes their place for good, and the files are removed, so that a revoked key does
not count again where the set is lost: a signed document (:mod:`armlet_runtime.bundle.dsse`) with a version, keys and a
threshold. The next version must be signed by the threshold of the present set, which hands
over, and by the threshold of its own, which shows that its keys are in somebody's hands. So a board follows a rotation
from any version on, one version at a time, without trusting who brings it; and a stolen key alone cannot replace the
others. This is The Update Framework's rule for its root role (TUF specification 1.0.33, section 5.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import KeyFileError, SignatureError
from ..files import write_atomic
from .dsse import open_envelope, peek, seal
from .keys import key_id, load_public, trust_set_path, trusted_files

KIND = "application/vnd.armlet.trust+json"
MAX_KEYS = 16


class TrustSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The document.

    Attributes:
        version: Counts from 1.
        threshold: How many of the keys must sign a bundle, a permission or the next set.
        keys: Raw Ed25519 public keys, hex.
    """

    version: int
    threshold: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Trust:
    """Keys, and how many of them must have signed.

    Attributes:
        keys: Public keys, each once.
        threshold: At least 1.
        version: Of the trust set; 0 for keys in files.
        document: The signed trust set; empty for keys in files.
    """

    keys: tuple[Ed25519PublicKey, ...]
    threshold: int = 1
    version: int = 0
    document: bytes = field(default=b"", compare=False)

    def find(self, raw: bytes) -> Ed25519PublicKey | None:
        """The key with those 32 raw bytes, if it is one of them."""
        return next((key for key in self.keys if key.public_bytes_raw() == raw), None)

    def reaches(self, key_ids: Sequence[str]) -> bool:
        """Whether that many different keys of those names are in the set as it asks for."""
        return len({key_id(key) for key in self.keys} & set(key_ids)) >= self.threshold


def trusted_keys(files: Sequence[Path] = ()) -> Trust:
    """The trusted keys: those in ``files``, or else the home's trust set, or else any of its ``trusted/*.pub``.

    Raises:
        KeyFileError: A file is no Ed25519 public key, or the trust set cannot be read.
    """
    if files:
        return Trust(tuple(load_public(path) for path in files))
    path = trust_set_path()
    if not path.exists():
        return Trust(tuple(load_public(file) for file in trusted_files()))
    try:
        document = path.read_bytes()
        return replace(_trust(peek(document, KIND, TrustSet, str(path)), str(path)), document=document)
    except (OSError, SignatureError) as error:
        raise KeyFileError(f"cannot read whom this home trusts: {error}") from error


def next_set(
    now: Trust, keys: Sequence[Ed25519PublicKey], threshold: int, signers: Sequence[Ed25519PrivateKey]
) -> bytes:
    """The signed document of the set that follows ``now``; :func:`install` takes it once enough have signed it.

    Args:
        now: The trusted keys at present.
        keys: The keys to trust.
        threshold: How many of them must sign.
        signers: Keys that sign it now; :func:`armlet_runtime.bundle.dsse.add_signature` adds others.

    Raises:
        KeyFileError: The set would not be usable.
    """
    document = TrustSet(now.version + 1, threshold, tuple(sorted({key.public_bytes_raw().hex() for key in keys})))
    _trust(document, "the new trust set")
    return seal(document, KIND, signers)


def install(data: bytes, where: str) -> Trust:
    """Replace the present trust set, or the key files, by a new trust set that is signed as required.

    Args:
        data: The signed document.
        where: Name of its file, for errors.

    Raises:
        SignatureError: It is not the next version, or too few keys of the present set or its own have signed it.
        KeyFileError: It holds no usable set.
    """
    trust = check_next(data, trusted_keys(), where)
    _store(data)
    return trust


def adopt(data: bytes, where: str) -> None:
    """Store the trust set of an owner in a home that trusts nobody yet; the set may be of any version.

    Raises:
        SignatureError: Keys are trusted here already, or too few keys of the set have signed it.
        KeyFileError: The document holds no usable set.
    """
    if trusted_keys().keys:
        raise SignatureError(f"keys are trusted here already; {where} may only follow as the next version of their set")
    claimed = _trust(peek(data, KIND, TrustSet, where), where)
    open_envelope(data, KIND, TrustSet, [(claimed.keys, claimed.threshold)], where)
    _store(data)


def _store(data: bytes) -> None:
    path = trust_set_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    for file in trusted_files():
        file.unlink()


def check_next(data: bytes, now: Trust, where: str) -> Trust:
    """The content of a trust set, if it may follow ``now``.

    Raises:
        SignatureError: It is not the next version, or too few keys of ``now`` or its own have signed it.
        KeyFileError: It holds no usable set.
    """
    claimed = _trust(peek(data, KIND, TrustSet, where), where)
    if claimed.version != now.version + 1:
        raise SignatureError(
            f"{where} is version {claimed.version} of the trust set, and version {now.version} is in force here; "
            f"give version {now.version + 1}"
        )
    if not now.keys:
        raise SignatureError(f"no key is trusted here yet, so nobody could sign {where}; trust a first key with --key")
    open_envelope(data, KIND, TrustSet, [(now.keys, now.threshold), (claimed.keys, claimed.threshold)], where)
    return claimed


def _trust(document: TrustSet, where: str) -> Trust:
    if not 1 <= len(document.keys) <= MAX_KEYS or len(set(document.keys)) != len(document.keys):
        raise KeyFileError(f"{where} must hold 1 to {MAX_KEYS} keys, none twice; it holds {len(document.keys)}")
    if not 1 <= document.threshold <= len(document.keys):
        raise KeyFileError(
            f"{where} asks for {document.threshold} signatures of {len(document.keys)} keys, which cannot be"
        )
    try:
        keys = tuple(Ed25519PublicKey.from_public_bytes(bytes.fromhex(raw)) for raw in document.keys)
    except ValueError as error:
        raise KeyFileError(f"{where} holds a key that is not 32 bytes in hex") from error
    return Trust(keys, document.threshold, document.version)
