"""A bundle's programs as one model, its golden run, its calibration, and the classes enrolled for it.

Imports the root, the engines, the signals and the bundle.
"""

from .bundle_model import BundleModel, Carried, choose_engine, programs_of
from .calibration import Decider
from .enrolled_classes import SCHEMA, Example, Layer, LayerWatch, change_layer, check_name, left_behind, read_layer
from .golden_run import (
    FLOAT_TOLERANCE,
    GoldenResult,
    golden_windows,
    physical_windows,
    run_encoders,
    run_golden,
    run_subsets,
    what_failed,
)
from .policy import Policy
from .prototypes import Bank, make_example, taken_for

__all__ = [
    "FLOAT_TOLERANCE",
    "SCHEMA",
    "Bank",
    "BundleModel",
    "Carried",
    "Decider",
    "Example",
    "GoldenResult",
    "Layer",
    "LayerWatch",
    "Policy",
    "change_layer",
    "check_name",
    "choose_engine",
    "golden_windows",
    "left_behind",
    "make_example",
    "physical_windows",
    "programs_of",
    "read_layer",
    "run_encoders",
    "run_golden",
    "run_subsets",
    "taken_for",
    "what_failed",
]
