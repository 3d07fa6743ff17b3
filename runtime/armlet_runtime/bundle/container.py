"""Bundles: one signed ``.armlet`` file with all that a board needs. Data only; nothing in it is executed or unpickled.

The container, all numbers little-endian::

    8 bytes    magic: "ARMLET", 0, container version 2
    u32        length of the header, at most 1 MiB
    header     JSON {"schema": 1, "members": [{"name": .., "size": .., "sha256": hex}, ..]}
    u8         number of signatures, 1 to 16
    signatures each: 32 bytes raw Ed25519 public key, 64 bytes signature over SHA-256(DOMAIN + magic + length + header)
    members    back to back in the header's order, without gaps

There are no bytes after that. The header holds every member's size and SHA-256, so each signature covers everything
but the signatures; and every signature must be valid, also of keys that are not asked for, so no byte of the file can
change unseen. They precede the members, so that the reader of a stream can stop before it takes any. The first
member is ``manifest.json`` (:class:`~armlet_runtime.bundle.manifest.Manifest`), the others follow by name, so equal
contents give equal files.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..errors import (
    BundleError,
    CorruptBundleError,
    ExtraMemberError,
    MissingMemberError,
    NewerSchemaError,
    SchemaError,
    SignatureError,
    TrailingBytesError,
    TruncatedBundleError,
    UntrustedKeyError,
)
from ..files import CHUNK
from .keys import home, key_id
from .manifest import Manifest
from .manifest_file import decode_manifest, named_members
from .trust import Trust

MAGIC = b"ARMLET\x00\x02"
SCHEMA = 1
MANIFEST = "manifest.json"
MAX_HEADER = 1 << 20
"""Bytes; room for some 7000 members, and a limit to what an unverified file can make us read as JSON."""

# Keeps a bundle's signature from ever being taken for that of something else signed with the same key.
DOMAIN = b"armlet bundle signature v1\x00"

MAX_MANIFEST = 1 << 20
"""Bytes; a manifest of seven modalities and four engines takes a hundredth."""

MAX_SIGNATURES = 16

LENGTH = struct.Struct("<I")
_KEY_SIZE, _SIGNATURE_SIZE = 32, 64
MAX_FRONT = len(MAGIC) + LENGTH.size + MAX_HEADER + 1 + MAX_SIGNATURES * (_KEY_SIZE + _SIGNATURE_SIZE) + MAX_MANIFEST
"""Bytes in which a bundle's beginning, down to the end of its manifest, certainly lies."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_MAX_NAME = 200


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member as the header has it: its name, bytes, and SHA-256 in hex."""

    name: str
    size: int
    sha256: str


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The header: its schema, and the members in their order."""

    schema: int
    members: list[Member]


class _AnyHeader(msgspec.Struct):
    schema: int


