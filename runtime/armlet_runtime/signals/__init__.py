"""Recordings, clocks and windows: from the packets of wearables to arrays on one common clock.

Imports the root and the wearables.
"""

from .conversion import packets_of, with_streams
from .placement import PacketClock
from .recorder import Recorder
from .recording import BEGAN, ENDED_NS, Label, Packet, Recording, Stream, decoded, now_text
from .recording_reader import read_recording
from .recording_writer import RecordingWriter, write_recording
from .sample_ring import SampleRing
from .wearable import Wearable
from .window_cutter import Cut, Cutter

__all__ = [
    "BEGAN",
    "ENDED_NS",
    "Cut",
    "Cutter",
    "Label",
    "Packet",
    "PacketClock",
    "Recorder",
    "Recording",
    "RecordingWriter",
    "SampleRing",
    "Stream",
    "Wearable",
    "decoded",
    "now_text",
    "packets_of",
    "read_recording",
    "with_streams",
    "write_recording",
]
