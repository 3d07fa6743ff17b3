"""The gate: every program is run in a fresh process and held against PyTorch; calibration and certificate.

Imports the backends, training and the runtime.
"""

from . import calibration
from .certificate import make_certificate
from .gate import GateRow, Proof, check, compare, program_rows, run_engine
from .reference import Reference

__all__ = [
    "GateRow",
    "Proof",
    "Reference",
    "calibration",
    "check",
    "compare",
    "make_certificate",
    "program_rows",
    "run_engine",
]
