"""The time of a fresh process to its first decision with a bundle, and the memory that it needs.

``python -m armlet_runtime.checks cold_start BUNDLE ENGINE STARTED_NS [KEY ...]``; ``STARTED_NS`` is
``time.monotonic_ns()`` when the process was started. It prints :class:`FreshStart` as JSON. This module imports only
what a decision needs, not even argparse.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..bundle import open_bundle, trusted_keys
from ..machine import peak_resident_bytes, resident_bytes
from ..model import BundleModel, physical_windows

FRESH_DECISIONS = 200
"""Decisions in a fresh process before its memory is read."""


class FreshStart(msgspec.Struct, frozen=True):
    """Figures of a fresh process.

    Attributes:
        cold_start_s: Time from the start of the process to its first decision: interpreter, imports, verification of
            the bundle, engine, programs.
        resident_bytes: Resident memory after some hundred decisions.
        before_engine_bytes: Resident memory without the engine and its programs.
        peak_bytes: Largest resident memory.
    """

    cold_start_s: float
    resident_bytes: int
    before_engine_bytes: int
    peak_bytes: int


def main(arguments: Sequence[str]) -> int:
    """Decide, and print the figures.

    Raises:
        ArmletError: The bundle or the engine cannot be used.
    """
    path, engine, started_ns, *key_files = arguments
    bundle = open_bundle(Path(path), trusted_keys([Path(key) for key in key_files]))
    windows = physical_windows(bundle.manifest, bundle.read)
    before = resident_bytes()
    model = BundleModel.from_bundle(bundle, engine)
    first = {name: array[0] for name, array in windows.items()}
    model.predict(first)
    cold_start_s = (time.monotonic_ns() - int(started_ns)) / 1e9
    for _ in range(FRESH_DECISIONS):
        model.predict(first)
    result = FreshStart(cold_start_s, resident_bytes(), before, peak_resident_bytes())
    print(msgspec.json.encode(result).decode())
    return 0