@dataclass(frozen=True)
class Front:
    """A bundle's beginning, verified: header, signatures and manifest. The other members may still be to come.

    Attributes:
        data: Its bytes, from the bundle's first to the manifest's last.
        manifest: What the board must know about the model.
        digest: As in :class:`Bundle`.
        signers: As in :class:`Bundle`.
        members: All members, in the order of the file; the manifest is the first.
        size: Bytes of the whole bundle.
    """

    data: bytes
    manifest: Manifest
    digest: str
    signers: tuple[str, ...]
    members: tuple[Member, ...]
    size: int


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified as a whole.

    It keeps its file open, so that it stays what it is when the path is given to another; members are read when they
    are asked for, and checked again then.

    Attributes:
        manifest: What the board must know about the model.
        digest: Hex SHA-256 that is signed; names the contents, whoever signed them.
        signers: Short names of the trusted keys that signed it.
        sizes: Member name to size in bytes, in the order of the file.
    """

    manifest: Manifest
    digest: str
    signers: tuple[str, ...]
    sizes: dict[str, int]
    _file: int
    _path: str
    _places: Mapping[str, tuple[int, Member]]

    def read(self, member: str) -> bytes:
        """The bytes of a member.

        Raises:
            MissingMemberError: There is no such member.
            CorruptBundleError: The file was changed since it was opened.
        """
        try:
            offset, entry = self._places[member]
        except KeyError:
            raise MissingMemberError(f"the bundle has no member '{member}'") from None
        data = os.pread(self._file, entry.size, offset)
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CorruptBundleError(f"{self._path} was changed while it was in use; copy it again")
        return data

    def sha256(self, member: str) -> str:
        """Hex SHA-256 of a member of this bundle."""
        return self._places[member][1].sha256


def signed_digest(head: bytes) -> bytes:
    """The digest (32 bytes) that signatures are over; ``head``: magic, length and header."""
    return hashlib.sha256(DOMAIN + head).digest()


def check_names(names: Sequence[str], error: type[BundleError], where: str) -> None:
    """Raise ``error`` for a name of a member that is not allowed or comes twice; ``where``: for the message."""
    seen: set[str] = set()
    for name in names:
        if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
            raise error(f"{where} has the member name {name[:_MAX_NAME]!r}, which is not a plain relative path")
        if name in seen:
            raise error(f"{where} has the member '{name}' twice")
        seen.add(name)


def open_bundle(path: Path, trusted: Trust | None) -> Bundle:
    """Open a bundle and verify everything: signatures by enough trusted keys, sizes, every member's hash, the manifest.

    Args:
        path: The file.
        trusted: Keys whose signatures are needed; None to accept any signer (to sign or to show it: what
            it holds must not be run).

    Raises:
        TruncatedBundleError: The file ends early.
        TrailingBytesError: The file goes on after the bundle's end.
        CorruptBundleError: It is no bundle, or its header or a member was changed; the message names the member.
        NewerSchemaError: The container, header or manifest is newer than this armlet.
        SchemaError: The header or manifest does not follow its schema.
        MissingMemberError: The manifest names a member that is not there.
        ExtraMemberError: There is a member that the manifest does not name.
        UntrustedKeyError: Too few of the keys that signed it are trusted.
        SignatureError: A signature is not valid.
        BundleError: The file cannot be read.
    """
    try:
        # Not waiting for a writer, should the path be a pipe; what is not a plain file is refused.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BundleError(f"cannot read the bundle {path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise BundleError(f"{path} is not a plain file; give a bundle")
        bundle = _verify(file, str(path), trusted)
    except BaseException as error:
        os.close(file)
        if isinstance(error, OSError):
            raise BundleError(f"cannot read the bundle {path}: {error.strerror}") from error
        raise
    weakref.finalize(bundle, os.close, file)
    return bundle


def _verify(file: int, path: str, trusted: Trust | None) -> Bundle:
    front = open_front(b"".join(_chunks(file, 0, MAX_FRONT)), path, trusted)
    length = os.fstat(file).st_size
    if length < front.size:
        raise TruncatedBundleError(f"{path} is truncated: {length} of {front.size} bytes are there; copy it again")
    if length > front.size:
        raise TrailingBytesError(f"{path} has {length - front.size} bytes after its end; copy it again from its source")
    places: dict[str, tuple[int, Member]] = {}
    offset = len(front.data) - front.members[0].size
    for member in front.members:
        sha256 = _hash(file, offset, member.size)
        if sha256 != member.sha256:
            raise CorruptBundleError(f"{path}: {_what_is_wrong(member, sha256, front.members)}; copy the bundle again")
        places[member.name] = (offset, member)
        offset += member.size
    sizes = {member.name: member.size for member in front.members}
    return Bundle(front.manifest, front.digest, front.signers, sizes, file, path, places)


def _what_is_wrong(member: Member, sha256: str, members: Sequence[Member]) -> str:
    """Why a member's bytes, of SHA-256 ``found``, are not those of the header."""
    for other in members:
        if other.sha256 == sha256:
            return f"the member '{member.name}' holds what belongs into '{other.name}': they were swapped"
    return f"the member '{member.name}' is corrupt, or was taken from another bundle"


def open_front(data: bytes, path: str, trusted: Trust | None) -> Front:
    """Verify the beginning of a bundle: signatures by enough trusted keys, and the manifest.

    Args:
        data: The bundle's first :data:`MAX_FRONT` bytes, all if it has fewer, or at least a :attr:`Front.data`.
        path: Name of the bundle, for errors.
        trusted: As for :func:`open_bundle`.

    Raises:
        BundleError: As :func:`open_bundle`.
    """
    header, body = read_header(data, path)
    signatures, start = read_signatures(data, body, path)
    digest = signed_digest(data[:body])
    signers = _check_signatures(signatures, digest, path, trusted)
    if not header.members or header.members[0].name != MANIFEST:
        raise MissingMemberError(f"{path} has no member '{MANIFEST}' in the first place")
    first = header.members[0]
    if first.size > MAX_MANIFEST:
        raise SchemaError(f"{path} has a manifest of {first.size} bytes, more than the {MAX_MANIFEST} allowed")
    end = start + first.size
    if len(data) < end:
        raise TruncatedBundleError(f"{path} is truncated: it ends within its manifest; copy it again")
    sha256 = hashlib.sha256(data[start:end]).hexdigest()
    if sha256 != first.sha256:
        raise CorruptBundleError(f"{path}: {_what_is_wrong(first, sha256, header.members)}; copy the bundle again")
    try:
        manifest = decode_manifest(data[start:end])
        check_complete(manifest, [member.name for member in header.members])
    except SchemaError as error:
        raise type(error)(f"{path}: {error}") from error
    size = start + sum(member.size for member in header.members)
    return Front(data[:end], manifest, digest.hex(), signers, tuple(header.members), size)


