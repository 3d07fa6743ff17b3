"""A process of its own that tries a bundle, so that what its programs do to a process they do not do to the caller's.

Both sides of it: :func:`run` starts ``python -m MODULE BUNDLE --key ...`` and :func:`main` is what such a module is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ArmletError
from .slots import bundle_path


def run(module: str, bundle: str | Path, keys: Sequence[Path], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a module on a bundle; ``bundle`` and ``keys`` as for :func:`main`.

    Raises:
        subprocess.TimeoutExpired: It took longer, and was killed.
    """
    command = [sys.executable, "-m", module, str(bundle)]
    for key in keys:
        command += ["--key", str(key)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def last_words(ran: subprocess.CompletedProcess[str]) -> str:
    """The last sentence of a process that did not end well."""
    return (ran.stderr.strip().splitlines() or [f"ended with status {ran.returncode}"])[-1]


def main(module: str, look: Callable[[Path, Sequence[Path]], int], argv: Sequence[str] | None) -> int:
    """What ``look`` gives for the bundle and the keys of a command line; 2, after one sentence, for an error."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("bundle", help="bundle, or file:SLOT")
    parser.add_argument("--key", type=Path, action="append", default=[], help="trusted public key (repeatable)")
    args = parser.parse_args(argv)
    try:
        return look(bundle_path(args.bundle), args.key)
    except ArmletError as error:
        print(error, file=sys.stderr)
        return 2
