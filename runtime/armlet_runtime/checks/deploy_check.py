"""The health check of a bundle before its slot is switched: ``python -m armlet_runtime.checks deploy_check BUNDLE``.

It runs in a process of its own, because a program may crash its engine and the process with it. It verifies the bundle,
makes the golden run, and times whole decisions: a board too slow for the bundle's hop cannot run it live.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ..arrays import Float32
from ..bundle import decode_certificate, open_bundle, trusted_keys
from ..install import DEPLOY_CHECK, Health
from ..model import BundleModel, golden_windows, run_golden
from .bundle_arguments import read_arguments

DECISIONS = 40
"""Number of timed decisions: the 95th percentile is the third slowest."""


def check(path: Path, keys: Sequence[Path] = ()) -> Health:
    """Check a bundle on the first of its engines that this machine has.

    Args:
        path: The bundle.
        keys: Files of trusted public keys; empty for those of the home.

    Raises:
        BundleError: The bundle cannot be trusted or used.
        EngineError: The engine failed.
    """
    bundle = open_bundle(path, trusted_keys(keys))
    model = BundleModel.from_bundle(bundle)
    decode_certificate(bundle.read(bundle.manifest.certificate))  # the runtime needs it at its start
    golden = run_golden(model, bundle.read)
    seconds = _decision_s(model, golden_windows(bundle.manifest, bundle.read))
    return Health(golden, seconds, bundle.manifest.window.hop_s)


def _decision_s(model: BundleModel, windows: Mapping[str, Float32]) -> float:
    times_s = []
    for number in range(DECISIONS):
        start = time.perf_counter()
        tokens = {name: model.encode_normalised(name, part[number % len(part)]) for name, part in windows.items()}
        model.aggregate(tokens)
        times_s.append(time.perf_counter() - start)
    return sorted(times_s)[DECISIONS * 95 // 100 - 1]


def main(arguments: Sequence[str]) -> int:
    """Print the :class:`~armlet_runtime.install.health.Health` of a bundle as JSON; 0 if it passed, else 1.

    Raises:
        ArmletError: As :func:`check`.
    """
    health = check(*read_arguments(DEPLOY_CHECK, arguments))
    print(msgspec.json.encode(health).decode())
    return 0 if health.passed else 1
