"""Ed25519 keys in files.

Keys are PEM files (PKCS#8 private, SubjectPublicKeyInfo public), as ``openssl genpkey -algorithm ed25519`` makes them;
a private one may be encrypted with a passphrase. What belongs to this person or board lies in the *home*:
``$ARMLET_HOME``, else ``~/.config/armlet``::

    signing.key       default signing key, private, mode 0600
    signing.key.pub   its public half
    trusted/*.pub     public keys whose bundles are taken, and
    trust.json        the set that is in force instead once keys were rotated (:mod:`armlet_runtime.bundle.trust`)

A passphrase is asked for on the terminal, or taken from the environment variable ``ARMLET_PASSPHRASE`` where nobody
sits at one.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import stat
import sys
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import KeyFileError
from ..files import write_atomic


def home() -> Path:
    """The folder of keys and settings: ``$ARMLET_HOME``, else ``~/.config/armlet``."""
    set_to = os.environ.get("ARMLET_HOME")
    return Path(set_to) if set_to else Path.home() / ".config" / "armlet"


def key_id(key: Ed25519PublicKey) -> str:
    """Short name of a key: the first 16 hex digits of the SHA-256 of its 32 raw bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


SIGNING = "signing.key"
"""File of the default signing key in the home."""

PASSPHRASE = "ARMLET_PASSPHRASE"
"""Environment variable with the passphrase of private keys, for use without a terminal."""


def ask_passphrase(path: Path, twice: bool = False) -> bytes:
    """The passphrase of a private key: from the environment, else from the person at the terminal.

    Args:
        path: The key's file, for the question.
        twice: Ask again and compare, for a new passphrase.

    Raises:
        KeyFileError: There is nobody to ask, nothing was typed, or the two differ.
    """
    if PASSPHRASE in os.environ:
        typed = os.environ[PASSPHRASE]
    elif not sys.stdin.isatty():
        raise KeyFileError(f"{path} needs a passphrase: start this on a terminal, or set {PASSPHRASE}")
    else:
        typed = getpass.getpass(f"Passphrase of {path}: ")
        if twice and getpass.getpass("The same again: ") != typed:
            raise KeyFileError("the two passphrases differ; nothing was written")
    if not typed:
        raise KeyFileError(f"the passphrase of {path} is empty; nothing was done")
    return typed.encode()


def generate(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Make a new key: the private half at ``path`` (mode 0600), the public half at ``path`` + ``.pub``.

    Args:
        path: File of the private half.
        passphrase: Encrypts the private half (PKCS#8, as OpenSSL does).

    Raises:
        KeyFileError: One of the two files exists; a key is never overwritten.
    """
    public_path = path.with_name(path.name + ".pub")
    for existing in (path, public_path):
        if existing.exists():
            raise KeyFileError(f"{existing} exists already, and a key is never overwritten; move it away first")
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    private_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    write_atomic(path, private_pem, mode=0o600)
    write_atomic(public_path, _public_pem(key.public_key()))
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"cannot read the key {path}: {error.strerror}") from error


def load_private(path: Path) -> Ed25519PrivateKey:
    """Read a private key; the person is asked for its passphrase if it is encrypted.

    Raises:
        KeyFileError: The file cannot be read, may be read by others, holds no Ed25519 private key, or the passphrase is
            wrong.
    """
    data = _read(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise KeyFileError(f"{path} is a private key that others may read; close it first: chmod 600 {path}")
    try:
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except TypeError:  # what cryptography raises for an encrypted key
            key = serialization.load_pem_private_key(data, password=ask_passphrase(path))
    except ValueError as error:
        wrong = "the passphrase is wrong" if b"ENCRYPTED" in data else "it holds no Ed25519 private key in PEM"
        raise KeyFileError(f"cannot use the key {path}: {wrong}") from error
    except UnsupportedAlgorithm as error:
        raise KeyFileError(f"{path} holds no Ed25519 private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} holds a private key of another kind; armlet signs with Ed25519")
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        KeyFileError: The file cannot be read or holds no Ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} holds no Ed25519 public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path} holds a public key of another kind; armlet signs with Ed25519")
    return key


def trust_set_path() -> Path:
    """File of this home's trust set (:mod:`armlet_runtime.bundle.trust`); with it, key files do not count."""
    return home() / "trust.json"


def trusted_files() -> list[Path]:
    """Files of the keys that this home trusts where it has no trust set."""
    return sorted((home() / "trusted").glob("*.pub"))


def trust(key: Ed25519PublicKey) -> Path:
    """Add a key to the trusted ones of this home; returns its file, ``trusted/<key id>.pub``.

    Raises:
        KeyFileError: The home has a trust set, which only a rotation changes.
    """
    if trust_set_path().exists():
        raise KeyFileError(
            f"a trust set is in force here, so the key {key_id(key)} is not trusted by its file alone: 'armlet key "
            f"rotate --add FILE.pub'"
        )
    folder = home() / "trusted"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key_id(key)}.pub"
    write_atomic(path, _public_pem(key))
    return path


def default_signing_key() -> tuple[Ed25519PrivateKey, Path | None]:
    """The signing key of this home; made, and its public half trusted, on first use.

    Where the home has a trust set, that alone decides whether the key is trusted.

    Returns:
        The key, and its file if it was made just now (tell the user), else None.

    Raises:
        KeyFileError: The file is there but holds no such key, or its passphrase is wrong.
    """
    path = home() / SIGNING
    made = not path.exists()
    key = generate(path) if made else load_private(path)
    if (
        not trust_set_path().exists()
    ):  # every time: after a kill right behind the making of the key, the next start trusts it
        trust(key.public_key())
    return key, path if made else None
