"""Setup of a board over SSH (environment, trusted keys, description, systemd unit), and its removal.

Nothing needs root. Under the prefix (:data:`armlet_bridge.boards.ssh.PREFIX`) each environment has a folder named by
its digest, and ``venv`` is a link to the environment in use. The link is moved only after the new environment has
imported the runtime, so an interrupted setup leaves the old environment in use and may be repeated.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from armlet_runtime.bundle import Trust, key_id
from armlet_runtime.errors import DeployError
from armlet_runtime.install import UNIT, BoardDescription, unit_text

from .agent_client import AgentClient, LinkError
from .ssh import PREFIX, connect, login
from .target import Target
from .wheels import PROBE, Environment, Probe, gather, read_probe

INSTALL = f"""
import json, os, shutil, subprocess, sys, tarfile, venv
line = json.loads(sys.stdin.buffer.readline())
prefix = os.path.expanduser("~/{PREFIX}")
place = os.path.join(prefix, "env-" + line["digest"][:16])
link = os.path.join(prefix, "venv")
if not os.path.exists(os.path.join(place, "complete")):
    os.makedirs(prefix, exist_ok=True)
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(place)
    version = "python%d.%d" % sys.version_info[:2]
    site = os.path.join(place, "lib", version, "site-packages")
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as archive:
        for member in archive:
            if not (member.isreg() or member.isdir()) or member.name.startswith("/") or ".." in member.name.split("/"):
                sys.exit("the archive holds " + member.name)
            archive.extract(member, site)
    subprocess.run([os.path.join(place, "bin", "python"), "-c", "import armlet_runtime.model.bundle_model"], check=True)
    os.sync()
    open(os.path.join(place, "complete"), "w").close()
new = link + ".new"
if os.path.lexists(new):
    os.unlink(new)
os.symlink(os.path.basename(place), new)
os.replace(new, link)
os.sync()
for name in os.listdir(prefix):
    if name.startswith("env-") and name != os.path.basename(place):
        shutil.rmtree(os.path.join(prefix, name))
"""
"""A constant program for the board's own Python; it reads a line of JSON and then the archive from standard input."""

HAS = f"""
import os, sys
place = os.path.expanduser("~/{PREFIX}/env-" + sys.stdin.readline().strip()[:16])
print("yes" if os.path.exists(os.path.join(place, "complete")) else "no")
"""

WRITE_UNIT = f"""
set -eu
mkdir -p "$HOME/.config/systemd/user"
cat > "$HOME/.config/systemd/user/{UNIT}"
systemctl --user daemon-reload
systemctl --user enable --quiet {UNIT}
systemctl --user restart --no-block {UNIT}
loginctl enable-linger 2>/dev/null || true
loginctl show-user --property=Linger --value "$(id -un)" 2>/dev/null || true
"""
"""Prints ``yes`` if the user's units also run while nobody is logged in. It restarts the unit, because the environment
may be new."""

RESTART_UNIT = f"""
if [ -e "$HOME/.config/systemd/user/{UNIT}" ]; then systemctl --user restart --no-block {UNIT}; fi
"""
"""Restarts the unit of an earlier setup, because the environment may be new."""

REMOVE = f"""
set -eu
unit="$HOME/.config/systemd/user/{UNIT}"
if [ -e "$unit" ]; then
  systemctl --user disable --now {UNIT} 2>/dev/null || true
  rm -f "$unit"
  systemctl --user daemon-reload 2>/dev/null || true
  echo unit
fi
if [ -e "$HOME/{PREFIX}" ]; then
  rm -rf "$HOME/{PREFIX}"
  echo folder
fi
"""
"""Prints what it removed."""

ROOM_BYTES = 32 << 20
"""Space to leave free besides the environment: for two bundles and for logs."""


class Setup(msgspec.Struct, frozen=True):
    """Result of a setup.

    Attributes:
        board: The target.
        probe: The board's description of itself.
        environment: Digest of its environment.
        bytes_unpacked: Space of the environment on the board's disk.
        bytes_sent: Size of the archive that was sent; 0 if the board had the environment.
        trusted: Names of the keys that the board trusts.
        unit: A sentence on when the systemd unit runs, or on why no unit was started.
    """

    board: str
    probe: Probe
    environment: str
    bytes_unpacked: int
    bytes_sent: int
    trusted: tuple[str, ...]
    unit: str


