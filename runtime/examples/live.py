"""Decide live on wearables.

Usage: ``python live.py model.armlet system "Polar H10 12345678"``: the bundle, the Bluetooth (``system`` is this
computer's own), and the advertised name or the address of each wearable. Prints each decision: its time, its label, and
the sensors that it rests on.
"""

import sys

from armlet_runtime import open_live

if __name__ == "__main__":
    for decision in open_live(sys.argv[1], bluetooth=sys.argv[2], wearables=sys.argv[3:]):
        print(decision.window_end_ns / 1e9, decision.label, "+".join(decision.subset), flush=True)
