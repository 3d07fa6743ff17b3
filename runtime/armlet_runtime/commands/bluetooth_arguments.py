"""Arguments shared by the commands with Bluetooth wearables."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from ..bluetooth import Bluetooth, Nearby


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
        help="advertised names or addresses of the wearables to connect, and no others; on a terminal you are asked "
        "without it ('any': every usable wearable in reach, for demonstrations and tests)",
    )


def add_bluetooth_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--bluetooth``, ``--wearables`` and ``--duration``."""
    add_bluetooth_option(parser)
    add_wearables_option(parser)
    parser.add_argument("--duration", type=seconds, metavar="S", help="end after S seconds (default: at Ctrl-C)")


def wearable_names(args: argparse.Namespace) -> tuple[str, ...]:
    """The names and addresses that ``--wearables`` gives."""
    return tuple(name.strip() for name in (args.wearables or "").split(",") if name.strip())


async def chosen_names(
    args: argparse.Namespace, adapters: Sequence[Bluetooth], modalities: Collection[str] = (), asking: bool = True
) -> tuple[str, ...]:
    """The names for the session; without ``--wearables`` a person at the terminal chooses.

    Args:
        args: Arguments with ``--wearables``.
        adapters: Adapters that listen for wearables in reach, if no wearable was named.
        modalities: Modalities of the model; all if empty.
        asking: Whether a person at the terminal is asked.

    Raises:
        UsageError: No wearable was named or chosen.
        WearableError: There is no usable Bluetooth here.
    """
    from ..bluetooth import choose_wearables

    names = wearable_names(args)
    person = asking and sys.stdin.isatty() and sys.stdout.isatty()
    if not names and person:
        print("no wearable is named; listening for who is in reach", flush=True)
    chosen = await choose_wearables(adapters, names, modalities, ask if person else None)
    print(f"looking for {', '.join(chosen) or 'every wearable in reach'}; Ctrl-C ends it", flush=True)
    return chosen


def ask(nearby: Sequence[Nearby]) -> Sequence[Nearby]:
    """Have the person at the terminal choose among the wearables in reach; an empty line chooses no wearable."""
    for number, device in enumerate(nearby, 1):
        print(f"{number:3}  {device.name or '(no name)':24} {device.address}  {device.rssi:4} dBm")
    while True:
        # The prompt of input() would go to the standard error output.
        print("which of them are yours? Numbers, such as 1 or 1,2; Enter for none: ", end="", flush=True)
        answer = sys.stdin.readline()
        try:
            return picked(nearby, answer)
        except UsageError as error:
            print(error)


def picked(nearby: Sequence[Nearby], answer: str) -> Sequence[Nearby]:
    """The devices whose numbers, counted from 1, an answer gives.

    Raises:
        UsageError: The answer holds anything else.
    """
    words = answer.replace(",", " ").split()
    if not all(word.isdecimal() and 1 <= int(word) <= len(nearby) for word in words):
        raise UsageError(f"give numbers from 1 to {len(nearby)}, with commas between them")
    return [nearby[number] for number in sorted({int(word) - 1 for word in words})]
