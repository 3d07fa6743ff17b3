"""What a sensor's first windows after its return are worth: for who chooses ``return_coverage`` and ``min_coverage``.

    python -m benchmarks.studies.return_coverage model.armlet --recipe hapt-demo --split test

A sensor that was away for longer than a window comes back: of its first windows only the newest part was received, and
what lies before is held at the first sample, as a live run fills it. For each subset and each part of it that returns,
macro-F1 at several shares received stands beside that of going on without the returned sensors. Windows have one label
each, as in the certificate; the bundle's own programs decide them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from armlet_runtime.arrays import Float32
from armlet_runtime.bundle import open_bundle, trusted_keys
from armlet_runtime.errors import ArmletError
from armlet_runtime.files import write_json
from armlet_runtime.machine import describe
from armlet_runtime.metrics import macro_f1
from armlet_runtime.modalities import subset_name, subsets
from armlet_runtime.model import BundleModel
from armlet_runtime.windows import fill_gaps
from armlet_train.data import load_corpus
from armlet_train.recipes import find_recipe, load_recipe

RECEIVED = (0.3, 0.4, 0.5, 0.6, 0.64, 0.7, 0.8, 0.9, 1.0)


def tokens_of(model: BundleModel, name: str, windows: Float32, received: float) -> Float32:
    """(n, token_dim) tokens of windows (n, channels, samples) of which the newest share was received."""
    samples = windows.shape[-1]
    covered = np.arange(samples) >= samples - round(received * samples)
    return np.stack([model.encode(name, np.ascontiguousarray(fill_gaps(window.T, covered).T)) for window in windows])


def main() -> int:
    """Print a row for each subset and part that returns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--recipe", required=True, help="that the bundle was made by, for its data")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--key", type=Path, action="append", default=[], help="public key to trust")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()
    try:
        bundle = open_bundle(args.bundle, trusted_keys(args.key))
        model = BundleModel.from_bundle(bundle)
        corpus = load_corpus(load_recipe(find_recipe(args.recipe)).data, args.split)
    except ArmletError as error:
        print(f"returning: {error}", file=sys.stderr)
        return 2
    names = [modality.name for modality in bundle.manifest.modalities]
    starts = corpus.starts(labelled=True, every=corpus.stride)
    starts = starts[corpus.present(starts).all(axis=1)]
    truth, people, raw = corpus.labels_of(starts), corpus.people_of(starts), corpus.windows(starts)
    tokens = {share: {name: tokens_of(model, name, raw[name], share) for name in names} for share in RECEIVED}

    def decided(subset: Sequence[str], back: Sequence[str], share: float) -> NDArray[np.int64]:
        held = {name: tokens[share if name in back else 1.0][name] for name in subset}
        return np.array([
            model.aggregate({name: rows[row] for name, rows in held.items()})[0].argmax() for row in range(len(truth))
        ])  # fmt: skip

    def scored(subset: Sequence[str], back: Sequence[str], share: float) -> float:
        return macro_f1(truth, decided(subset, back, share), len(bundle.manifest.labels))

    print(f"{args.split} people ({len(set(people))}), {len(truth)} windows, {model.engine.name} {model.engine.version}")
    print(f"{'decided on':12} {'returned':12} {'without':>8}" + "".join(f"{share:>7.0%}" for share in RECEIVED))
    results = []
    for subset in subsets(names):
        # One sensor alone, or all of them, as after an adapter's return.
        for back in [(name,) for name in subset] + [subset] * (len(subset) > 1):
            rest = [name for name in subset if name not in back]
            without = scored(rest, (), 1.0) if rest else None
            figures = {share: scored(subset, back, share) for share in RECEIVED}
            shown = f"{without:8.3f}" if without is not None else f"{'none':>8}"
            print(
                f"{subset_name(subset):12} {subset_name(back):12} {shown}"
                + "".join(f"{figure:7.3f}" for figure in figures.values())
            )
            results.append({"subset": subset, "returned": back, "without": without, "macro_f1": figures})
    if args.json:
        write_json(args.json, {"split": args.split, "machine": describe(), "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
