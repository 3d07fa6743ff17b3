"""The commands of training, one file each.

Imports every wing; a command imports what it needs when it runs.
"""

from .training import progress_bar

__all__ = ["progress_bar"]
