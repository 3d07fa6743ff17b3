"""``armlet inspect`` and ``armlet verify`` as a person meets them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armlet_runtime.bundle import keys
from armlet_runtime.bundle.bundle_writer import write_bundle
from armlet_runtime.bundle.manifest_file import named_members
from armlet_runtime.checks.export_proof import Draft
from armlet_runtime.modalities import subset_name, subsets


def armlet(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "armlet_runtime", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def key(small_bundle: Any) -> tuple[str, Path]:
    return "--key", small_bundle.public_key_path


def test_inspect_shows_what_is_in_it(small_bundle: Any, key: tuple[str, Path], tmp_path: Path) -> None:
    done = armlet("inspect", small_bundle.path, *key, "--json", tmp_path / "i.json")
    assert done.returncode == 0, done.stderr
    opened = small_bundle.open()
    for word in (opened.digest, *opened.signers, "rad/s at 50 Hz", "lying, sitting", "programs/acc.pte", "acc+gyro"):
        assert word in done.stdout
    written = json.loads((tmp_path / "i.json").read_text())
    assert written["digest"] == opened.digest
    assert written["sizes"] == opened.sizes
    assert written["manifest"]["labels"] == ["lying", "sitting", "standing", "walking"]
    assert len(written["certificate"]["rows"]) == 9


def test_names_of_four_sensors_are_whole_in_80_columns(small_draft: Path, tmp_path: Path) -> None:
    """rich cut them, so that rows of the same first sensors could not be told apart."""
    names = ["phone_acc", "phone_gyro", "watch_acc", "watch_gyro", "a_modality_with_a_name_of_thirty_c"]
    rows = [
        {"subset": subset_name(subset), "engine": "executorch", "macro_f1": 0.9876, "macro_f1_pytorch": 0.9877}
        | {"max_distance": 0.0123, "mean_distance": 0.001, "agreement": 0.9999, "rmse": 0.0123}
        | {"macro_f1_low": 0.97, "macro_f1_high": 0.99}
        for subset in subsets(names)
    ]
    draft = Draft(small_draft)
    members = {name: draft.read(name) for name in named_members(draft.manifest)}
    certificate = json.dumps({"data": "numbers", "people": ["nobody"], "windows": 5, "rows": rows}).encode()
    path = tmp_path / "four.armlet"
    signer = keys.generate(tmp_path / "k")
    write_bundle(path, draft.manifest, members | {draft.manifest.certificate: certificate}, [signer])
    done = armlet("inspect", path, "--key", tmp_path / "k.pub")
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index(" subset ") :].splitlines()[2:]
    table = table[: next(number for number, line in enumerate(table) if not line.strip())]
    assert max(map(len, table)) <= 80 and "\u2026" not in done.stdout
    shown: list[str] = []
    for line in table:
        if " executorch " in line:
            shown.append("")
        shown[-1] += line[1:].split(" ", 1)[0]
    assert shown == [row["subset"] for row in rows]
    assert sum(" executorch 0.9876 0.97-0.99 0.9877" in " ".join(line.split()) for line in table) == len(rows)


def test_verify_says_that_it_is_whole(small_bundle: Any, key: tuple[str, Path], tmp_path: Path) -> None:
    done = armlet("verify", small_bundle.path, *key, "--json", tmp_path / "v.json")
    assert done.returncode == 0, done.stderr
    assert "signed by trusted keys" in done.stdout and "golden" not in done.stdout
    assert json.loads((tmp_path / "v.json").read_text())["golden"] == []


def test_verify_runs_the_golden_windows_on_every_engine(
    small_bundle: Any, key: tuple[str, Path], tmp_path: Path
) -> None:
    done = armlet("verify", small_bundle.path, *key, "--golden", "--json", tmp_path / "v.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": passed;") == 3
    written = json.loads((tmp_path / "v.json").read_text())
    assert [row["engine"] for row in written["golden"]] == ["litert", "executorch", "onnx"]
    assert written["passed"] is True

    one = armlet("verify", small_bundle.path, *key, "--engine", "onnx")
    assert one.returncode == 0
    assert one.stdout.count("golden run on") == 1 and "golden run on onnx" in one.stdout


def test_a_golden_run_that_differs_exits_with_1(small_draft: Path, tmp_path: Path) -> None:
    draft = Draft(small_draft)
    members = {name: draft.read(name) for name in named_members(draft.manifest)}
    changed = np.load(io.BytesIO(members["golden/onnx.npy"])) + np.float32(0.01)
    buffer = io.BytesIO()
    np.save(buffer, changed)
    path = tmp_path / "other.armlet"
    signer = keys.generate(tmp_path / "k")
    write_bundle(path, draft.manifest, members | {"golden/onnx.npy": buffer.getvalue()}, [signer])
    done = armlet("verify", path, "--key", tmp_path / "k.pub", "--golden", "--json", tmp_path / "v.json")
    assert done.returncode == 1
    assert done.stdout.count(": passed;") == 2 and "golden run on onnx" in done.stdout and "FAILED" in done.stdout
    assert "not those that the bundle was certified with" in done.stderr
    written = json.loads((tmp_path / "v.json").read_text())
    assert written["passed"] is False
    assert [row["passed"] for row in written["golden"]] == [True, True, False]


@pytest.mark.parametrize("command", ["inspect", "verify", "bench"])
def test_what_is_wrong_is_one_sentence(command: str, small_bundle: Any, tmp_path: Path, armlet_home: Path) -> None:
    data = bytearray(small_bundle.path.read_bytes())
    (tmp_path / "short.armlet").write_bytes(data[:-500])
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.armlet").write_bytes(data)
    keys.generate(tmp_path / "other")
    known, other = small_bundle.public_key_path, tmp_path / "other.pub"
    for arguments, words in (
        ((tmp_path / "short.armlet", "--key", known), "is truncated"),
        ((tmp_path / "flipped.armlet", "--key", known), "is corrupt"),
        ((small_bundle.path, "--key", other), "not trusted here"),
        ((small_bundle.path,), "(trusted: none)"),
        ((small_bundle.path, "--key", tmp_path / "no.pub"), "cannot read the key"),
        ((tmp_path / "no.armlet", "--key", known), "cannot read the bundle"),
        ((f"file:{tmp_path / 'slot'}",), "slot"),
    ):
        done = armlet(command, *arguments)
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        said = [line for line in done.stderr.splitlines() if line.startswith("armlet: ")]
        assert len(said) == 1 and words in said[0], done.stderr
        assert "Traceback" not in done.stderr


def test_the_homes_trusted_keys_do(small_bundle: Any, armlet_home: Path) -> None:
    keys.trust(small_bundle.key.public_key())
    assert armlet("verify", small_bundle.path).returncode == 0
