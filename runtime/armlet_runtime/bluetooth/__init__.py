"""Links to wearables, kept up, on any adapter that bleak or another back end drives.

Imports the root, the wearables and the signals.
"""

from .run_loop import drive, play, turns
from .session import Link, Session, open_bluetooth, sentence_of

__all__ = ["Link", "Session", "drive", "open_bluetooth", "play", "sentence_of", "turns"]
