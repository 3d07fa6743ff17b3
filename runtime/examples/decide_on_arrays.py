"""Load a signed bundle and decide on NumPy arrays.

Usage: ``python decide_on_arrays.py model.armlet [signing.key.pub]``. Prints the label and its probability, first on all
modalities, then on each alone: the model puts its mask token in place of an absent modality.
"""

import sys
from pathlib import Path

import numpy as np

from armlet_runtime.live import open_model


def main(bundle: str, *keys: str) -> None:
    """Decide on windows of noise; put your own arrays (channels, samples) in their place, in the manifest's units."""
    model = open_model(bundle, [Path(key) for key in keys]).model
    rng = np.random.default_rng(0)
    windows = {
        modality.name: rng.normal(size=(len(modality.channels), model.manifest.window.samples(modality))).astype(
            np.float32
        )
        for modality in model.manifest.modalities
    }
    for names in (list(windows), *([name] for name in windows)):
        logits, embedding = model.predict({name: windows[name] for name in names})
        scores = np.exp(logits - logits.max())
        best = int(scores.argmax())
        label, share = model.manifest.labels[best], scores[best] / scores.sum()
        print(f"{'+'.join(names)}: {label} ({share:.2f}), embedding of {len(embedding)} numbers")


if __name__ == "__main__":
    main(*sys.argv[1:])
