"""The commands of the board, one file each, and the arguments that commands share.

Imports every wing; a command imports what it needs when it runs.
"""

from .bluetooth_arguments import add_bluetooth_option, seconds, wearable_names
from .model_arguments import add_bundle_arguments, add_engine_option, add_key_option, load_model

__all__ = [
    "add_bluetooth_option",
    "add_bundle_arguments",
    "add_engine_option",
    "add_key_option",
    "load_model",
    "seconds",
    "wearable_names",
]
