"""Deploying into a slot: what is refused, what happens at each kill, and that the old bundle always stays in reach."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from armlet_runtime.bundle import keys
from armlet_runtime.bundle.container import open_bundle
from armlet_runtime.bundle.trust import trusted_keys
from armlet_runtime.errors import (
    BundleError,
    CorruptBundleError,
    DeployError,
    NewerSchemaError,
    TruncatedBundleError,
    UntrustedKeyError,
    UsageError,
)
from armlet_runtime.install.slot_deploy import HealthError, deploy_to_slot
from armlet_runtime.install.slots import bundle_path, current_bundle, current_place, read_state

MakeBundle = Callable[..., Path]


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    return tmp_path / "slot"


@pytest.fixture
def public(signing_key: Path) -> list[Path]:
    return [signing_key.with_name(signing_key.name + ".pub")]


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything in a slot: files with their bytes, links with their targets."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def digest(path: Path, public: list[Path]) -> str:
    return open_bundle(path, trusted_keys(public)).digest


def test_first_deploy_makes_the_slot_and_second_takes_the_other_place(
    make_bundle: MakeBundle, slot: Path, public: list[Path]
) -> None:
    with pytest.raises(BundleError, match="no slot"):
        current_bundle(slot)
    first = deploy_to_slot(make_bundle(1), slot, public)
    assert (first.place, first.previous, first.version) == ("a", None, "0.1")
    assert first.health.passed
    assert first.health.golden.engine == "onnx"
    assert 0 < first.health.decision_s < first.health.hop_s
    held = bundle_path(f"file:{slot}")
    second = deploy_to_slot(make_bundle(2), slot, public)
    assert (second.place, second.previous) == ("b", first.digest)
    assert digest(current_bundle(slot), public) == second.digest
    assert digest(held, public) == first.digest, "a reader's file was changed under it"
    assert {p: e.digest for p, e in read_state(slot).places.items()} == {"a": first.digest, "b": second.digest}
    assert deploy_to_slot(make_bundle(3), slot, public).place == "a"
    assert set(contents(slot)) == {".lock", "a/model.armlet", "b/model.armlet", "current", "state.json"}


def spoilt(kind: str, good: Path) -> Path:
    data = bytearray(good.read_bytes())
    if kind == "corrupt":
        data[-2000] ^= 1
    elif kind == "truncated":
        del data[-1:]
    elif kind == "newer":
        data[7] = 3  # container version
    path = good.with_name(f"{kind}.armlet")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "error"),
    [("corrupt", CorruptBundleError), ("truncated", TruncatedBundleError), ("newer", NewerSchemaError)],
)
def test_bad_bundle_leaves_the_slot_untouched(
    kind: str, error: type[BundleError], make_bundle: MakeBundle, slot: Path, public: list[Path]
) -> None:
    bad = spoilt(kind, make_bundle(2))
    with pytest.raises(error):
        deploy_to_slot(bad, slot, public)
    assert not slot.exists()
    deploy_to_slot(make_bundle(1), slot, public)
    before = contents(slot)
    with pytest.raises(error):
        deploy_to_slot(bad, slot, public)
    assert contents(slot) == before


def test_untrusted_signer_is_refused(make_bundle: MakeBundle, slot: Path, public: list[Path], tmp_path: Path) -> None:
    deploy_to_slot(make_bundle(1), slot, public)
    before = contents(slot)
    stranger = tmp_path / "stranger.key"
    keys.generate(stranger)
    with pytest.raises(UntrustedKeyError):
        deploy_to_slot(make_bundle(2, key=stranger), slot, public)
    assert contents(slot) == before


def test_failed_golden_run_keeps_the_old_bundle(make_bundle: MakeBundle, slot: Path, public: list[Path]) -> None:
    old = deploy_to_slot(make_bundle(1), slot, public)
    with pytest.raises(HealthError, match=r"golden run on onnx differs by 0\.5"):
        deploy_to_slot(make_bundle(2, golden_error=0.5), slot, public)
    assert digest(current_bundle(slot), public) == old.digest
    assert set(read_state(slot).places) == {"a"}
    assert not (slot / "b" / "model.armlet").exists()
    assert deploy_to_slot(make_bundle(3), slot, public).place == "b"


def test_a_bundle_too_slow_for_this_machine_is_refused(make_bundle: MakeBundle, slot: Path, public: list[Path]) -> None:
    old = deploy_to_slot(make_bundle(1), slot, public)
    with pytest.raises(
        HealthError, match=r"a decision takes .* ms on this machine, more than the bundle's hop of 0\.0001"
    ):
        deploy_to_slot(make_bundle(2, hop_s=1e-7), slot, public)
    assert digest(current_bundle(slot), public) == old.digest


@pytest.mark.alone("its check has three seconds")
def test_a_bundle_that_crashes_or_hangs_its_engine_is_refused(
    make_bundle: MakeBundle, slot: Path, public: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check's process is ended from outside as by a crashing engine, and stopped as by one that hangs."""
    old = deploy_to_slot(make_bundle(1), slot, public)
    for number, words in (
        (signal.SIGSEGV, r"crashed its process \(SIGSEGV\)"),
        (signal.SIGSTOP, "took more than 3 s"),
    ):
        monkeypatch.setattr("armlet_runtime.install.slot_deploy.HEALTH_TIMEOUT_S", 3.0)
        threading.Thread(target=_signal_child, args=("deploy_check", number)).start()
        with pytest.raises(HealthError, match=words):
            deploy_to_slot(make_bundle(2), slot, public)
        assert digest(current_bundle(slot), public) == old.digest


