"""Bundles: one signed ``.armlet`` file with all that a board needs. Data only; nothing in it is executed or unpickled.

The container, all numbers little-endian::

    8 bytes    magic: "ARMLET", 0, container version 1
    u32        length of the header, at most 1 MiB
    header     JSON {"schema": 1, "members": [{"name": .., "size": .., "sha256": hex}, ..]}
    members    back to back in the header's order, without gaps
    32 bytes   raw Ed25519 public key of the signer
    64 bytes   Ed25519 signature over SHA-256(DOMAIN + magic + length + header)

There are no bytes after that. The header holds every member's size and SHA-256, so the signature covers every byte
before the key; another key is not trusted, and another signature is not valid. The first member is ``manifest.json``
(:class:`~armlet_runtime.manifest.Manifest`), the others follow by name, so equal contents give equal files.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from . import keys
from .errors import (
    BundleError,
    CorruptBundleError,
    MissingMemberError,
    NewerSchemaError,
    SchemaError,
    SignatureError,
    TrailingBytesError,
    TruncatedBundleError,
    UntrustedKeyError,
)
from .files import write_atomic
from .manifest import Manifest, decode_manifest, encode_manifest, named_members

MAGIC = b"ARMLET\x00\x01"
SCHEMA = 1
MANIFEST = "manifest.json"
MAX_HEADER = 1 << 20
"""Bytes; room for some 7000 members, and a limit to what an unverified file can make us read as JSON."""

# Keeps a bundle's signature from ever being taken for that of something else signed with the same key.
DOMAIN = b"armlet bundle signature v1\x00"

_LENGTH = struct.Struct("<I")
_KEY_SIZE, _SIGNATURE_SIZE = 32, 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_MAX_NAME = 200


class _Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    size: int
    sha256: str


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    members: list[_Member]


class _AnyHeader(msgspec.Struct):
    schema: int


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified as a whole.

    Attributes:
        manifest: What the board must know about the model.
        digest: Hex SHA-256 that the signature is over; names the contents, whoever signed them.
        key_id: Short name of the key that signed it.
        sizes: Member name to size in bytes, in the order of the file.
    """

    manifest: Manifest
    digest: str
    key_id: str
    sizes: dict[str, int]
    _members: Mapping[str, bytes]

    def read(self, member: str) -> bytes:
        """The bytes of a member.

        Raises:
            MissingMemberError: There is no such member.
        """
        try:
            return self._members[member]
        except KeyError:
            raise MissingMemberError(f"the bundle has no member '{member}'") from None


def _signed_digest(head: bytes) -> bytes:
    return hashlib.sha256(DOMAIN + head).digest()


