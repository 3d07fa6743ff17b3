"""The arguments that commands with Bluetooth wearables share."""

from __future__ import annotations

import argparse
import math


def seconds(text: str) -> float:
    """A time on the command line: finite and not negative."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return value


def add_bluetooth_option(parser: argparse.ArgumentParser) -> None:
    """Declare ``--bluetooth``."""
    parser.add_argument(
        "--bluetooth",
        default="system",
        metavar="NAME",
        help="'system' (default), system:hci1, or bumble:TRANSPORT such as bumble:usb:0 or "
        "bumble:tcp-client:127.0.0.1:9000; several adapters are joined by '+'",
    )


def add_wearables_option(parser: argparse.ArgumentParser) -> None:
    """Declare ``--wearables``."""
    parser.add_argument(
        "--wearables",
        metavar="NAME,NAME",
        help="advertised names or addresses of the wearables to use, and no others (default: all that are known)",
    )


def add_bluetooth_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--bluetooth``, ``--wearables`` and ``--duration``."""
    add_bluetooth_option(parser)
    add_wearables_option(parser)
    parser.add_argument("--duration", type=seconds, metavar="S", help="end after S seconds (default: at Ctrl-C)")


def wearable_names(args: argparse.Namespace) -> tuple[str, ...]:
    """The names and addresses that ``--wearables`` gives."""
    return tuple(name.strip() for name in (args.wearables or "").split(",") if name.strip())
