"""Replay a recording through a bundle's model, as fast as it goes.

Usage: ``python replay.py recording.mcap model.armlet [signing.key.pub]``. Prints each decision as a line of JSON: the
same packets give the same lines, byte for byte.
"""

import sys
from pathlib import Path

from armlet_runtime.live import LiveCore, open_model
from armlet_runtime.signals import packets_of, read_recording


def main(recording: str, bundle: str, *keys: str) -> None:
    """Print the decisions."""
    opened = open_model(bundle, [Path(key) for key in keys])
    packets, _ = packets_of(read_recording(Path(recording)), opened.bundle.manifest.modalities)
    core = LiveCore(opened.model, policy=opened.policy)
    for packet in packets:
        for decision in core.packet(packet):
            print(decision.to_json().decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
