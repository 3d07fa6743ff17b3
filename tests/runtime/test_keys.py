"""Keys: files, modes, refusals, trust."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from armlet_runtime.bundle import keys
from armlet_runtime.bundle.trust import trusted_keys
from armlet_runtime.errors import KeyFileError


def test_a_key_pair_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "signing.key"
    key = keys.generate(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.load_private(path).private_bytes_raw() == key.private_bytes_raw()
    public = keys.load_public(path.with_name("signing.key.pub"))
    assert public.public_bytes_raw() == key.public_key().public_bytes_raw()
    assert len(keys.key_id(public)) == 16
    assert sorted(p.name for p in path.parent.iterdir()) == ["signing.key", "signing.key.pub"]


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    keys.generate(path)
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        keys.generate(path)
    path.unlink()
    with pytest.raises(KeyFileError, match=r"signing\.key\.pub exists already"):
        keys.generate(path)
    assert not path.exists() and before


def test_keys_made_by_openssl_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "o.key"
    made = subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(path)], capture_output=True)
    if made.returncode != 0:
        pytest.skip("the system's openssl makes no Ed25519 keys")
    assert len(keys.load_private(path).private_bytes_raw()) == 32


def test_what_is_no_key_is_refused_with_its_file(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pub"
    with pytest.raises(KeyFileError, match=r"cannot read the key .*nothing\.pub: No such file"):
        keys.load_public(nothing)
    text = tmp_path / "text.pub"
    text.write_text("hello")
    with pytest.raises(KeyFileError, match=r"text\.pub holds no Ed25519 public key"):
        keys.load_public(text)
    with pytest.raises(KeyFileError, match=r"others may read.*chmod 600 .*text\.pub"):
        keys.load_private(text)
    text.chmod(0o600)
    with pytest.raises(KeyFileError, match=r"text\.pub: it holds no Ed25519 private key"):
        keys.load_private(text)
    other = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "ec.key").touch(0o600)
    (tmp_path / "ec.key").write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(KeyFileError, match="private key of another kind"):
        keys.load_private(tmp_path / "ec.key")
    (tmp_path / "ec.pub").write_bytes(
        other.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(KeyFileError, match="public key of another kind"):
        keys.load_public(tmp_path / "ec.pub")


def test_the_default_key_is_made_once_and_trusted(armlet_home: Path) -> None:
    assert trusted_keys().keys == ()
    first, made = keys.default_signing_key()
    assert made == armlet_home / "signing.key"
    again, made_again = keys.default_signing_key()
    assert made_again is None
    assert again.private_bytes_raw() == first.private_bytes_raw()
    assert [keys.key_id(key) for key in trusted_keys().keys] == [keys.key_id(first.public_key())]


def test_named_keys_replace_the_trusted_ones(armlet_home: Path, tmp_path: Path) -> None:
    keys.default_signing_key()
    other = keys.generate(tmp_path / "other.key")
    named = trusted_keys([tmp_path / "other.key.pub"])
    assert [keys.key_id(key) for key in named.keys] == [keys.key_id(other.public_key())]
