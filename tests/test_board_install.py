"""The board install: the wheel without any extra, in an empty environment of every Python at hand, runs a bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

from armlet_runtime.engines import executorch_shim

pytestmark = [
    pytest.mark.full("downloads for every Python"),
    pytest.mark.long(limit_s=300, reason="installs from a package index"),
]

ROOT = Path(__file__).parent.parent
BOARD_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Nothing of these may reach a board by the plain install.
EXPORT_SIDE = {"torch", "executorch", "torchao", "litert-torch", "onnx", "scikit-learn", "matplotlib", "bumble"}


def find_python(version: str) -> str | None:
    """An interpreter of that version: on the path, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
    for candidate in filter(None, candidates):
        asked = subprocess.run(
            [candidate, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
        )
        if asked.stdout.strip() == version:
            return candidate
    return None


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT], check=True, capture_output=True)
    return next(out.glob("armlet-*.whl"))


@pytest.mark.parametrize("version", BOARD_PYTHONS)
def test_bundle_runs_on_a_board_install(
    version: str, wheel: Path, demo_dir: Path, demo_home: Path, tmp_path: Path
) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} with venv on this machine")
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    board = tmp_path / "venv" / "bin"
    subprocess.run([board / "python", "-m", "pip", "install", "--quiet", wheel], check=True, capture_output=True)

    listed = json.loads(subprocess.check_output([board / "python", "-m", "pip", "list", "--format", "json"]))
    assert not EXPORT_SIDE & {package["name"].lower() for package in listed}

    def armlet(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([board / "armlet", *arguments], capture_output=True, text=True, cwd=tmp_path, env=env)

    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    bundle, (key,) = demo_dir / "model.armlet", (demo_home / "trusted").glob("*.pub")

    verified = armlet("verify", bundle, "--key", key, "--golden", "--engine", "litert")
    assert verified.returncode == 0, verified.stderr

    # ExecuTorch without torch, on every Python: the libraries of its wheel, and armlet's part compiled for them.
    executorch = f"executorch=={executorch_shim.WHEEL_VERSION}"
    pip_install = [str(board / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip_install, executorch], check=True, capture_output=True)
    verified = armlet("verify", bundle, "--key", key, "--golden", "--engine", "executorch")
    assert verified.returncode == 0, verified.stderr
    shown = (
        "import sys; from armlet_runtime.engines import get_engine as g; print(g('executorch').detail, *sys.modules)"
    )
    detail = subprocess.run([board / "python", "-c", shown], capture_output=True, text=True, env=env, check=True).stdout
    assert detail.startswith("XNNPACK, 1 thread, armlet's shim")
    assert not {"torch", "executorch"} & set(detail.split())

    replayed = armlet("replay", demo_dir / "live.mcap", bundle, "--key", key, "--decisions", "replayed.jsonl")
    assert replayed.returncode == 0, replayed.stderr
    assert (tmp_path / "replayed.jsonl").read_bytes() == (demo_dir / "replay.jsonl").read_bytes()

    # A command whose extra is not installed says which one to install.
    refused = armlet("pretrain", "hapt", "--out", "run")
    assert refused.returncode == 2
    assert "pip install 'armlet[train]'" in refused.stderr


def lowest(dependencies: list[str]) -> list[str]:
    """Each dependency at the lower end of its range."""
    pins = []
    for requirement in map(Requirement, dependencies):
        (version,) = [each.version for each in requirement.specifier if each.operator == ">="]
        pins.append(f"{requirement.name}=={version}")
    return pins


def test_bundle_runs_with_the_oldest_dependencies(wheel: Path, demo_dir: Path, demo_home: Path, tmp_path: Path) -> None:
    python = find_python("3.11")
    if python is None:
        pytest.skip("no Python 3.11 with venv on this machine; its wheels reach back to the lower ends of the ranges")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (tmp_path / "constraints.txt").write_text("\n".join(lowest(project["dependencies"])))
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    board = tmp_path / "venv" / "bin"
    install: list[str | Path] = [
        board / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        tmp_path / "constraints.txt",
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True)

    (key,) = (demo_home / "trusted").glob("*.pub")
    words: list[str | Path] = [
        "replay",
        demo_dir / "live.mcap",
        demo_dir / "model.armlet",
        "--key",
        key,
        "--decisions",
        "old.jsonl",
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    replayed = subprocess.run([board / "armlet", *words], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert replayed.returncode == 0, replayed.stderr
    assert (tmp_path / "old.jsonl").read_bytes() == (demo_dir / "replay.jsonl").read_bytes()
