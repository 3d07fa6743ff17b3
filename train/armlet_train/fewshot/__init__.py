"""Few-shot classification: prototypes and the episodes that train them.

Imports the root, the data, the models, the methods and the engine.
"""

from . import episodes
from .episodes import EpisodeScore
from .prototypes import Distance, PrototypeHead

__all__ = ["Distance", "EpisodeScore", "PrototypeHead", "episodes"]
