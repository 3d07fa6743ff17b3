"""The arguments that every command with a bundle's model has, and the model that they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model import BundleModel


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare BUNDLE, ``--key`` and ``--engine``."""
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle file, or file:SLOT for a slot's current bundle")
    parser.add_argument(
        "--key",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.pub",
        help="public key to trust (repeatable); without it the keys in the home's trusted/ folder",
    )
    parser.add_argument("--engine", metavar="NAME", help="engine to run on (default: the bundle's first usable here)")


def load_model(args: argparse.Namespace) -> tuple[BundleModel, str]:
    """The model that the arguments name, of a verified bundle, and the bundle's digest.

    Raises:
        BundleError: The bundle cannot be trusted or used.
        EngineError: The engine cannot be used here.
    """
    from ..bundle import open_bundle
    from ..keys import trusted_keys
    from ..model import BundleModel
    from ..slots import bundle_path

    bundle = open_bundle(bundle_path(args.bundle), trusted_keys(args.key))
    return BundleModel.from_bundle(bundle, args.engine), bundle.digest
