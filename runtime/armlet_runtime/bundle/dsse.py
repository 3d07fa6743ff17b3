"""Signed JSON documents: DSSE envelopes (Dead Simple Signing Envelope v1.0, secure-systems-lab/dsse).

An envelope holds the document's bytes and signatures over exactly these bytes and their type, so no canonical form of
JSON is needed, and documents of different kinds are never confused.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import SignatureError
from .keys import key_id

MAX_BYTES = 1 << 16
"""Largest envelope that is read; a set of a hundred keys is a tenth of it."""

Document = TypeVar("Document", bound=msgspec.Struct)


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: str
    sig: str


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payload: str
    payloadType: str  # noqa: N815  (the specification's name)
    signatures: tuple[_Signature, ...]


def _authenticated(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def seal(document: msgspec.Struct, kind: str, signers: Sequence[Ed25519PrivateKey]) -> bytes:
    """The envelope of a document, signed by each of ``signers``.

    Args:
        document: Written as JSON.
        kind: Media type of the document.
        signers: Keys that sign it.
    """
    payload = msgspec.json.encode(document)
    message = _authenticated(kind, payload)
    signatures = tuple(
        _Signature(key_id(key.public_key()), base64.b64encode(key.sign(message)).decode()) for key in signers
    )
    envelope = _Envelope(base64.b64encode(payload).decode(), kind, signatures)
    return msgspec.json.format(msgspec.json.encode(envelope), indent=1) + b"\n"


def add_signature(data: bytes, key: Ed25519PrivateKey, where: str) -> bytes:
    """The envelope with one more signature, of whatever kind its document is; look at what you sign.

    Raises:
        SignatureError: It is no envelope.
    """
    envelope, payload = _decode(data, where)
    name = key_id(key.public_key())
    signature = key.sign(_authenticated(envelope.payloadType, payload))
    others = tuple(other for other in envelope.signatures if other.keyid != name)
    signatures = (*others, _Signature(name, base64.b64encode(signature).decode()))
    signed = msgspec.structs.replace(envelope, signatures=signatures)
    return msgspec.json.format(msgspec.json.encode(signed), indent=1) + b"\n"


def peek(data: bytes, kind: str, document: type[Document], where: str) -> Document:
    """The document in an envelope, NOT verified: for what is needed to know whose signatures to ask for.

    Raises:
        SignatureError: It is no envelope of that kind, or larger than any should be.
    """
    return _parse(data, kind, document, where)[0]


def open_envelope(
    data: bytes,
    kind: str,
    document: type[Document],
    required: Sequence[tuple[Sequence[Ed25519PublicKey], int]],
    where: str,
) -> Document:
    """The document in an envelope, verified.

    Args:
        data: The envelope.
        kind: Media type that it must have.
        document: Struct of the document.
        required: Pairs of keys and how many of them must have signed; each pair must be met.
        where: Name of the file, for errors.

    Raises:
        SignatureError: It is no envelope of that kind, or too few of the required keys have signed it.
    """
    parsed, envelope, payload = _parse(data, kind, document, where)
    message = _authenticated(kind, payload)
    for keys, threshold in required:
        signed = {key_id(key) for key in keys if _signed_by(key, envelope, message)}
        if len(signed) < threshold:
            raise SignatureError(
                f"{where} is signed by {len(signed)} of the {threshold} keys that it needs "
                f"(any of {', '.join(key_id(key) for key in keys)}); let their owners sign it"
            )
    return parsed


def _signed_by(key: Ed25519PublicKey, envelope: _Envelope, message: bytes) -> bool:
    for signature in envelope.signatures:
        if signature.keyid != key_id(key):
            continue
        try:
            key.verify(base64.b64decode(signature.sig, validate=True), message)
        except (InvalidSignature, ValueError):  # ValueError: no base64
            continue
        return True
    return False


def _parse(data: bytes, kind: str, document: type[Document], where: str) -> tuple[Document, _Envelope, bytes]:
    envelope, payload = _decode(data, where)
    if envelope.payloadType != kind:
        raise SignatureError(f"{where} is a signed document of another kind ({envelope.payloadType}), not {kind}")
    try:
        return msgspec.json.decode(payload, type=document), envelope, payload
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SignatureError(f"{where} is not a valid document ({error}); update armlet") from error


def _decode(data: bytes, where: str) -> tuple[_Envelope, bytes]:
    if len(data) > MAX_BYTES:
        raise SignatureError(f"{where} has {len(data)} bytes, more than the {MAX_BYTES} of any signed document")
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        return envelope, base64.b64decode(envelope.payload, validate=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise SignatureError(f"{where} is not a signed document ({error}); copy it again from its source") from error
