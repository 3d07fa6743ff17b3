"""Import a CSV file as a recording.

Usage: ``python import_csv.py walk.csv walk.mcap``. The CSV file has a column ``time`` in seconds and columns ``ax``,
``ay``, ``az`` in g. Prints what was imported; ``armlet replay walk.mcap model.armlet`` decides on it.
"""

import sys
from pathlib import Path

from armlet_runtime.formats import import_recording, parse_stream
from armlet_runtime.signals import write_recording


def main(source: str, out: str) -> None:
    """Import and write."""
    acceleration = parse_stream("acc[g]=ax,ay,az")
    recording = import_recording(Path(source), Path(source).stem, "p01", [acceleration], "time")
    write_recording(Path(out), recording)
    for name, stream in recording.streams.items():
        print(f"{out}: {name}, {len(stream.times_ns)} samples at {stream.modality.rate_hz:g} Hz")


if __name__ == "__main__":
    main(*sys.argv[1:])
