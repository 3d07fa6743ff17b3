"""Recordings, clocks and windows: from the packets of wearables to arrays on one common clock.

Training cuts its windows with this code too. Imports the root and the wearables.
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
from .windows import (
    GAP_PERIODS,
    RATE_TOLERANCE,
    Normalisation,
    WindowSpec,
    all_finite,
    fill_gaps,
    resample,
    sample_times,
)

__all__ = [
    "BEGAN",
    "ENDED_NS",
    "GAP_PERIODS",
    "RATE_TOLERANCE",
    "Cut",
    "Cutter",
    "Label",
    "Normalisation",
    "Packet",
    "PacketClock",
    "Recorder",
    "Recording",
    "RecordingWriter",
    "SampleRing",
    "Stream",
    "Wearable",
    "WindowSpec",
    "all_finite",
    "decoded",
    "fill_gaps",
    "now_text",
    "packets_of",
    "read_recording",
    "resample",
    "sample_times",
    "with_streams",
    "write_recording",
]
