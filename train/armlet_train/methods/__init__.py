"""Methods of pretraining: masks, losses and objectives, one file a method.

Imports the root and the models.
"""

from .base import Objective
from .build import build_pretraining

__all__ = ["Objective", "build_pretraining"]
