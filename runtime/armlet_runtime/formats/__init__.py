"""Recordings of other programs, read and written: one module a format.

Imports the root, the wearables and the signals.
"""

from .recordings import export_recording, import_recording
from .stream_tables import ABOUT, LABEL_COLUMNS, LABELS, TIME, parse_stream
from .table_reader import ASSUMED

__all__ = [
    "ABOUT",
    "ASSUMED",
    "LABELS",
    "LABEL_COLUMNS",
    "TIME",
    "export_recording",
    "import_recording",
    "parse_stream",
]
