"""Preparing a board over SSH: its environment, whom it trusts, what it is, and a unit that keeps the runtime going.

And undoing it (:func:`remove`).

Nothing needs root. Under the prefix (:data:`armlet_bridge.boards.ssh.PREFIX`) each environment gets a folder named
by its contents, ``venv`` is a link to the one in use, and the link is moved only when the new one can import the
runtime; so a setup that is cut off leaves the board as it was and may be repeated.
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
"""A constant program for the board's own Python: one JSON line, then the archive, on its standard input."""

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
"""Prints ``yes`` if the user's units run without anybody logged in. A restart, because the environment may be new."""

RESTART_UNIT = f"""
if [ -e "$HOME/.config/systemd/user/{UNIT}" ]; then systemctl --user restart --no-block {UNIT}; fi
"""
"""For a unit of an earlier setup: the environment may be new."""

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
"""Prints what there was."""


ROOM_BYTES = 32 << 20
"""Left free besides the environment: for two bundles, and a board that can still log."""


class Setup(msgspec.Struct, frozen=True):
    """What a setup found and did.

    Attributes:
        board: The target.
        probe: What the board is.
        environment: Digest of its environment.
        bytes_unpacked: What that takes on the board's disk.
        bytes_sent: Bytes of it that were sent; 0 if the board had it.
        trusted: Short names of the keys that it trusts.
        unit: Whether the systemd unit was started, or why there is none.
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
    """Prepare a board; doing it again brings it up to date.

    Args:
        target: The board.
        trust: Whose bundles it is to take, if it trusts nobody yet.
        description: What it is, for bundles that are made for some boards only.
        extras: Engines besides LiteRT.
        host_key: Fingerprint of a new host key that may be believed.
        service: Start a systemd user unit, where the board has systemd for its users and there are ``wearables``.
        wearables: Advertised names or addresses of those that the unit is to connect.
        say: Called with one sentence a step.

    Raises:
        LinkError: The board cannot be reached, or was lost; it is as it was then.
        DeployError: The board cannot run armlet, or a step failed; it is as it was then.
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
        # The interpreter's path is the board's own word; it is quoted, and what it runs are constants.
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
    """Have a board trust its owner's keys, if it trusts nobody yet; names of all that it trusts.

    Raises:
        DeployError: It trusts others since an earlier setup, and none of these.
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
    """For a person: whether int8 layers take a fraction of the instructions here (Armv8.2's SDOT, ``asimddp``)."""
    if probe.architecture != "aarch64":
        return ""
    return " with int8 dot products" if "asimddp" in probe.features else " without int8 dot products"


def _check_room(target: Target, probe: Probe, environment: Environment) -> None:
    needs = environment.size + ROOM_BYTES
    if probe.free_bytes < needs:
        raise DeployError(
            f"{target} has {probe.free_bytes / 1e6:.0f} MB of disk free where people's homes are and needs "
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
    """Take everything of armlet's off a board: unit, bundles, environment, and whom it trusts.

    Returns:
        What there was: ``unit``, ``folder``.

    Raises:
        LinkError: The board cannot be reached.
        DeployError: It could not do it.
    """
    async with login(target, host_key) as connection:
        return tuple((await _run(connection, f"sh -c {shlex.quote(REMOVE)}", b"")).split())


async def _run(connection: Any, command: str, given: bytes) -> str:
    """Run a command on the board with something on its standard input; what it printed."""
    done = await connection.run(command, input=given, encoding=None)
    if done.exit_status is None:
        raise LinkError("the link to the board was lost in the middle; it is as it was: set it up again")
    if done.exit_status != 0:
        complaints = bytes(done.stderr).decode(errors="replace").strip().splitlines()
        raise DeployError(
            f"the board could not do its part ({complaints[-1] if complaints else f'status {done.exit_status}'})"
        )
    return bytes(done.stdout).decode(errors="replace")
