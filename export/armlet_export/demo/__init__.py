"""The demo: its stages, its results, its report.

Imports the pipeline.
"""

from . import stages
from .results import collect, make_report, make_table

__all__ = ["collect", "make_report", "make_table", "stages"]
