"""Prove that this computer runs a bundle as it was exported.

Usage: ``python golden_run.py model.armlet [signing.key.pub]``. Runs the bundle's golden windows on each engine that is
installed here, and prints how far the logits are from those at the export. Exits with 1 if they are too far.
"""

import sys
from pathlib import Path

from armlet_runtime.bundle import open_bundle, trusted_keys
from armlet_runtime.engines import available
from armlet_runtime.model import BundleModel, run_golden


def main(path: str, *keys: str) -> int:
    """Run every engine of the bundle."""
    bundle = open_bundle(Path(path), trusted_keys([Path(key) for key in keys]))
    reasons, failures = available(), 0
    for engine in bundle.manifest.engines:
        if reasons[engine] is not None:
            print(f"{engine}: not run, {reasons[engine]}")
            continue
        result = run_golden(BundleModel.from_bundle(bundle, engine), bundle.read)
        failures += not result.passed
        print(f"{engine}: {result.windows} windows, off by {result.max_difference:g} of {result.tolerance:g} allowed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
