"""The systemd user unit that keeps ``armlet run`` going: written, started, asked for and taken away, without root.

The unit's text is ``runtime/service/armlet.service``, for a board that is set up over SSH as for one where somebody
types.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import ServiceError
from ..files import write_atomic

UNIT = "armlet.service"
ASKING_S = 10.0
# Stopping a unit waits for its process, which ends its links first; systemd itself kills after 90 s.
CHANGING_S = 120.0


def unit_text(command: Sequence[str], environment: Mapping[str, str], folder: str) -> str:
    """The unit.

    Args:
        command: Command to start; ``%`` has systemd's meaning (``%h`` is the home).
        environment: Variables for it; the same holds for ``%``.
        folder: Where it is started; the same holds for ``%``.
    """
    # In the repository the template lies beside the package, in the wheel inside it.
    package = Path(__file__).parent.parent
    folders = [package / "service", package.parent / "service"]
    template = next(folder / UNIT for folder in folders if (folder / UNIT).is_file())
    lines = [f"Environment={quoted(f'{name}={value}')}" for name, value in environment.items()]
    filled = {"COMMAND": " ".join(map(quoted, command)), "ENVIRONMENT": "\n".join(lines), "FOLDER": folder}
    return re.sub(r"@([A-Z]+)@", lambda match: filled[match[1]], template.read_text())


def quoted(word: str) -> str:
    """One word of a command line of a unit (systemd.service(5), "Command lines"), ``%`` as it is."""
    if re.fullmatch(r"[\w@%+=:,./-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("\n", "\\n") + '"'


def unit_path() -> Path:
    """Where this user's units lie (systemd.unit(5))."""
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(config) / "systemd" / "user" / UNIT


def install(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> str:
    """Write the unit, start it, and have it started again; where there is one already, it takes its place.

    Args:
        command: Command to start; its words are passed on unchanged.
        environment: Variables for it.
        folder: Where it is started.

    Returns:
        A sentence on when it runs.

    Raises:
        ServiceError: No systemd runs for this user, or it refuses; then the unit before stays, if any.
    """
    _need_systemd()
    path = unit_path()
    before = path.read_bytes() if path.is_file() else None
    literal = [word.replace("%", "%%") for word in command]
    variables = {name: value.replace("%", "%%") for name, value in environment.items()}
    text = unit_text(literal, variables, str(folder).replace("%", "%%"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    except OSError as error:
        raise ServiceError(f"cannot write {path}: {error.strerror}") from error
    try:
        for words in (("daemon-reload",), ("enable", "--quiet", UNIT), ("restart", UNIT)):
            _change(*words)
    except ServiceError:
        if before is None:
            remove()
        else:
            write_atomic(path, before)
            _ask("systemctl", "--user", "daemon-reload")
            _ask("systemctl", "--user", "restart", "--no-block", UNIT)
        raise
    _ask("loginctl", "enable-linger")
    if _ask("loginctl", "show-user", "--property=Linger", "--value", str(os.getuid())).strip() == "yes":
        return f"{UNIT} runs, and starts with this machine"
    return f"{UNIT} runs while you are logged in; 'sudo loginctl enable-linger $USER' starts it with this machine"


def remove() -> bool:
    """Stop and remove the unit; False if no unit was installed.

    Raises:
        ServiceError: It cannot be taken away.
    """
    path = unit_path()
    if not path.is_file():
        return False
    if shutil.which("systemctl"):
        _ask("systemctl", "--user", "disable", "--quiet", "--now", UNIT, timeout_s=CHANGING_S)
    try:
        path.unlink()
    except OSError as error:
        raise ServiceError(f"cannot remove {path}: {error.strerror}") from error
    _ask("systemctl", "--user", "daemon-reload")
    return True


def state() -> str:
    """``active``, ``activating``, ``failed``, ``inactive`` as systemd names them; ``none`` if there is no such unit."""
    values = properties()
    return values["ActiveState"] if values.get("LoadState") == "loaded" else "none"


def properties() -> dict[str, str]:
    """Systemd's properties of the unit: ``LoadState``, ``ActiveState``, ``StatusText``, ``NRestarts``, ``Result``, and
    ``ActiveEnterTimestamp``; empty if there is no systemd."""
    names = "LoadState,ActiveState,StatusText,NRestarts,Result,ActiveEnterTimestamp"
    output = _ask("systemctl", "--user", "show", f"--property={names}", UNIT)
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def journal(lines: int) -> list[str]:
    """The last lines that the unit wrote, oldest first; empty without a journal.

    The journal of the system is asked for this user's unit, because boards that keep their journal in memory keep no
    journal of a user's own.
    """
    options = ("--quiet", "--no-pager", "--output=short-iso", f"--lines={lines}")
    return _ask("journalctl", f"--user-unit={UNIT}", f"_UID={os.getuid()}", *options).splitlines()


def _need_systemd() -> None:
    output = _ask("systemctl", "--user", "is-system-running").strip()
    if output in ("", "offline", "unknown"):
        raise ServiceError(
            "no systemd runs for this user here: log in as the user that is to run it (su and sudo are no login), or "
            "start 'armlet run' by what this machine has instead"
        )


def _change(*words: str) -> None:
    try:
        done = subprocess.run(["systemctl", "--user", *words], capture_output=True, text=True, timeout=CHANGING_S)
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"'systemctl --user {' '.join(words)}' did not come to an end") from error
    if done.returncode:
        complaints = done.stderr.strip().splitlines()
        last = " ".join(journal(1))
        why = complaints[0].rstrip(".") if complaints else f"status {done.returncode}"
        raise ServiceError(f"'systemctl --user {' '.join(words)}' failed: {why}{f' ({last})' if last else ''}")


def _ask(*command: str, timeout_s: float = ASKING_S) -> str:
    """The output of a command; empty if it fails (no systemd for users, no right to the journal)."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False).stdout
    except subprocess.TimeoutExpired:
        return ""
