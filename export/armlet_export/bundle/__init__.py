"""The draft of a bundle: its members, its bill of materials, its smoothing.

Imports the backends and the streaming module.
"""

from .draft import Description, Draft, make_draft
from .smoothing import smoothing_of

__all__ = ["Description", "Draft", "make_draft", "smoothing_of"]
