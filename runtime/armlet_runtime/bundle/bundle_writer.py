"""Writing and signing bundles."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..errors import (
    BundleError,
)
from ..files import write_atomic
from .container import (
    LENGTH,
    MAGIC,
    MANIFEST,
    MAX_HEADER,
    MAX_SIGNATURES,
    SCHEMA,
    Header,
    Member,
    check_complete,
    check_names,
    open_bundle,
    read_header,
    read_signatures,
    signed_digest,
)
from .manifest import Manifest
from .manifest_file import decode_manifest, encode_manifest


def write_bundle(
    path: Path, manifest: Manifest, members: Mapping[str, bytes], signers: Sequence[Ed25519PrivateKey]
) -> str:
    """Write and sign a bundle, atomically: ``path`` holds the old file or the whole new one.

    Args:
        path: File to write, ``*.armlet``.
        manifest: Written as the member ``manifest.json``.
        members: All other members: those that the manifest names. The same input gives the same bytes.
        signers: Signing keys, 1 to 16; :func:`add_signature` adds more later.

    Returns:
        The bundle's digest (see :class:`Bundle`).

    Raises:
        BundleError: A name is not usable, the manifest contradicts itself or does not name just these members, or
            there are too many members for the header.
    """
    if MANIFEST in members:
        raise BundleError(f"'{MANIFEST}' is written from the manifest and must not be among the members")
    everything = {MANIFEST: encode_manifest(manifest)} | {name: members[name] for name in sorted(members)}
    check_names(list(everything), BundleError, "the new bundle")
    decode_manifest(everything[MANIFEST])  # what a reader would refuse is not written
    check_complete(manifest, everything)
    header = msgspec.json.encode(
        Header(
            SCHEMA,
            [Member(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in everything.items()],
        )
    )
    if len(header) > MAX_HEADER:
        raise BundleError(f"the header would take {len(header)} bytes, more than {MAX_HEADER}: too many members")
    head = MAGIC + LENGTH.pack(len(header)) + header
    digest = signed_digest(head)
    signatures = {key.public_key().public_bytes_raw(): key.sign(digest) for key in signers}
    write_atomic(path, b"".join([head, _encode_signatures(signatures), *everything.values()]))
    return digest.hex()


def add_signature(path: Path, key: Ed25519PrivateKey) -> int:
    """Sign a bundle with one more key, atomically; how many have signed it then.

    The bundle is not verified against anybody's trust here: look at what you sign (``armlet inspect``).

    Raises:
        BundleError: It is no whole bundle, one of its signatures is not valid, or there is no place for another.
    """
    digest = open_bundle(path, None).digest
    data = path.read_bytes()
    _, body = read_header(data, str(path))
    signatures, members = read_signatures(data, body, str(path))
    if signed_digest(data[:body]).hex() != digest:
        raise BundleError(f"{path} was changed while it was signed; nothing was written")
    signatures[key.public_key().public_bytes_raw()] = key.sign(bytes.fromhex(digest))
    write_atomic(path, b"".join([data[:body], _encode_signatures(signatures), data[members:]]))
    return len(signatures)


def _encode_signatures(signatures: Mapping[bytes, bytes]) -> bytes:
    if not 1 <= len(signatures) <= MAX_SIGNATURES:
        raise BundleError(f"a bundle has 1 to {MAX_SIGNATURES} signatures, not {len(signatures)}")
    return bytes([len(signatures)]) + b"".join(raw + signatures[raw] for raw in sorted(signatures))
