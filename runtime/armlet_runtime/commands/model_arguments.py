"""Arguments of the commands that use a bundle's model, and the model that they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..model import BundleModel


def add_bundle_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare BUNDLE and ``--key``."""
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle file, or file:SLOT for a slot's current bundle")
    add_key_option(parser)


def add_key_option(parser: argparse.ArgumentParser) -> None:
    """Declare ``--key``."""
    parser.add_argument(
        "--key",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.pub",
        help="public key to trust (repeatable); without it the keys in the home's trusted/ folder",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare BUNDLE, ``--key`` and ``--engine``."""
    add_bundle_arguments(parser)
    add_engine_option(parser)


def add_engine_option(parser: argparse.ArgumentParser) -> None:
    """Declare ``--engine``."""
    parser.add_argument("--engine", metavar="NAME", help="engine to run on (default: the bundle's first usable here)")


def load_bundle(args: argparse.Namespace) -> Bundle:
    """The verified bundle that the arguments name; errors as for
    :func:`armlet_runtime.install.probation.open_settled`."""
    from ..install import open_settled

    return open_settled(args.bundle, args.key)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Declare ``--floor``, ``--unknown-below`` and ``--web``, which a live run and a replay share."""
    parser.add_argument(
        "--floor",
        type=float,
        metavar="F",
        help="give no decision on sensors for which the bundle's certificate has a macro-F1 below this (0 to 1)",
    )
    parser.add_argument(
        "--unknown-below",
        type=float,
        metavar="P",
        help="call a decision 'unknown' whose probability is below this; 0: never (default: the bundle's threshold)",
    )
    parser.add_argument(
        "--web",
        nargs="?",
        const="127.0.0.1:8765",
        metavar="HOST:PORT",
        help="show it on a page too (default: 127.0.0.1:8765, for this machine only; other addresses need a token)",
    )


def load_model(args: argparse.Namespace) -> BundleModel:
    """The model that the arguments name, of a verified bundle.

    Raises:
        BundleError: The bundle cannot be trusted or used.
        EngineError: The engine cannot be used here.
    """
    from ..model import BundleModel

    return BundleModel.from_bundle(load_bundle(args), args.engine)
