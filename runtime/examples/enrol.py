"""Teach a bundle a new class from one example in a recording, and decide with it.

Usage: ``python enrol.py recording.mcap SECOND NAME model.armlet [signing.key.pub]``. Prints how many windows become
the new class. Nothing is kept: ``armlet enrol`` keeps the class beside the bundle, and can undo it.
"""

import sys
from collections import Counter
from pathlib import Path

from armlet_runtime.live import LiveCore, open_model, recorded_windows
from armlet_runtime.model import Bank, make_example
from armlet_runtime.signals import packets_of, read_recording


def main(recording: str, second: str, name: str, bundle: str, *keys: str) -> None:
    """Learn from the five seconds after SECOND, and replay the recording."""
    opened = open_model(bundle, [Path(key) for key in keys])
    packets, _ = packets_of(read_recording(Path(recording)), opened.bundle.manifest.modalities)
    windows = recorded_windows(opened.model, packets, float(second), 5.0)
    example = make_example(opened.model, Bank(opened.bundle.manifest, opened.bundle.read), windows, recording)
    policy = opened.policy.with_layer(opened.policy.layer.enrol(name, example))
    core = LiveCore(opened.model, policy=policy)
    counts = Counter(decision.label for packet in packets for decision in core.packet(packet))
    print(f"learned '{name}' from {example.windows} windows")
    for label, count in counts.most_common():
        print(f"{label}: {count}")


if __name__ == "__main__":
    main(*sys.argv[1:])
