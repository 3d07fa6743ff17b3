"""What people look at while a run goes on: lines, a terminal, a page.

Imports the root, the signals, the bundle, the model and the live wing.
"""

from .lines import LineView
from .monitor import Monitor
from .terminal import make_view
from .web import Page, parse_address, serve_page

__all__ = ["LineView", "Monitor", "Page", "make_view", "parse_address", "serve_page"]
