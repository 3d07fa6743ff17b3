"""Run every program of a bundle on its golden windows: ``on_board.py BUNDLE KEY ENGINE OUT.npz DECISIONS``.

``OUT.npz`` gets the tokens of each encoder, ``logits`` and ``embedding`` with all modalities there, and what the engine
says of itself in ``detail``. Then come DECISIONS whole decisions, between two ``getpgid`` for the counting plugin.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from armlet_runtime.bundle.container import open_bundle
from armlet_runtime.bundle.trust import trusted_keys
from armlet_runtime.model.bundle_model import BundleModel
from armlet_runtime.model.golden_run import golden_windows


def main(bundle_file: str, key: str, engine: str, out: str, decisions: str) -> None:
    bundle = open_bundle(Path(bundle_file), trusted_keys([Path(key)]))
    model = BundleModel.from_bundle(bundle, engine)
    windows = golden_windows(bundle.manifest, bundle.read)

    def decide(i: int) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        tokens = {name: model.encode_normalised(name, windows[name][i]) for name in windows}
        return tokens, model.aggregate(tokens)

    results = [decide(i) for i in range(len(next(iter(windows.values()))))]
    arrays: dict[str, Any] = {f"token {name}": [tokens[name] for tokens, _ in results] for name in windows}
    np.savez(
        out,
        detail=f"{model.engine.version}, {model.engine.detail}",
        logits=[logits for _, (logits, _) in results],
        embedding=[embedding for _, (_, embedding) in results],
        **arrays,
    )
    os.getpgid(0)
    for _ in range(int(decisions)):
        decide(0)
    os.getpgid(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
