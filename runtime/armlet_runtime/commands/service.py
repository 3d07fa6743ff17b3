"""``armlet service``: the live run as a systemd unit of the user, so that it runs without anybody logged in."""

from __future__ import annotations

import argparse
from pathlib import Path

from .bluetooth_arguments import wearable_names
from .model_arguments import load_bundle

NAME = "service"
HELP = "Keep 'armlet run' going with systemd, as this user: started with the machine, restarted, watched."
EXAMPLE = """armlet service install file:board --wearables "Polar H10 12345678"
  armlet service install file:board --wearables Armlet-Acc,Armlet-Gyro --floor 0.9
  armlet service status
  armlet service remove"""
EXTRA = ""

JOURNAL_LINES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    install = actions.add_parser(
        "install",
        help="write the unit, start it, and have it started with the machine",
        description="Write a systemd unit of this user that runs 'armlet run BUNDLE OPTION ...' in this folder, start "
        "it, and have it started with the machine. It replaces an existing unit.",
    )
    install.add_argument("bundle", metavar="BUNDLE", help="bundle file, or file:SLOT for a slot's current bundle")
    install.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTION ...", help="as for 'armlet run'")
    install.set_defaults(act=_install)
    status = actions.add_parser(
        "status", help="show its state and its newest log lines; exit code 1 if it does not run"
    )
    status.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    status.set_defaults(act=_status)
    remove = actions.add_parser("remove", help="stop it and remove the unit")
    remove.set_defaults(act=_remove)


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    return int(args.act(args))


def _install(args: argparse.Namespace) -> int:
    import os
    import sys

    from ..bundle import home
    from ..errors import UsageError
    from ..install import install, unit_path
    from ..live import is_folder, mqtt_address, mqtt_login
    from . import run as live

    parser = argparse.ArgumentParser(prog="armlet service install", add_help=False)
    live.add_arguments(parser)
    words = [args.bundle, *args.options]
    options = parser.parse_args(words)
    # Arguments that cannot be used are reported here, and not in the journal every two seconds.
    if not wearable_names(options):
        raise UsageError(
            "name the wearables that the service is to connect: armlet service install BUNDLE --wearables NAME,NAME; "
            "'armlet wearables scan' lists who is in reach"
        )
    load_bundle(options)
    for name in ("record", "decisions"):
        place = getattr(options, name)
        if place is not None and not is_folder(place):
            raise UsageError(
                f"--{name} {place}: a service is started again and again, and each start needs a file of its own; "
                f"give a folder, with a slash at its end: --{name} {Path(place).with_suffix('')}/"
            )
    if options.mqtt is not None:
        mqtt_address(options.mqtt)
        mqtt_login()
    environment = {"ARMLET_HOME": str(home().absolute()), "PYTHONUNBUFFERED": "1"}
    if "PATH" in os.environ:  # ExecuTorch's shim is built with a compiler of this PATH
        environment["PATH"] = os.environ["PATH"]
    # The unit starts in this folder, so that relative paths stay valid.
    print(install([sys.executable, "-m", "armlet_runtime", "run", *words], environment, Path.cwd()))
    print(f"the unit is {unit_path()}; 'armlet service status' shows its state")
    return 0


def _status(args: argparse.Namespace) -> int:
    from ..files import write_json
    from ..install import journal, properties, state

    unit, lines = properties(), journal(JOURNAL_LINES)
    now = state()
    status = f": {unit['StatusText']}" if unit.get("StatusText") else ""
    since = f" since {unit['ActiveEnterTimestamp']}" if now == "active" else ""
    print(
        f"{now}{since}, started again {unit.get('NRestarts') or 0} times{status}"
        if now != "none"
        else "no unit is installed here"
    )
    for line in lines:
        print(f"  {line}")
    if args.json:
        write_json(args.json, {"state": now, "status": unit.get("StatusText", ""), "journal": lines})
    return 0 if now == "active" else 1


def _remove(args: argparse.Namespace) -> int:
    from ..install import UNIT, remove

    print(f"{UNIT} is stopped and removed" if remove() else "no unit is installed here")
    return 0
