"""Read a recording into NumPy arrays.

Usage: ``python recording_arrays.py recording.mcap``. Prints the shape, the unit and the measured rate of each modality.
A recording of a live run holds packets; ``with_streams`` decodes them and places the samples on one clock.
"""

import sys
from pathlib import Path

from armlet_runtime.signals import read_recording, with_streams


def main(path: str) -> None:
    """Print what the recording holds."""
    recording = with_streams(read_recording(Path(path)))
    print(f"{recording.name}, worn by {recording.person or 'somebody'}")
    for name, stream in recording.streams.items():
        seconds = (stream.times_ns[-1] - stream.times_ns[0]) / 1e9
        rate_hz = (len(stream.times_ns) - 1) / seconds
        print(f"{name}: {stream.values.shape} in {stream.modality.unit}, {rate_hz:.1f} Hz for {seconds:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
