"""Views of a run: lines, the journal, a terminal screen, a page; and tables of figures.

Imports the root, the wearables, the signals, the Bluetooth wing, the bundle, the model and the live wing.
"""

from .line_writer import BackgroundWriter
from .lines import LineView
from .monitor import Monitor
from .page_address import parse_address
from .stdout_view import make_view
from .tables import SubsetCell, figures_table
from .web import Page, serve_page

__all__ = [
    "BackgroundWriter",
    "LineView",
    "Monitor",
    "Page",
    "SubsetCell",
    "figures_table",
    "make_view",
    "parse_address",
    "serve_page",
]