def _check_names(names: Sequence[str], error: type[BundleError], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
            raise error(f"{where} has the member name {name[:_MAX_NAME]!r}, which is not a plain relative path")
        if name in seen:
            raise error(f"{where} has the member '{name}' twice")
        seen.add(name)


def write_bundle(path: Path, manifest: Manifest, members: Mapping[str, bytes], key: Ed25519PrivateKey) -> str:
    """Write and sign a bundle, atomically: ``path`` holds the old file or the whole new one.

    Args:
        path: File to write, ``*.armlet``.
        manifest: Written as the member ``manifest.json``.
        members: All other members, at least those that the manifest names. The same input gives the same bytes.
        key: Signing key.

    Returns:
        The bundle's digest (see :class:`Bundle`).

    Raises:
        BundleError: A name is not usable, the manifest contradicts itself or names a member that is not given, or
            there are too many members for the header.
    """
    if MANIFEST in members:
        raise BundleError(f"'{MANIFEST}' is written from the manifest and must not be among the members")
    everything = {MANIFEST: encode_manifest(manifest)} | {name: members[name] for name in sorted(members)}
    _check_names(list(everything), BundleError, "the new bundle")
    decode_manifest(everything[MANIFEST])  # what a reader would refuse is not written
    _check_complete(manifest, everything)
    header = msgspec.json.encode(
        _Header(
            SCHEMA,
            [_Member(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in everything.items()],
        )
    )
    if len(header) > MAX_HEADER:
        raise BundleError(f"the header would take {len(header)} bytes, more than {MAX_HEADER}: too many members")
    head = MAGIC + _LENGTH.pack(len(header)) + header
    digest = _signed_digest(head)
    tail = key.public_key().public_bytes_raw() + key.sign(digest)
    write_atomic(path, b"".join([head, *everything.values(), tail]))
    return digest.hex()


def open_bundle(path: Path, trusted: Iterable[Ed25519PublicKey]) -> Bundle:
    """Read a bundle and verify everything: sizes, signature by a trusted key, every member's hash, the manifest.

    The file is read once and kept in memory, so what was verified is what is used, whatever happens to the file.

    Raises:
        TruncatedBundleError: The file ends early.
        TrailingBytesError: The file goes on after the bundle's end.
        CorruptBundleError: It is no bundle, or its header or a member was changed; the message names the member.
        NewerSchemaError: The container, header or manifest is newer than this armlet.
        SchemaError: The header or manifest does not follow its schema.
        MissingMemberError: The manifest names a member that is not there.
        UntrustedKeyError: It is signed by a key that is not among ``trusted``.
        SignatureError: The signature is not valid.
        BundleError: The file cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read the bundle {path}: {error.strerror}") from error
    return _verify(data, str(path), list(trusted))


def _verify(data: bytes, path: str, trusted: list[Ed25519PublicKey]) -> Bundle:
    header, body = _read_header(data, path)
    sizes = [member.size for member in header.members]
    end = body + sum(sizes)
    whole = end + _KEY_SIZE + _SIGNATURE_SIZE
    if len(data) < whole:
        raise TruncatedBundleError(f"{path} is truncated: {len(data)} of {whole} bytes are there; copy it again")
    if len(data) > whole:
        raise TrailingBytesError(f"{path} has {len(data) - whole} bytes after its end; copy it again from its source")

    digest = _signed_digest(data[:body])
    signer = _check_signature(data[end : end + _KEY_SIZE], data[end + _KEY_SIZE :], digest, path, trusted)

    members: dict[str, bytes] = {}
    offset = body
    for member in header.members:
        content = data[offset : offset + member.size]
        if hashlib.sha256(content).hexdigest() != member.sha256:
            raise CorruptBundleError(f"{path}: the member '{member.name}' is corrupt; copy the bundle again")
        members[member.name] = content
        offset += member.size
    if MANIFEST not in members:
        raise MissingMemberError(f"{path} has no member '{MANIFEST}'")
    try:
        manifest = decode_manifest(members[MANIFEST])
        _check_complete(manifest, members)
    except SchemaError as error:
        raise type(error)(f"{path}: {error}") from error
    return Bundle(manifest, digest.hex(), signer, dict(zip(members, sizes, strict=True)), members)


def _read_header(data: bytes, path: str) -> tuple[_Header, int]:
    """The header, well-formed but not yet verified, and where the members start."""
    start = len(MAGIC) + _LENGTH.size
    if data[: len(MAGIC) - 1] != MAGIC[: min(len(data), len(MAGIC) - 1)]:
        raise CorruptBundleError(f"{path} is not an armlet bundle, or its first bytes are corrupt")
    if len(data) < start:
        raise TruncatedBundleError(f"{path} is truncated: it ends within its first {start} bytes; copy it again")
    if data[len(MAGIC) - 1] > MAGIC[-1]:
        raise NewerSchemaError(
            f"{path} says that it is of container version {data[len(MAGIC) - 1]}, and this armlet knows version "
            f"{MAGIC[-1]}: update armlet, or copy the bundle again if it should be older"
        )
    if data[len(MAGIC) - 1] < MAGIC[-1]:
        raise CorruptBundleError(f"{path} has a corrupt container version; copy it again")
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    if length > MAX_HEADER:
        raise CorruptBundleError(
            f"{path} says that its header has {length} bytes, more than the {MAX_HEADER} allowed: it is corrupt"
        )
    if len(data) < start + length:
        raise TruncatedBundleError(f"{path} is truncated: it ends within its header; copy it again")
    raw = data[start : start + length]
    try:
        schema = msgspec.json.decode(raw, type=_AnyHeader).schema
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptBundleError(f"{path} has a corrupt header; copy it again") from error
    if schema > SCHEMA:
        raise NewerSchemaError(f"{path} has a header of schema {schema}, and this armlet knows {SCHEMA}: update armlet")
    try:
        header = msgspec.json.decode(raw, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SchemaError(f"{path} has a header that does not follow schema {schema}: {error}") from error
    if schema != SCHEMA or any(member.size < 0 for member in header.members):
        raise SchemaError(f"{path} has a header that does not follow schema {SCHEMA}")
    _check_names([member.name for member in header.members], SchemaError, path)
    return header, start + length


def _check_signature(
    raw_key: bytes, signature: bytes, digest: bytes, path: str, trusted: list[Ed25519PublicKey]
) -> str:
    """The signer's key id, if its key is trusted and its signature valid."""
    signer = next((key for key in trusted if key.public_bytes_raw() == raw_key), None)
    if signer is None:
        name = hashlib.sha256(raw_key).hexdigest()[:16]
        known = ", ".join(keys.key_id(key) for key in trusted) or "none"
        raise UntrustedKeyError(
            f"{path} is signed by the key {name}, which is not trusted here (trusted: {known}); "
            f"give the signer's public key with --key, or put it into {keys.home() / 'trusted'}"
        )
    try:
        signer.verify(signature, digest)
    except InvalidSignature as error:
        raise SignatureError(
            f"{path} has no valid signature by the key {keys.key_id(signer)}: its header or signature was changed"
        ) from error
    return keys.key_id(signer)


def _check_complete(manifest: Manifest, members: Mapping[str, bytes]) -> None:
    for member in named_members(manifest):
        if member not in members:
            raise MissingMemberError(f"the manifest names the member '{member}', which is not in the bundle")
