"""Command-line arguments shared by the checks of a deploy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..install import bundle_path


def read_arguments(name: str, arguments: Sequence[str]) -> tuple[Path, list[Path]]:
    """The bundle's file and the files of trusted keys of ``BUNDLE [--key FILE]...``.

    Raises:
        BundleError: The named slot holds no bundle.
    """
    parser = argparse.ArgumentParser(prog=f"python -m armlet_runtime.checks {name}")
    parser.add_argument("bundle", help="bundle, or file:SLOT")
    parser.add_argument("--key", type=Path, action="append", default=[], help="trusted public key (repeatable)")
    args = parser.parse_args(arguments)
    return bundle_path(args.bundle), args.key