def _signal_child(word: str, number: signal.Signals) -> None:
    """Send a signal to this process's child with that word on its command line, as soon as there is one."""
    for _ in range(2000):
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                line = (folder / "cmdline").read_text()
            except OSError:  # it has ended meanwhile
                continue
            if parent == str(os.getpid()) and word in line:
                os.kill(int(folder.name), number)
                return
        time.sleep(0.002)


def test_concurrent_deploy_is_refused(make_bundle: MakeBundle, slot: Path, public: list[Path]) -> None:
    deploy_to_slot(make_bundle(1), slot, public)
    before = contents(slot)
    with (slot / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DeployError, match="another deploy"):
            deploy_to_slot(make_bundle(2), slot, public)
    assert contents(slot) == before


def test_no_room_keeps_the_old_bundle(make_bundle: MakeBundle, public: list[Path], tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(full)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        with pytest.raises(DeployError, match="no room"):
            deploy_to_slot(make_bundle(1), full / "slot", public)
        assert current_place(full / "slot") is None
    finally:
        subprocess.run(["umount", str(full)], check=True)


def test_other_targets_are_a_usage_error() -> None:
    from armlet_runtime.install.slot_deploy import slot_folder

    assert slot_folder("file:/var/slot") == Path("/var/slot")
    for target in ("/var/slot", "ssh://board", "file:"):
        with pytest.raises(UsageError, match="file:FOLDER"):
            slot_folder(target)


@pytest.mark.parametrize("target", ["elsewhere", "c", "../b"])
def test_strange_link_is_refused(target: str, slot: Path) -> None:
    slot.mkdir()
    (slot / "current").symlink_to(target)
    with pytest.raises(BundleError, match="not a link to one of a, b"):
        current_bundle(slot)


DEPLOYING = """
import sys
from pathlib import Path
from armlet_runtime.install.slot_deploy import deploy_to_slot
print("begins", flush=True)
deploy_to_slot(Path(sys.argv[1]), Path(sys.argv[2]), [Path(sys.argv[3])])
"""


def test_killed_from_outside_at_any_time(make_bundle: MakeBundle, slot: Path, public: list[Path]) -> None:
    bundles = [make_bundle(1), make_bundle(2)]
    known = {digest(path, public) for path in bundles}
    deploy_to_slot(bundles[0], slot, public)

    def start(bundle: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DEPLOYING, *map(str, (bundle, slot, public[0]))]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        assert process.stdout is not None and process.stdout.readline() == "begins\n"
        return process

    began, whole = time.monotonic(), start(bundles[1])
    whole.communicate()
    assert whole.returncode == 0
    deploy_s, killed, under_way = time.monotonic() - began, 0, 0
    for i in range(8):
        before, process = contents(slot), start(bundles[i % 2])
        try:
            process.communicate(timeout=deploy_s * i / 8)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            killed += 1
            under_way += contents(slot) != before
        assert digest(current_bundle(slot), public) in known
    assert killed >= 3 and under_way >= 1, "the kills met the deploy, and some of them after it had written something"


def test_command_line(make_bundle: MakeBundle, slot: Path, public: list[Path], tmp_path: Path) -> None:
    def armlet(bundle: Path | str, slot: Path = slot) -> subprocess.CompletedProcess[str]:
        said = ["--key", str(public[0]), "--json", str(tmp_path / "done.json")]
        return subprocess.run(
            [sys.executable, "-m", "armlet_runtime", "deploy", str(bundle), f"file:{slot}", *said],
            capture_output=True,
            text=True,
            check=False,
        )

    done = armlet(make_bundle(1))
    assert done.returncode == 0, done.stderr
    assert "is in use" in done.stdout
    assert json.loads((tmp_path / "done.json").read_text())["health"]["golden"]["passed"] is True
    failed = armlet(make_bundle(2, golden_error=0.5))
    assert failed.returncode == 1
    assert "the slot keeps what it had" in failed.stderr
    refused = armlet(spoilt("corrupt", make_bundle(3)))
    assert refused.returncode == 2
    assert "corrupt" in refused.stderr
    assert "Traceback" not in refused.stderr + failed.stderr
    copied = armlet(f"file:{slot}", tmp_path / "other")
    assert copied.returncode == 0, copied.stderr
    assert digest(current_bundle(tmp_path / "other"), public) == digest(current_bundle(slot), public)
