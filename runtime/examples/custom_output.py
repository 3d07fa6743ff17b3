"""Give the decisions of a run to an output of your own.

Usage: ``python custom_output.py recording.mcap model.armlet [signing.key.pub]``. An ``Output`` takes the packets and
the decisions of a run, live or in a replay. This one prints a line when the label changes.
"""

import sys
from pathlib import Path

from armlet_runtime import Decision
from armlet_runtime.live import LiveCore, Output, Run, open_model
from armlet_runtime.signals import packets_of, read_recording


class Transitions(Output):
    """Prints each change of the label, with the seconds since the first decision."""

    def __init__(self) -> None:
        """Begin before the first decision."""
        self._label: str | None = None
        self._first_ns: int | None = None

    def decision(self, decision: Decision) -> None:
        """Print the label if it is a new one."""
        if self._first_ns is None:
            self._first_ns = decision.window_end_ns
        if decision.label != self._label:
            print(f"{(decision.window_end_ns - self._first_ns) / 1e9:7.2f} s: {decision.label}")
        self._label = decision.label


def main(recording: str, bundle: str, *keys: str) -> None:
    """Replay a recording with the output."""
    opened = open_model(bundle, [Path(key) for key in keys])
    packets, _ = packets_of(read_recording(Path(recording)), opened.bundle.manifest.modalities)
    with Run(opened, LiveCore(opened.model, policy=opened.policy)) as run:
        run.add(Transitions())
        for packet in packets:
            run.turn([packet], packet.arrival_ns)
        run.finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
