"""The export as a line of stages, each a value that the next one takes: Trained, Quantised, Lowered, Proven, Bundle.

Imports every wing but the demo and the commands.
"""

from .export import export_model
from .lowered import PartPrograms, program_part
from .report import ExportReport, ProgramReport, program_report
from .trained import Progress, Trained, load_trained

__all__ = [
    "ExportReport",
    "PartPrograms",
    "ProgramReport",
    "Progress",
    "Trained",
    "export_model",
    "load_trained",
    "program_part",
    "program_report",
]
