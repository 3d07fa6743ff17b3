"""Recordings of other programs, read and written: one module a format.

Imports the root, the wearables and the signals.
"""

from .exported_folder import ABOUT, LABEL_COLUMNS, LABELS, TIME
from .foreign_table import REBUILT, parse_stream
from .recordings import export_recording, import_recording
from .units import ASSUMED

__all__ = [
    "ABOUT",
    "ASSUMED",
    "LABELS",
    "LABEL_COLUMNS",
    "REBUILT",
    "TIME",
    "export_recording",
    "import_recording",
    "parse_stream",
]
