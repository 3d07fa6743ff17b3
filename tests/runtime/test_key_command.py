"""``armlet key``: from a first key to two keys that must both sign, and the way back to an older bundle."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def armlet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("ARMLET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")

    def armlet(*arguments: object, ok: bool = True) -> str:
        command = [sys.executable, "-m", "armlet_runtime", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, check=False, stdin=subprocess.DEVNULL
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout if ok else done.stderr

    return armlet


def test_two_owners_and_a_rotation(armlet: Any, tmp_path: Path, small_bundle: Any) -> None:
    home = tmp_path / "home"
    assert "this home trusts it" in armlet("key", "new")
    assert "any 1 of" in armlet("key", "show")
    armlet("key", "new", "second.key")
    assert "not in force yet" in armlet("key", "rotate", "t1.json", "--add", "second.key.pub", "--threshold", 2)
    assert "1 of the 2 keys" in armlet("key", "trust", "t1.json", ok=False)
    armlet("key", "sign", "t1.json", "--with", "second.key")
    assert "trust set 1: any 2 of" in armlet("key", "trust", "t1.json")
    bundle = tmp_path / "b.armlet"
    shutil.copy(small_bundle.path, bundle)
    assert "must sign it" in armlet("verify", bundle, ok=False)
    armlet("key", "sign", bundle)
    assert "must sign it" in armlet("verify", bundle, ok=False)
    assert "signed by 3 keys" in armlet("key", "sign", bundle, "--with", "second.key")
    assert "whole, and signed by trusted keys" in armlet("verify", bundle)
    assert "not trusted by its file alone" in armlet("key", "trust", "second.key.pub", ok=False)
    assert "no trusted key is called abc" in armlet("key", "rotate", "t2.json", "--remove", "abc", ok=False)
    assert (home / "trust.json").exists()
    (home / "signing.key").unlink()
    (home / "signing.key.pub").unlink()
    assert "not trusted here: 'armlet key rotate OUT.json --add" in armlet("key", "new")


def test_a_passphrase_is_asked_for(armlet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "needs a passphrase: start this on a terminal" in armlet("key", "new", "--passphrase", ok=False)
    assert not (tmp_path / "home" / "signing.key").exists()
    monkeypatch.setenv("ARMLET_PASSPHRASE", "correct horse")
    armlet("key", "new", "--passphrase")
    path = tmp_path / "home" / "signing.key"
    assert b"ENCRYPTED" in path.read_bytes()
    assert "private key" in armlet("key", "show", path)
    monkeypatch.setenv("ARMLET_PASSPHRASE", "wrong")
    assert "the passphrase is wrong" in armlet("key", "show", path, ok=False)
