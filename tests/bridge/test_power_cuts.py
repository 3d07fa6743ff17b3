"""A sample of the power cuts of :mod:`tests.bridge.power_cuts`: at calls that change what lies on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from armlet_runtime.bundle import keys
from armlet_runtime.bundle.container import open_bundle
from armlet_runtime.install.agent import HOME, Agent
from armlet_runtime.install.agent_protocol import UpdateResult

from .conftest import small_bundle
from .power_cuts import cut_everywhere, offer, scenarios, started_with, void

CHANGES = ("rename", "symlink", "unlink", "unlinkat", "mkdir", "rmdir", "fsync", "write")
EVERY = {"parts arrive": 9, "first deploy": 14, "next deploy": 7, "going back": 3}


def test_power_cuts(signing_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    monkeypatch.setenv("ARMLET_HOME", str(tmp_path))
    public = keys.load_public(signing_key.with_name(signing_key.name + ".pub"))
    old, new = (small_bundle(tmp_path, signing_key, seed) for seed in (1, 2))
    try:
        found = scenarios(tmp_path / "boards", old, new, lambda: void(keys.trust(public)))
        for name, (board, prepare, allowed) in found.items():
            *_, cuts = cut_everywhere(board, prepare, allowed, EVERY[name], CHANGES)
            assert not cuts.wrong and cuts.cut >= 2, (name, cuts)
            if name == "next deploy":
                assert cuts.started["old"] and cuts.started["new"], "the cuts lie on both sides of the switch"
    except RuntimeError as error:
        if "strace could not attach" in str(error):
            pytest.skip(f"strace may not trace here ({error})")
        raise


def test_a_board_goes_on_after_a_power_cut(signing_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next update needs nobody's help either, and what had arrived is not sent again."""
    from .power_cuts import run_traced

    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    public = keys.load_public(signing_key.with_name(signing_key.name + ".pub"))
    bundle, prefix = small_bundle(tmp_path, signing_key, 1), tmp_path / "board"
    monkeypatch.setenv("ARMLET_HOME", str(prefix / HOME))
    keys.trust(public)
    offer(prefix, bundle)
    agent = Agent(prefix)
    ended = run_traced(lambda: agent.run_installer(None), ["-o", "/dev/null", "--inject=symlink:signal=KILL:when=1"])
    assert ended == -9 and started_with(prefix / "slot") == ""
    assert agent.hello()["update"].result is UpdateResult.UPDATE_FAILED
    assert "the installer was cut off" in agent.record.read().message
    front = (prefix / "incoming" / "front").read_bytes()
    assert [part for part in agent.offer(front, None) if part.have < part.size] == []
    agent.run_installer(None)
    assert agent.record.read().result is UpdateResult.SUCCESS
    assert started_with(prefix / "slot") == open_bundle(bundle, None).digest
    assert [path.name for path in (prefix / "slot" / "a").iterdir()] == ["model.armlet"]
