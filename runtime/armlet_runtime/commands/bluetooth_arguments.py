"""The arguments that every command with Bluetooth wearables has."""

from __future__ import annotations

import argparse


def add_bluetooth_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--bluetooth``, ``--wearables`` and ``--duration``."""
    parser.add_argument(
        "--bluetooth",
        default="system",
        metavar="NAME",
        help="'system' (default), or bumble:TRANSPORT such as bumble:usb:0 or bumble:tcp-client:127.0.0.1:9000",
    )
    parser.add_argument(
        "--wearables",
        metavar="NAME,NAME",
        help="advertised names of the wearables to use (default: all that are known)",
    )
    parser.add_argument("--duration", type=float, metavar="S", help="end after S seconds (default: at Ctrl-C)")


def wearable_names(args: argparse.Namespace) -> tuple[str, ...]:
    """The names that ``--wearables`` gives."""
    return tuple(name.strip() for name in (args.wearables or "").split(",") if name.strip())