async def setup(
    target: Target,
    trust: Trust,
    description: BoardDescription | None = None,
    extras: Sequence[str] = (),
    host_key: str | None = None,
    service: bool = True,
    wearables: Sequence[str] = (),
    say: Callable[[str], None] = lambda sentence: None,
) -> Setup:
    """Set a board up; a repetition brings the board up to date.

    Args:
        target: The board.
        trust: Keys whose bundles the board is to accept, if it trusts nobody yet.
        description: Class and modalities of the board, for bundles that are made for some boards only.
        extras: Engines besides LiteRT.
        host_key: Fingerprint of a new host key to accept.
        service: Start a systemd user unit if ``wearables`` are given and the board has systemd for its users.
        wearables: Advertised names or addresses of the wearables that the unit is to connect.
        say: Called with a sentence at each step.

    Raises:
        LinkError: The board cannot be reached, or the link was lost; the board keeps its environment.
        DeployError: The board cannot run armlet, or a step failed; the board keeps its environment.
    """
    async with login(target, host_key) as connection:
        probe = read_probe(await _run(connection, "sh -s", PROBE.encode()))
        say(
            f"{probe.model or 'no device tree'}: {probe.architecture}{_dot_products(probe)}, "
            f"{probe.memory_bytes / 1e6:.0f} MB of memory, {probe.free_bytes / 1e6:.0f} MB of disk free, "
            f"Python {probe.python_version}, glibc {probe.glibc}"
        )
        environment = gather(probe, tuple(extras))
        say(
            f"environment {environment.digest[:16]}: {len(environment.archive) / 1e6:.1f} MB, "
            f"{environment.size / 1e6:.0f} MB unpacked; every wheel's hash is checked"
        )
        # The board names its interpreter's path, which is therefore quoted; the programs that it runs are constants.
        python = shlex.quote(probe.python)
        had = await _run(connection, f"{python} -c {shlex.quote(HAS)}", environment.digest.encode() + b"\n")
        sent = b"" if had.strip() == "yes" else environment.archive
        if sent:
            _check_room(target, probe, environment)
        first = msgspec.json.encode({"digest": environment.digest}) + b"\n"
        await _run(connection, f"{python} -c {shlex.quote(INSTALL)}", first + sent)
        unit = await _start_unit(connection, probe, wearables) if service else "not asked for"
    async with connect(target) as board:
        names = await trust_owner(board, str(target), trust)
        if description is not None:
            await board.describe(description)
    return Setup(str(target), probe, environment.digest, environment.size, len(sent), tuple(names), unit)


async def trust_owner(board: AgentClient, name: str, trust: Trust) -> list[str]:
    """Have a board trust its owner's keys if it trusts nobody yet; return the names of all keys that it trusts.

    Raises:
        DeployError: The board trusts other keys since an earlier setup, and none of these.
    """
    names = await board.trust(trust)
    if not {key_id(key) for key in trust.keys} & set(names):
        raise DeployError(
            f"{name} trusts {', '.join(names)} since an earlier setup and none of the keys here, so it would take none "
            f"of your bundles: rotate its keys with those ('armlet key rotate'), or 'armlet board remove {name}' and "
            f"set it up anew"
        )
    return names


def _dot_products(probe: Probe) -> str:
    """Say whether the board has the instructions that speed up int8 layers (SDOT of Armv8.2, ``asimddp``)."""
    if probe.architecture != "aarch64":
        return ""
    return " with int8 dot products" if "asimddp" in probe.features else " without int8 dot products"


def _check_room(target: Target, probe: Probe, environment: Environment) -> None:
    needs = environment.size + ROOM_BYTES
    if probe.free_bytes < needs:
        raise DeployError(
            f"{target} has {probe.free_bytes / 1e6:.0f} MB of disk free for its users' homes and needs "
            f"{needs / 1e6:.0f} MB for its environment; nothing was written: make room, or use a larger card"
        )


async def _start_unit(connection: Any, probe: Probe, wearables: Sequence[str]) -> str:
    if probe.units in ("", "offline", "unknown"):
        return "none: this board runs no systemd for its users; start 'armlet run' by what it has instead"
    if not wearables:
        await _run(connection, f"sh -c {shlex.quote(RESTART_UNIT)}", b"")
        return "no new unit: with --wearables NAME,NAME a unit connects these"
    names = ",".join(wearables).replace("%", "%%")
    command = (f"%h/{PREFIX}/venv/bin/python", "-m", "armlet_runtime", "run", f"file:%h/{PREFIX}/slot")
    unit = unit_text((*command, "--wearables", names), {"ARMLET_HOME": f"%h/{PREFIX}/home"}, "%h")
    lingers = await _run(connection, f"sh -c {shlex.quote(WRITE_UNIT)}", unit.encode())
    if lingers.strip() == "yes":
        return f"{UNIT} runs, and starts with the board"
    return f"{UNIT} runs while you are logged in; on the board, 'sudo loginctl enable-linger $USER' starts it with it"


async def remove(target: Target, host_key: str | None = None) -> tuple[str, ...]:
    """Remove armlet from a board: unit, bundles, environment and trusted keys.

    Returns:
        The removed parts: ``unit``, ``folder``; empty if armlet was not on the board.

    Raises:
        LinkError: The board cannot be reached.
        DeployError: The removal failed.
    """
    async with login(target, host_key) as connection:
        return tuple((await _run(connection, f"sh -c {shlex.quote(REMOVE)}", b"")).split())


async def _run(connection: Any, command: str, stdin: bytes) -> str:
    """Run a command on the board with these bytes on its standard input; return what it prints."""
    done = await connection.run(command, input=stdin, encoding=None)
    if done.exit_status is None:
        raise LinkError("the link to the board was lost; the board keeps its environment: repeat 'armlet board setup'")
    if done.exit_status != 0:
        complaints = bytes(done.stderr).decode(errors="replace").strip().splitlines()
        raise DeployError(
            f"a command on the board failed ({complaints[-1] if complaints else f'status {done.exit_status}'})"
        )
    return bytes(done.stdout).decode(errors="replace")
