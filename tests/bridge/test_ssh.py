"""SSH as OpenSSH does it: host keys, agents, key files and ~/.ssh/config, against OpenSSH's own server on loopback."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from armlet_bridge.boards.agent_client import LinkError
from armlet_bridge.boards.roster import status
from armlet_bridge.boards.ssh import PREFIX, connect, login
from armlet_bridge.boards.target import Target
from armlet_bridge.boards.wheels import Probe, path_of, requirements
from armlet_runtime.errors import DeployError
from armlet_runtime.install import PlaceState, Update, UpdateResult, UpdateState
from tests.support.sshd import Sshd

from .test_boards import sshd as sshd  # the fixture

BOARD = Target("board")


class Person:
    """A home with an ``.ssh`` folder, and a way to say hello to the board."""

    def __init__(self, home: Path, sshd: Sshd) -> None:
        self.ssh = home / ".ssh"
        self.ssh.mkdir(parents=True, mode=0o700)
        self.sshd = sshd
        self.known = self.ssh / "known_hosts"

    def config(self, *lines: str, host: str = "board") -> None:
        named = [f"Host {host}", "  HostName 127.0.0.1", f"  Port {self.sshd.port}", "  User root", *lines]
        with (self.ssh / "config").open("a") as file:
            file.write("\n".join(named) + "\n")

    def believe(self, key: Path, name: str = "") -> None:
        kind, data, *_ = key.with_name(key.name + ".pub").read_text().split()
        with self.known.open("a") as file:
            file.write(f"{name or f'[127.0.0.1]:{self.sshd.port}'} {kind} {data}\n")

    async def hello(self, host_key: str | None = None) -> str:
        async with login(BOARD, host_key) as connection:
            done = await connection.run("echo $((6 * 7))")
        return str(done.stdout).strip()


@pytest.fixture
def person(tmp_path: Path, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Person:
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Person(tmp_path / "person", sshd)


@pytest.fixture
def host_key(sshd: Sshd) -> Path:
    return sshd.key.with_name("host_key")


def new_key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True)
    return path


async def test_a_host_key_that_changed_is_refused_even_if_its_fingerprint_is_named(
    person: Person, sshd: Sshd, tmp_path: Path
) -> None:
    person.config(f"  IdentityFile {sshd.key}")
    person.believe(new_key(tmp_path / "other"))
    before = person.known.read_bytes()
    words = rf"CHANGED: the host shows {re.escape(sshd.fingerprint)}, .*ssh-keygen -R '\["
    for named in (None, sshd.fingerprint):
        with pytest.raises(LinkError, match=words):
            await person.hello(named)
    assert person.known.read_bytes() == before


async def test_hashed_names_and_aliases_in_known_hosts(person: Person, sshd: Sshd, host_key: Path) -> None:
    person.config(f"  IdentityFile {sshd.key}")
    person.believe(host_key)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(person.known)], check=True, capture_output=True)
    assert "127.0.0.1" not in person.known.read_text()
    assert await person.hello() == "42"
    person.known.unlink()
    (person.ssh / "config").unlink()
    person.config(f"  IdentityFile {sshd.key}", "  HostKeyAlias desk")
    person.believe(host_key, f"[desk]:{sshd.port}")
    assert await person.hello() == "42"


async def test_a_new_key_goes_where_the_configuration_says(person: Person, sshd: Sshd) -> None:
    person.config(f"  IdentityFile {sshd.key}", "  UserKnownHostsFile ~/.ssh/boards")
    assert await person.hello(sshd.fingerprint) == "42"
    assert not person.known.exists()
    (line,) = (person.ssh / "boards").read_text().splitlines()
    assert line.startswith(f"[127.0.0.1]:{sshd.port} ssh-ed25519 ")
    assert await person.hello() == await person.hello(sshd.fingerprint) == "42"
    assert len((person.ssh / "boards").read_text().splitlines()) == 1


async def test_a_new_key_is_not_joined_to_a_last_line_without_an_end(person: Person, sshd: Sshd) -> None:
    person.config(f"  IdentityFile {sshd.key}")
    person.known.write_text(
        "other.example ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPx5hxxXPqLz2H1JqBjTZ9nXbbjYqpCSvgBHjWzhq3Bk"
    )
    assert await person.hello(sshd.fingerprint) == "42"
    assert len(person.known.read_text().splitlines()) == 2
    assert await person.hello() == "42"


async def test_a_board_of_an_earlier_armlet_is_to_be_set_up_again(person: Person, sshd: Sshd, host_key: Path) -> None:
    """Its agent is a module of another name: the interpreter of its environment does not find ours."""
    person.config(f"  IdentityFile {sshd.key}")
    person.believe(host_key)
    old = sshd.home / PREFIX / "venv"
    (old / "bin").mkdir(parents=True)
    (old / "site" / "armlet_runtime").mkdir(parents=True)
    (old / "site" / "armlet_runtime" / "__init__.py").touch()
    python = old / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={old}/site exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(DeployError, match="another version of armlet: run 'armlet board setup ssh://board' again"):
        async with connect(BOARD) as board:
            await board.hello()


async def test_why_an_agent_ended_is_reported_without_escapes(person: Person, sshd: Sshd, host_key: Path) -> None:
    person.config(f"  IdentityFile {sshd.key}")
    person.believe(host_key)
    python = sshd.home / PREFIX / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text("#!/bin/sh\nprintf 'OSError: \\033[31mRead-only file system\\n' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(LinkError, match=r"the agent on ssh://board ended: OSError: .*Read-only file system") as refused:
        async with connect(BOARD) as board:
            await board.hello()
    assert "\033" not in str(refused.value)


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_requirements_are_those_of_the_boards_python(python: str) -> None:
    board = Probe("aarch64", "2.36", "", 0, (), 0, 0, "", "/usr/bin/python3", python)
    names = [re.split("[<>=]", line)[0] for line in requirements(board, ("onnx",))]
    assert {"msgspec", "numpy", "onnxruntime"} <= set(names) and len(names) == len(set(names)) < 20
    if python < "3.12":
        with pytest.raises(DeployError, match=f"there is no 'executorch' for Python {python} on aarch64"):
            requirements(board, ("executorch",))
    else:
        assert any(line.startswith("executorch-numpy-runtime==") for line in requirements(board, ("executorch",)))


@pytest.mark.parametrize(("unit", "well"), [("active", True), ("none", True), ("activating", False), ("failed", False)])
def test_a_board_whose_unit_is_restarted_again_and_again_is_not_well(unit: str, well: bool) -> None:
    bundle = PlaceState("d1", "toy", "0.1", ("k",), 1, "2026-01-01T00:00:00+00:00", "onnx 1")
    update = Update(UpdateState.IDLE, UpdateResult.SUCCESS, "d1", "is in use", 0.0)
    hello = {"places": {"a": bundle}, "place": "a", "update": update, "service": unit, "clock": 0.0}
    assert status("ssh://board", "", msgspec.to_builtins(hello)).well == well


def test_the_address_of_a_folder_with_a_blank_is_its_path() -> None:
    assert path_of("file:///home/pi/my%20armlet") == "/home/pi/my armlet"


async def test_no_known_hosts_is_no_trust_in_anybody(person: Person, sshd: Sshd) -> None:
    """What asyncssh alone would take for 'check nothing'."""
    person.config(f"  IdentityFile {sshd.key}", "  UserKnownHostsFile none", "  StrictHostKeyChecking no")
    with pytest.raises(LinkError, match="is not in your known_hosts"):
        await person.hello()


async def test_a_revoked_host_key_is_refused(person: Person, sshd: Sshd, host_key: Path) -> None:
    person.config(f"  IdentityFile {sshd.key}")
    person.believe(host_key)
    person.believe(host_key, f"@revoked [127.0.0.1]:{sshd.port}")
    with pytest.raises(LinkError):
        await person.hello()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    at = tmp_path / "agent"
    running = subprocess.Popen(["ssh-agent", "-D", "-a", str(at)], stdout=subprocess.DEVNULL)
    while not at.exists():
        assert running.poll() is None
    monkeypatch.setenv("SSH_AUTH_SOCK", str(at))
    yield at
    running.terminate()
    running.wait()


async def test_a_key_in_the_agent(person: Person, sshd: Sshd, host_key: Path, agent: Path) -> None:
    person.config()
    person.believe(host_key)
    with pytest.raises(LinkError, match=r"accepts none of the keys at hand .*ssh-copy-id"):
        await person.hello()
    subprocess.run(["ssh-add", "-q", str(sshd.key)], check=True)
    assert await person.hello() == "42"


async def test_a_key_file_with_a_passphrase_is_for_the_agent(person: Person, sshd: Sshd, host_key: Path) -> None:
    person.config()
    person.believe(host_key)
    locked = person.ssh / "id_ed25519"
    locked.write_bytes(sshd.key.read_bytes())
    locked.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(locked)], check=True, capture_output=True)
    with pytest.raises(LinkError, match=r"id_ed25519 has a passphrase: ssh-add it first"):
        await person.hello()


async def test_a_board_behind_another_machine(person: Person, sshd: Sshd, host_key: Path) -> None:
    identity = f"  IdentityFile {sshd.key}"
    person.config(identity, "  ProxyJump gate")
    person.config(identity, host="gate")
    person.believe(host_key)
    assert await person.hello() == "42"


async def test_a_broken_configuration_is_one_sentence(person: Person, sshd: Sshd) -> None:
    person.config("  Port many")
    with pytest.raises(LinkError, match=r"cannot use .*\.ssh/config, or a key that it names"):
        await person.hello()


def test_no_secret_is_taken_on_a_command_line() -> None:
    """Every process of a machine can read every command line."""
    import argparse

    from armlet_runtime.cli import _load_commands, _parser

    def options(parser: argparse.ArgumentParser) -> Iterator[Any]:
        for action in parser._actions:
            yield action
            if isinstance(action, argparse._SubParsersAction):
                for sub in action.choices.values():
                    yield from options(sub)

    named = [
        action
        for action in options(_parser(_load_commands([])))
        if any("pass" in name for name in action.option_strings)
    ]
    assert named, "armlet key new --passphrase"
    assert all(action.nargs == 0 for action in named), "a passphrase is asked for, not given"
