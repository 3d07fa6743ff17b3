"""The health check of a bundle on this machine: ``python -m armlet_runtime.checks.deploy_check BUNDLE``, a process of
its own.

A process of its own, because a program may take its engine, and the process with it, down. It verifies the bundle,
makes the golden run, and times whole decisions: a board too slow for the bundle's hop cannot run it live.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ..arrays import Float32
from ..bundle import decode_certificate, open_bundle, trusted_keys
from ..install import DEPLOY_CHECK, Health
from ..install import child_process as child
from ..model import BundleModel, golden_windows, run_golden

DECISIONS = 40
"""How many decisions are timed: the 95th percentile is then the third slowest."""


def check(path: Path, keys: Sequence[Path] = ()) -> Health:
    """Check a bundle on the first of its engines that this machine has.

    Args:
        path: The bundle.
        keys: Files of trusted public keys; what the home trusts without any.

    Raises:
        BundleError: It cannot be trusted or used.
        EngineError: The engine failed.
    """
    bundle = open_bundle(path, trusted_keys(keys))
    model = BundleModel.from_bundle(bundle)
    decode_certificate(bundle.read(bundle.manifest.certificate))  # the runtime would not start without
    golden = run_golden(model, bundle.read)
    seconds = _decision_s(model, golden_windows(bundle.manifest, bundle.read))
    return Health(golden, seconds, bundle.manifest.window.hop_s)


def _decision_s(model: BundleModel, windows: Mapping[str, Float32]) -> float:
    taken = []
    for number in range(DECISIONS):
        began = time.perf_counter()
        tokens = {name: model.encode_normalised(name, part[number % len(part)]) for name, part in windows.items()}
        model.aggregate(tokens)
        taken.append(time.perf_counter() - began)
    return sorted(taken)[DECISIONS * 95 // 100 - 1]


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found as JSON; 0 passed, 1 failed, 2 with one sentence for an error."""

    def look(path: Path, keys: Sequence[Path]) -> int:
        health = check(path, keys)
        print(msgspec.json.encode(health).decode())
        return 0 if health.passed else 1

    return child.main(DEPLOY_CHECK, look, argv)


if __name__ == "__main__":
    sys.exit(main())