def read_front(path: Path, trusted: Trust | None) -> Front:
    """The verified beginning of a bundle in a file.

    Raises:
        BundleError: As :func:`open_front`, or the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FRONT)
    except OSError as error:
        raise BundleError(f"cannot read the bundle {path}: {error.strerror}") from error
    return open_front(data, str(path), trusted)


def _hash(file: int, offset: int, size: int) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(file, offset, size):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: int, offset: int, size: int) -> Iterator[bytes]:
    end = offset + size
    while offset < end:
        chunk = os.pread(file, min(CHUNK, end - offset), offset)
        if not chunk:
            return
        yield chunk
        offset += len(chunk)


def read_header(data: bytes, path: str) -> tuple[Header, int]:
    """The header, well-formed but not yet verified, and where the members start."""
    start = len(MAGIC) + LENGTH.size
    if data[: len(MAGIC) - 1] != MAGIC[: min(len(data), len(MAGIC) - 1)]:
        raise CorruptBundleError(f"{path} is not an armlet bundle, or its first bytes are corrupt")
    if len(data) < start:
        raise TruncatedBundleError(f"{path} is truncated: it ends within its first {start} bytes; copy it again")
    if data[len(MAGIC) - 1] > MAGIC[-1]:
        raise NewerSchemaError(
            f"{path} has container version {data[len(MAGIC) - 1]}, and this armlet knows version "
            f"{MAGIC[-1]}: update armlet, or copy the bundle again if it should be older"
        )
    if data[len(MAGIC) - 1] < MAGIC[-1]:
        raise SchemaError(
            f"{path} has container version {data[len(MAGIC) - 1]}, older than the {MAGIC[-1]} that this "
            f"armlet knows: export it again, or copy it again if it should be newer"
        )
    (length,) = LENGTH.unpack_from(data, len(MAGIC))
    if length > MAX_HEADER:
        raise CorruptBundleError(
            f"{path} claims a header of {length} bytes, more than the {MAX_HEADER} allowed: the file is corrupt"
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
        header = msgspec.json.decode(raw, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SchemaError(f"{path} has a header that does not follow schema {schema}: {error}") from error
    if schema != SCHEMA or any(member.size < 0 for member in header.members):
        raise SchemaError(f"{path} has a header that does not follow schema {SCHEMA}")
    check_names([member.name for member in header.members], SchemaError, path)
    return header, start + length


def read_signatures(data: bytes, start: int, path: str) -> tuple[dict[bytes, bytes], int]:
    """Raw key to signature, not yet verified, and where they end."""
    if len(data) <= start:
        raise TruncatedBundleError(f"{path} is truncated: it ends after its header; copy it again")
    count = data[start]
    if count == 0:
        raise SignatureError(f"{path} is not signed; only a bundle that a trusted key has signed is taken")
    if not 1 <= count <= MAX_SIGNATURES:
        raise CorruptBundleError(f"{path} claims {count} signatures, not 1 to {MAX_SIGNATURES}: the file is corrupt")
    end = start + 1 + count * (_KEY_SIZE + _SIGNATURE_SIZE)
    if len(data) < end:
        raise TruncatedBundleError(f"{path} is truncated: it ends within its signatures; copy it again")
    signatures: dict[bytes, bytes] = {}
    for at in range(start + 1, end, _KEY_SIZE + _SIGNATURE_SIZE):
        signatures[data[at : at + _KEY_SIZE]] = data[at + _KEY_SIZE : at + _KEY_SIZE + _SIGNATURE_SIZE]
    if len(signatures) < count:
        raise SignatureError(f"{path} is signed by the same key twice; each key counts once")
    return signatures, end


def _check_signatures(
    signatures: Mapping[bytes, bytes], digest: bytes, path: str, trusted: Trust | None
) -> tuple[str, ...]:
    """The trusted keys that signed it, by their short names, if all signatures are valid and they are enough."""
    signers = []
    for raw, signature in signatures.items():
        key = Ed25519PublicKey.from_public_bytes(raw)
        try:
            key.verify(signature, digest)
        except InvalidSignature as error:
            raise SignatureError(
                f"{path} has no valid signature by the key {key_id(key)}: its header or a signature was changed; "
                f"copy it again"
            ) from error
        if trusted is None or trusted.find(raw):
            signers.append(key_id(key))
    if trusted is not None and len(signers) < trusted.threshold:
        by = ", ".join(key_id(Ed25519PublicKey.from_public_bytes(raw)) for raw in signatures)
        known = ", ".join(key_id(key) for key in trusted.keys) or "none"
        if trusted.threshold == 1:
            raise UntrustedKeyError(
                f"{path} is signed by the key {by}, which is not trusted here (trusted: {known}); "
                f"give the signer's public key with --key, or put it into {home() / 'trusted'}"
            )
        raise UntrustedKeyError(
            f"{path} is signed by {by}, and {trusted.threshold} of the keys {known} must sign it; "
            f"have it signed with 'armlet key sign'"
        )
    return tuple(sorted(signers))


def check_complete(manifest: Manifest, members: Collection[str]) -> None:
    """Raise MissingMemberError if a member that the manifest names is missing."""
    for member in named_members(manifest):
        if member not in members:
            raise MissingMemberError(f"the manifest names the member '{member}', which is not in the bundle")
    for member in set(members) - {MANIFEST, *named_members(manifest)}:
        raise ExtraMemberError(f"the bundle holds the member '{member}', which its manifest does not name")
