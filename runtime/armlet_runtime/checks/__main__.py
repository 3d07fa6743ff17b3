"""``python -m armlet_runtime.checks NAME ARGUMENT ...``: a check of a bundle in a process of its own.

Only the module of the named check is imported: ``cold_start`` measures the process that it runs in.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import ArmletError

NAMES = ("cold_start", "deploy_check", "export_proof", "trial_run")
"""Modules of this folder with ``main(arguments) -> int``."""


def main(argv: Sequence[str]) -> int:
    """Run a check; 0 if it passed, 1 if it failed, 2 after an error, which is a sentence on standard error."""
    name, *arguments = argv or ("",)
    if name not in NAMES:
        print(f"armlet: '{name}' is not a check; the checks are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    check = import_module(f"{__package__}.{name}")
    try:
        return int(check.main(arguments))
    except ArmletError as error:
        print(f"armlet: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
